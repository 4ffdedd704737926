"""Holds connections open, for measuring what they cost the proxy.

    clients.py idle N URL CA      N connections, each has had one answer
    clients.py stalled N URL CA   N connections, each has asked and reads nothing

Says "ready" and how many there are, then waits for the end of its standard input, five minutes at most."""
import selectors, socket, ssl, sys, urllib.parse

kind, count, url, ca = sys.argv[1], int(sys.argv[2]), urllib.parse.urlsplit(sys.argv[3]), sys.argv[4]
headers = "".join(f"{line}\r\n" for line in sys.argv[5:])
context = ssl.create_default_context(cafile=ca)
address = (socket.gethostbyname(url.hostname), url.port or 443)
kept = []
for _ in range(count):
    tcp = socket.create_connection(address, 5)
    if kind == "stalled":
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    tls = context.wrap_socket(tcp, server_hostname=url.hostname)
    tls.sendall(f"GET {url.path} HTTP/1.1\r\nHost: {url.netloc}\r\n{headers}\r\n".encode())
    if kind == "idle":
        head, _, body = tls.recv(65536).partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            sys.exit(f"no answer: {head[:60]!r}")
    kept.append(tls)
print("ready", len(kept), flush=True)
waiting = selectors.DefaultSelector()
waiting.register(sys.stdin, selectors.EVENT_READ)
waiting.select(300)
