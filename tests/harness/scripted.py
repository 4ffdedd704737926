"""An upstream that does what nginx can't: see scripted.rs. Arguments: IPv4 and IPv6 address, port, log, and for TLS certificate and key."""
import base64, hashlib, json, socket, ssl, sys, threading, time

gates, lock = {}, threading.Lock()


def gate(name):
    with lock:
        return gates.setdefault(name, threading.Event())


class Conn:
    def __init__(self, sock):
        self.sock, self.buf = sock, b""

    def fill(self):
        data = self.sock.recv(65536)
        if not data:
            raise EOFError
        self.buf += data

    def until(self, mark):
        while mark not in self.buf:
            self.fill()
        end = self.buf.index(mark) + len(mark)
        out, self.buf = self.buf[:end], self.buf[end:]
        return out

    def exactly(self, count):
        while len(self.buf) < count:
            self.fill()
        out, self.buf = self.buf[:count], self.buf[count:]
        return out

    def body(self, fields):
        """Length, and the trailers as they came."""
        if "content-length" in fields:
            left = total = int(fields["content-length"])
            while left:
                if not self.buf:
                    self.fill()
                part = min(left, len(self.buf))
                self.buf, left = self.buf[part:], left - part
            return total, ""
        total = 0
        if fields.get("transfer-encoding") == "chunked":
            while size := int(self.until(b"\r\n").split(b";")[0], 16):
                self.exactly(size + 2)
                total += size
            trailers = b""
            while (line := self.until(b"\r\n")) != b"\r\n":
                trailers += line
            return total, trailers.decode("latin-1")
        return 0, ""

    def send(self, text):
        self.sock.sendall(text if isinstance(text, bytes) else text.encode())

    def ok(self, body, *fields):
        head = "".join(f"{field}\r\n" for field in fields)
        self.send(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n{head}\r\n{body}")


def log(entry):
    with lock, open(sys.argv[4], "a") as file:
        file.write(json.dumps(entry) + "\n")


def serve(conn):
    try:
        while answer(conn):
            pass
    except (EOFError, OSError) as error:
        log({"path": "closed", "head": repr(error), "body": 0, "trailers": ""})
    finally:
        conn.sock.close()


def upgraded(fields):
    accept = hashlib.sha1((fields["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
    accept = base64.b64encode(accept).decode()
    return f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"


def answer(conn):
    """One request; says whether the connection goes on."""
    head = conn.until(b"\r\n\r\n").decode("latin-1")
    lines = head.split("\r\n")
    path = lines[0].split(" ")[1].split("?")[0]
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    entry = {"path": path, "head": head, "body": 0, "trailers": ""}
    command, _, rest = path[1:].partition("/")
    if command == "early":
        # Answers on the head alone and does not read on.
        log(entry)
        conn.send("HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\nConnection: close\r\n\r\nlarge")
        gate(rest).wait(3)
        return False
    if command == "rude":
        # As "early", but closes on what it has not read, which resets the connection.
        log(entry)
        conn.send("HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\nConnection: close\r\n\r\nlarge")
        return False
    if command == "sink":
        # Reads nothing until the gate is open.
        gate(rest).wait(20)
    if command == "ws":
        log(entry)
        conn.send(upgraded(fields))
        while True:
            if not conn.buf:
                conn.fill()
            conn.send(conn.buf)
            conn.buf = b""
    if command == "talk":
        # As "ws", for clients that know the protocol: short messages come back as messages.
        log(entry)
        conn.send(upgraded(fields))
        while True:
            first, length = conn.exactly(2)
            mask = conn.exactly(4)
            data = bytes(byte ^ mask[at % 4] for at, byte in enumerate(conn.exactly(length & 127)))
            conn.send(bytes([first, len(data)]) + data)
            if first & 15 == 8:
                # With a TLS close, as servers of that protocol do; a bare end of the stream could be anybody's.
                conn.sock.settimeout(2)
                conn.sock.unwrap()
                return False
    if command == "switch":
        log(entry)
        conn.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: other\r\nConnection: Upgrade\r\n\r\nblind")
        return False
    entry["body"], entry["trailers"] = conn.body(fields)
    log(entry)
    if command == "trailers":
        conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum, Set-Cookie\r\n\r\n")
        conn.send("5\r\nhello\r\n0\r\nX-Sum: 42\r\nSet-Cookie: a=b\r\n\r\n")
    elif command == "hints":
        conn.send("HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n")
        conn.ok("after hints")
    elif command == "short":
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this")
        return False
    elif command == "cut":
        conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        return False
    elif command == "silent":
        return False
    elif command == "garbage":
        conn.send("this is no HTTP\r\n\r\n")
        return False
    elif command == "hang":
        gate(rest).wait(20)
        return False
    elif command == "once":
        conn.ok("once")
        return False
    elif command == "cookies":
        conn.ok("crumbs", "Set-Cookie: session=1", 'Alt-Svc: h3=":443"', "X-Kept: yes", "Connection: X-Hop", "X-Hop: gone")
    elif command == "gate":
        gate(rest).set()
        conn.ok("open")
    elif command == "events":
        conn.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(3):
            event = f"data: {number}\n\n"
            conn.send(f"{len(event):x}\r\n{event}\r\n")
            gate(f"{rest}{number}").wait(10)
        conn.send("0\r\n\r\n")
    elif command == "feed":
        # Two events and a cut; to who goes on after them one more and an end; then no more.
        last = fields.get("last-event-id")
        if last == "3":
            conn.send("HTTP/1.1 204 No Content\r\n\r\n")
            return True
        conn.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        text = "id: 3\ndata: three\n\n" if last == "2" else "retry: 50\n\nid: 1\ndata: one\n\nid: 2\ndata: two\n\n"
        conn.send(f"{len(text):x}\r\n{text}\r\n")
        if last != "2":
            return False
        conn.send("0\r\n\r\n")
    elif command == "big":
        left = int(rest)
        conn.send(f"HTTP/1.1 200 OK\r\nContent-Length: {left}\r\n\r\n")
        while left:
            part = min(left, 65536)
            conn.send(b"x" * part)
            left -= part
    elif command == "status":
        # 204 and 304, and the head of a 200 to HEAD.
        length = "" if rest == "204" else "Content-Length: 7\r\n"
        body = "" if rest in ("204", "304") or head.startswith("HEAD") else "content"
        conn.send(f"HTTP/1.1 {rest} Status\r\n{length}\r\n{body}")
    else:
        conn.ok(json.dumps(entry))
    return True


def main():
    context = None
    if len(sys.argv) > 5:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(sys.argv[5], sys.argv[6])
    port = int(sys.argv[3])
    six = socket.create_server((sys.argv[2], port), family=socket.AF_INET6, backlog=128)
    threading.Thread(target=accept, args=(six, context), daemon=True).start()
    accept(socket.create_server((sys.argv[1], port), backlog=128), context)


def accept(listener, context):
    while True:
        sock, _ = listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=secure, args=(sock, context), daemon=True).start()


def secure(sock, context):
    try:
        sock = context.wrap_socket(sock, server_side=True) if context else sock
    except (OSError, ssl.SSLError):
        return
    serve(Conn(sock))


main()
