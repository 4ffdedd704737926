"""A name server that logs each question. Arguments: IPv4 and IPv6 address, a port to show on that it is up, log. It knows
api.example.test alone, with HTTPS and SVCB records that have a key for encrypted server names."""
import json, socket, socketserver, struct, sys, threading

KNOWN = b"\3api\7example\4test\0"
A, AAAA, SVCB, HTTPS = 1, 28, 64, 65
KEYED = struct.pack(">HBHH", 1, 0, 5, 4) + b"none"
DATA = {
    A: socket.inet_pton(socket.AF_INET, "203.0.113.10"),
    AAAA: socket.inet_pton(socket.AF_INET6, "2001:db8:113::a"),
    SVCB: KEYED,
    HTTPS: KEYED,
}
lock = threading.Lock()


def answer(message):
    end = message.index(0, 12) + 1
    name, (kind, _) = message[12:end], struct.unpack(">HH", message[end : end + 4])
    labels, at = [], 0
    while name[at]:
        labels.append(name[at + 1 : at + 1 + name[at]].decode("latin-1"))
        at += 1 + name[at]
    with lock, open(sys.argv[4], "a") as file:
        file.write(json.dumps({"path": ".".join(labels), "head": str(kind), "body": 0, "trailers": ""}) + "\n")
    known = name.lower() == KNOWN
    data = DATA.get(kind) if known else None
    head = message[:2] + struct.pack(">HHHHH", 0x8180 | (0 if known else 3), 1, 1 if data else 0, 0, 0)
    record = struct.pack(">HHHIH", 0xC00C, kind, 1, 60, len(data)) + data if data else b""
    return head + message[12 : end + 4] + record


class Datagram(socketserver.BaseRequestHandler):
    def handle(self):
        message, sock = self.request
        sock.sendto(answer(message), self.client_address)


class Stream(socketserver.StreamRequestHandler):
    def handle(self):
        while len(length := self.rfile.read(2)) == 2:
            told = answer(self.rfile.read(struct.unpack(">H", length)[0]))
            self.wfile.write(struct.pack(">H", len(told)) + told)


for family, address in ((socket.AF_INET, sys.argv[1]), (socket.AF_INET6, sys.argv[2])):
    for kind, handler in ((socketserver.ThreadingUDPServer, Datagram), (socketserver.ThreadingTCPServer, Stream)):
        made = type("Server", (kind,), {"address_family": family, "daemon_threads": True})
        threading.Thread(target=made((address, 53), handler).serve_forever, daemon=True).start()
up = socket.create_server((sys.argv[1], int(sys.argv[3])))
while True:
    up.accept()[0].close()
