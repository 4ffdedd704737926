"""What the raw clients of the HTTP tests begin with."""
import json, socket, ssl, sys

HOST = "raw.example.test"


def connect(host=HOST, tls=True, sni=None):
    sock = socket.create_connection((host, 443 if tls else 80), 10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return ssl.create_default_context().wrap_socket(sock, server_hostname=sni or host) if tls else sock


def rest(sock):
    """All until the end; a reset shows."""
    out = b""
    try:
        while data := sock.recv(65536):
            out += data
    except OSError as error:
        out += f"<{type(error).__name__}>".encode()
    return out.decode("latin-1")


def exchange(request, **how):
    """Sends these bytes on a connection of their own and gives all that comes back."""
    sock = connect(**how)
    try:
        sock.sendall(request if isinstance(request, bytes) else request.encode("latin-1"))
    except OSError:
        pass
    return rest(sock)


def get(path, *fields, method="GET", body="", host=HOST):
    fields = "".join(f"{field}\r\n" for field in fields)
    return f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{fields}\r\n{body}"


def status(answer):
    if not answer.startswith("HTTP/1.1 "):
        raise ValueError(f"no answer: {answer[:200]!r}")
    return int(answer.split(" ")[1])


def leave(sock):
    """Says that nothing more comes, reads on to the end of what does, and closes."""
    try:
        sock.unwrap().close()
    except OSError:
        sock.close()


def chunk(data):
    return f"{len(data):x}\r\n{data}\r\n"


