"""Takes as much as it can get of one thing, says what it got as one JSON line, and keeps it until standard input ends.

Arguments: host, what ("connections", "downloads", "uploads", "ports", "storm"), how many. A storm is so many threads
that connect, shake hands, call and hang up for as long as it lasts."""
import collections, json, socket, ssl, sys, threading

host, what, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
context = ssl.create_default_context()
held, got, lock = [], collections.Counter(), threading.Lock()


def connect(port=443):
    sock = socket.create_connection((host, port), 10)
    held.append(sock)
    return sock


def connection():
    sock = connect()
    sock.settimeout(1)
    try:
        sock.recv(1)
        return "refused"
    except TimeoutError:
        return "held"
    except OSError:
        return "refused"


def call(head, patience):
    sock = context.wrap_socket(connect(), server_hostname=host)
    held.append(sock)
    sock.settimeout(patience)
    sock.sendall(head.encode())
    answer = b""
    try:
        while b"\r\n\r\n" not in answer:
            data = sock.recv(65536)
            if not data:
                return "closed"
            answer += data
    except TimeoutError:
        return "held"
    return answer.split(b" ")[1].decode()


def downloads():
    return call(f"GET /slow HTTP/1.1\r\nHost: {host}\r\n\r\n", 10)


def uploads():
    return call(f"POST /upload HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1000000\r\n\r\nslow", 1)


def ports():
    try:
        connect(81)
        return "connected"
    except OSError:
        return "refused"


def one(work):
    try:
        result = work()
    except OSError as error:
        result = type(error).__name__
    with lock:
        got[result] += 1


def storm(started):
    while not ended.is_set():
        try:
            sock = context.wrap_socket(socket.create_connection((host, 443), 10), server_hostname=host)
            sock.sendall(f"GET /storm HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            sock.close()
        except OSError:
            pass
        started.set()


if what == "storm":
    ended, begun = threading.Event(), [threading.Event() for _ in range(count)]
    threads = [threading.Thread(target=storm, args=(event,)) for event in begun]
    for thread in threads:
        thread.start()
    for event in begun:
        event.wait()
    print(json.dumps({"begun": count}), flush=True)
    sys.stdin.read()
    ended.set()
    sys.exit()

work = {"connections": connection, "downloads": downloads, "uploads": uploads, "ports": ports}[what]
if what == "ports":
    for _ in range(count):
        one(work)
else:
    threads = [threading.Thread(target=one, args=(work,)) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
print(json.dumps(got), flush=True)
sys.stdin.read()
