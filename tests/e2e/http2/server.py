"""An HTTP/2-only upstream. Arguments: IPv4 and IPv6 address, port, log, certificate, key. `peer` in a logged head is
the connection's own port, `reset` in front of a path a stream that the agent took back."""
import json, socket, ssl, sys, threading
import h2.config, h2.connection, h2.errors, h2.events, h2.exceptions
from hyperframe.frame import GoAwayFrame

lock, seen = threading.Lock(), set()


def log(path, headers, peer, body=0, trailers=()):
    head = "\r\n".join([f"peer: {peer}"] + [f"{name}: {value}" for name, value in headers])
    entry = {"path": path, "head": "head\r\n" + head, "body": body, "trailers": "".join(f"{n}: {v}\r\n" for n, v in trailers)}
    with lock, open(sys.argv[4], "a") as file:
        file.write(json.dumps(entry) + "\n")


class Conn:
    def __init__(self, sock):
        self.sock, self.peer = sock, sock.getpeername()[1]
        config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8", validate_inbound_headers=False)
        self.h2 = h2.connection.H2Connection(config)
        self.streams, self.pending, self.last = {}, {}, 2**31

    def run(self):
        self.h2.initiate_connection()
        # What one stream sends must not be in another's way here.
        self.h2.increment_flow_control_window(1 << 24)
        self.sock.sendall(self.h2.data_to_send())
        while data := self.sock.recv(65536):
            for event in self.h2.receive_data(data):
                self.take(event)
            self.pump()
            self.sock.sendall(self.h2.data_to_send())

    def take(self, event):
        if getattr(event, "stream_id", 0) > self.last:
            return
        if isinstance(event, h2.events.RequestReceived):
            self.streams[event.stream_id] = [event.headers, 0, ()]
            path = dict(event.headers)[":path"]
            seen.add(path)
            if path.startswith("/wait"):
                log(path, event.headers, self.peer)
            elif path.startswith(("/hang", "/early")):
                log(path, event.headers, self.peer)
                self.h2.send_headers(event.stream_id, [(":status", "200")])
                self.h2.send_data(event.stream_id, b"part", end_stream=path.startswith("/early"))
        elif isinstance(event, h2.events.DataReceived):
            stream = self.streams[event.stream_id]
            stream[1] += len(event.data)
            seen.add(dict(stream[0])[":path"] + "/data")
            if not dict(stream[0])[":path"].startswith("/slow"):
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.TrailersReceived):
            self.streams[event.stream_id][2] = event.headers
        elif isinstance(event, h2.events.StreamReset):
            headers, body, _ = self.streams.get(event.stream_id, ([(":path", "?")], 0, ()))
            log("reset" + dict(headers)[":path"], headers, self.peer, body)
            self.pending.pop(event.stream_id, None)
        elif isinstance(event, h2.events.StreamEnded):
            self.answer(event.stream_id)

    def answer(self, stream):
        headers, body, trailers = self.streams[stream]
        path = dict(headers)[":path"]
        if path.startswith(("/hang", "/early", "/wait")):
            return
        if path.startswith("/seen"):
            self.h2.send_headers(stream, [(":status", "200" if path[5:] in seen else "404")], end_stream=True)
            return
        log(path, headers, self.peer, body, trailers)
        if path == "/events":
            self.h2.send_headers(stream, [(":status", "200"), ("content-type", "text/event-stream")])
            self.events, path = (stream, 0), "/next"
        elif path == "/next":
            self.h2.send_headers(stream, [(":status", "200")], end_stream=True)
        if path == "/next":
            stream, number = self.events
            event = b"data:%d\n\n" % number
            self.h2.send_data(stream, event if number < 3 else b"", end_stream=number == 3)
            self.events = (stream, number + 1)
            return
        if path == "/goaway":
            # The streams behind this one are not looked at any more.
            self.last = stream
            self.sock.sendall(GoAwayFrame(0, last_stream_id=stream).serialize())
        if path.startswith("/refuse"):
            self.h2.reset_stream(stream, h2.errors.ErrorCodes.REFUSED_STREAM)
            return
        if path.startswith(("/reset", "/cancel")):
            self.h2.send_headers(stream, [(":status", "200")])
            self.h2.send_data(stream, b"part")
            codes = h2.errors.ErrorCodes
            self.h2.reset_stream(stream, codes.CANCEL if path.startswith("/cancel") else codes.INTERNAL_ERROR)
            return
        self.h2.send_headers(stream, [(":status", "200"), ("x-version", "h2")])
        ending = [("x-sum", str(body)), ("set-cookie", "a=b"), ("authorization", "none")]
        body = {"/big": 1 << 20, "/end": 1 << 22}.get(path[:4], body)
        self.pending[stream] = [body, ending if path.startswith("/echo") else None]

    def pump(self):
        for stream in list(self.pending):
            left, trailers = self.pending[stream]
            while left and (window := min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)):
                part = min(window, left)
                self.h2.send_data(stream, b"x" * part)
                left -= part
            self.pending[stream][0] = left
            if left:
                seen.add(dict(self.streams[stream][0])[":path"] + "/full")
            if not left:
                del self.pending[stream]
                if trailers:
                    self.h2.send_headers(stream, trailers, end_stream=True)
                else:
                    self.h2.end_stream(stream)


def serve(sock, context):
    try:
        head = sock.recv(5, socket.MSG_PEEK | socket.MSG_WAITALL)
        hello = sock.recv(5 + int.from_bytes(head[3:], "big"), socket.MSG_PEEK | socket.MSG_WAITALL)
        if b"\x02h2" not in hello:
            # no_application_protocol, which Python's ssl leaves out.
            sock.sendall(bytes([21, 3, 3, 0, 2, 2, 120]))
            sock.close()
            return
        Conn(context.wrap_socket(sock, server_side=True)).run()
    except (OSError, h2.exceptions.ProtocolError):
        pass


def accept(listener, context):
    while True:
        sock, _ = listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=serve, args=(sock, context), daemon=True).start()


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[5], sys.argv[6])
context.set_alpn_protocols(["h2"])
port = int(sys.argv[3])
six = socket.create_server((sys.argv[2], port), family=socket.AF_INET6, backlog=128)
threading.Thread(target=accept, args=(six, context), daemon=True).start()
accept(socket.create_server((sys.argv[1], port), backlog=128), context)
