"""Serves what systemd hands over: a listener, or with `each` one connection. A line from a caller says what to do: `call`
makes an outbound call and answers its status; `lead` connects the handed sockets to other ports of the API's host, and
prints what came of it."""
import ctypes, errno, os, socket, subprocess, sys

HOST = "api.example.test"
CALL = ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", f"https://{HOST}/v1/from-service"]
ADDRESS = socket.getaddrinfo(HOST, 443, socket.AF_INET)[0][4][0]


def lead(name, handed, port):
    """Ends what the socket is and connects it anew."""
    unspecified = ctypes.create_string_buffer(bytes(16))
    ctypes.CDLL(None).connect(handed.fileno(), unspecified, 16)
    try:
        handed.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    address = ADDRESS if handed.family == socket.AF_INET else "::ffff:" + ADDRESS
    handed.settimeout(3)
    try:
        handed.connect((address, port))
        print(f"{name} CONNECTED")
    except OSError as error:
        print(f"{name} {errno.errorcode.get(error.errno, error)}")


def serve(connection, listener):
    asked = connection.recv(16)
    if asked == b"call":
        connection.sendall(subprocess.run(CALL, capture_output=True).stdout)
    elif asked == b"lead":
        lead("accepted", connection, 7771)
        if listener:
            lead("listener", listener, 7772)
        print("all led", flush=True)
    connection.close()


if sys.argv[1:] == ["each"]:
    serve(socket.socket(fileno=os.dup(0)), None)
else:
    listener = socket.socket(fileno=3)
    while listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        connection = listener.accept()[0]
        connection.setblocking(True)
        serve(connection, listener)
