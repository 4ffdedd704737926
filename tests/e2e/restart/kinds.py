# Holds a WebSocket, server-sent events and a tunnel; runs behind `http/client.py`. Arguments: the upstreams' own authority,
# the tunnel's host. Says when all have begun, goes on after a line of input, and says how each ended.

authority, tunnelled = sys.argv[1:]


def until(sock, mark, got=""):
    while mark not in got:
        data = sock.recv(65536)
        if not data:
            raise EOFError(got)
        got += data.decode("latin-1")
    return got


def websocket():
    sock = connect()
    handshake = ["Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]
    sock.sendall(get("/ws/kept", *handshake).replace("Connection: close", "Connection: Upgrade").encode())
    until(sock, "\r\n\r\n")
    sock.sendall(b"before")
    until(sock, "before")
    yield
    sock.sendall(b"after")
    until(sock, "after")
    leave(sock)
    yield "came back"


def events():
    sock = connect()
    sock.sendall(get("/events/kept", "Accept: text/event-stream").encode())
    got = until(sock, "data: 0")
    yield
    for number in range(3):
        got = until(sock, f"data: {number}", got)
        # Another call, by the next agent, has the server go on.
        assert status(exchange(get(f"/gate/kept{number}"))) == 200
    got += rest(sock)
    yield "whole" if got.endswith("0\r\n\r\n") else repr(got)


def tunnel():
    context = ssl.create_default_context(cafile=authority)
    sock = context.wrap_socket(socket.create_connection((tunnelled, 443), 10), server_hostname=tunnelled)
    sock.sendall(get("/stream", host=tunnelled).encode())
    got = until(sock, "\r\n\r\nx")
    yield
    sock.settimeout(30)
    got += rest(sock)
    yield len(got.split("\r\n\r\n")[1])


held = [websocket(), events(), tunnel()]
for one in held:
    next(one)
print("begun", flush=True)
sys.stdin.readline()
print(json.dumps([next(one) for one in held]), flush=True)
