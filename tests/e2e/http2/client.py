"""HTTP/2 as no well-behaved client speaks it: `client.py HOST CASE...` prints one JSON line for each case.

An answer is {"case", "got"}: "status NNN", "rst CODE" of the stream, "goaway CODE" of the connection, "closed", or
what the case itself counts."""
import json, socket, ssl, struct, sys, time
import h2.config, h2.connection, h2.events, h2.exceptions, h2.settings
import hpack
from hyperframe.frame import ContinuationFrame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame

HOST = sys.argv[1]
CALM = 11


class Client:
    def __init__(self):
        context = ssl.create_default_context()
        context.set_alpn_protocols(["h2"])
        sock = socket.create_connection((HOST, 443), 10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = context.wrap_socket(sock, server_hostname=HOST)
        assert self.sock.selected_alpn_protocol() == "h2"
        # What this side may send is the point: the library must neither check nor mend it.
        config = h2.config.H2Configuration(
            validate_outbound_headers=False, normalize_outbound_headers=False, header_encoding="utf-8"
        )
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.next, self.got, self.bodies, self.trailers, self.ended, self.closed = 1, {}, {}, {}, set(), None
        self.heads, self.texts, self.held = {}, {}, set()
        self.flush()

    def flush(self):
        self.write(self.h2.data_to_send())

    def write(self, data):
        try:
            self.sock.sendall(data)
        except (ConnectionError, ssl.SSLError):
            self.closed = self.closed or "closed"

    def headers(self, path, method="GET", **more):
        pairs = [(":method", method), (":scheme", "https"), (":authority", HOST), (":path", path)]
        return pairs + [(name.replace("_", "-"), value) for name, value in more.items()]

    def open(self, headers, end=True):
        stream, self.next = self.next, self.next + 2
        self.h2.send_headers(stream, headers, end_stream=end)
        self.flush()
        return stream

    def raw(self, *frames):
        self.write(b"".join(frame.serialize() for frame in frames))

    def read(self):
        """Takes what comes; false when nothing more will."""
        try:
            data = self.sock.recv(65536)
        except (ConnectionError, ssl.SSLError):
            data = b""
        if not data:
            self.closed = self.closed or "closed"
            return False
        try:
            events = self.h2.receive_data(data)
        except h2.exceptions.ProtocolError as error:
            self.closed = self.closed or f"broken {error}"
            return False
        for event in events:
            self.take(event)
        self.flush()
        return not self.closed

    def take(self, event):
        stream = getattr(event, "stream_id", 0)
        if isinstance(event, h2.events.ResponseReceived):
            self.heads[stream] = dict(event.headers)
            self.got[stream] = "status " + self.heads[stream][":status"]
        elif isinstance(event, h2.events.DataReceived):
            self.bodies[stream] = self.bodies.get(stream, 0) + len(event.data)
            self.texts[stream] = self.texts.get(stream, b"") + event.data
            if stream not in self.held:
                self.h2.acknowledge_received_data(event.flow_controlled_length, stream)
        elif isinstance(event, h2.events.TrailersReceived):
            self.trailers[stream] = dict(event.headers)
        elif isinstance(event, h2.events.StreamEnded):
            self.ended.add(stream)
        elif isinstance(event, h2.events.StreamReset):
            self.got[stream] = f"{self.got[stream]}, " if stream in self.got else ""
            self.got[stream] += f"rst {int(event.error_code)}"
            self.ended.add(stream)
        elif isinstance(event, h2.events.ConnectionTerminated) and event.error_code:
            self.closed = f"goaway {int(event.error_code)}"

    def until(self, done):
        while not done() and self.read():
            pass
        return self.closed

    def answer(self, stream):
        """How the stream, or the connection, ended."""
        self.until(lambda: stream in self.ended)
        return self.got.get(stream) if stream in self.ended else self.closed

    def seen(self, what):
        """Waits until the upstream has got that far."""
        while self.answer(self.open(self.headers("/seen" + what))) != "status 200":
            pass

    def settled(self):
        """Waits for the agent's settings."""
        self.until(lambda: self.h2.remote_settings.max_concurrent_streams < 2**31)


def one(headers, end=True):
    client = Client()
    return client.answer(client.open(headers, end))


def pseudo(*pairs):
    return lambda: one(list(pairs))


def get(path, **more):
    return lambda: one(Client.headers(None, path, **more))


def block(headers):
    return hpack.Encoder().encode(headers)


def streams():
    """A hundred at once, with bodies both ways and trailers."""
    client, size = Client(), 20000
    client.settled()
    limit = client.h2.remote_settings.max_concurrent_streams
    opened = [client.open(client.headers(f"/echo/{n}", "POST", te="trailers"), end=False) for n in range(100)]
    left = {stream: size for stream in opened}
    while left and not client.closed:
        sent = False
        for stream in list(left):
            part = min(client.h2.local_flow_control_window(stream), 8192, left[stream])
            if part:
                client.h2.send_data(stream, b"u" * part)
                left[stream], sent = left[stream] - part, True
                if not left[stream]:
                    client.h2.send_headers(stream, [("x-up", "1"), ("authorization", "none")], end_stream=True)
                    del left[stream]
        client.flush()
        if not sent:
            client.read()
    client.until(lambda: all(stream in client.ended for stream in opened))
    good = [
        stream
        for stream in opened
        if client.got.get(stream) == "status 200"
        and client.bodies.get(stream) == size
        and client.trailers.get(stream) == {"x-sum": str(size)}
    ]
    return f"{len(good)} of {limit} {client.closed or ''}".strip()


def one_too_many():
    client = Client()
    client.settled()
    opened = [client.open(client.headers("/hang/many")) for _ in range(100)]
    client.until(lambda: all(stream in client.got for stream in opened))
    client.h2.remote_settings[h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS] = 200
    client.h2.remote_settings.acknowledge()
    return client.answer(client.open(client.headers("/one-too-many")))


def coalesced():
    client = Client()
    first = client.answer(client.open(client.headers("/coalesced/own")))
    headers = [(name, value if name != ":authority" else "other.example.test") for name, value in client.headers("/coalesced/other")]
    second = client.answer(client.open(headers))
    third = client.answer(client.open(client.headers("/coalesced/again")))
    return f"{first}, {second}, {third}"


def aborted():
    """Takes the stream back in the middle of both bodies."""
    client = Client()
    stream = client.open(client.headers("/hang/aborted", "POST"), end=False)
    client.h2.send_data(stream, b"half")
    client.flush()
    client.until(lambda: client.bodies.get(stream))
    client.h2.reset_stream(stream, 8)
    client.flush()
    return client.answer(client.open(client.headers("/aborted/after")))


def rapid():
    client = Client()
    client.settled()
    for number in range(400):
        stream = 2 * number + 1
        headers = HeadersFrame(stream, block(client.headers("/rapid")), flags=["END_HEADERS", "END_STREAM"])
        client.raw(headers, RstStreamFrame(stream, error_code=8))
    client.until(lambda: False)
    return client.closed


def resets():
    """Each stream is answered before it is taken back."""
    client, count = Client(), 0
    while not client.closed and count < 40:
        stream = client.open(client.headers("/hang/resets"))
        client.until(lambda: client.bodies.get(stream))
        if not client.closed:
            client.h2.reset_stream(stream, 8)
            client.flush()
            count += 1
    client.until(lambda: False)
    return f"{client.closed} after {count}"


def continuation():
    client = Client()
    client.settled()
    client.raw(HeadersFrame(1, block(client.headers("/continuation")), flags=["END_STREAM"]))
    client.raw(*[ContinuationFrame(1, block([("x", "y" * 100)])) for _ in range(300)])
    client.until(lambda: False)
    return client.closed


def pings():
    client = Client()
    client.settled()
    batch = b"".join(PingFrame(0, opaque_data=bytes(8)).serialize() for _ in range(1000))
    client.sock.settimeout(5)
    for _ in range(40):
        if client.closed:
            break
        client.write(batch)
    client.until(lambda: False)
    return client.closed


def mixed():
    """Allowed and denied calls by turns, all open at once."""
    client = Client()
    client.settled()
    paths = [f"/denied/{n}" if n % 2 else f"/echo/mixed-{n}" for n in range(40)]
    opened = {client.open(client.headers(path, "POST"), end=False): path for path in paths}
    denied = [stream for stream, path in opened.items() if "denied" in path]
    client.until(lambda: all(stream in client.ended for stream in denied))
    # The denied ones are answered while the others are still open.
    early = sorted({client.got[stream].split(",")[0] for stream in client.ended})
    for stream in opened:
        if stream not in denied:
            client.h2.send_data(stream, b"up", end_stream=True)
    client.flush()
    client.until(lambda: all(stream in client.ended for stream in opened))
    late = sorted({client.got[stream] for stream in opened if stream not in denied})
    return f"{early} {late} {client.closed}"


def settings():
    client = Client()
    client.settled()
    batch = b"".join(SettingsFrame(0, settings={4: 65535}).serialize() for _ in range(1000))
    client.sock.settimeout(5)
    for _ in range(40):
        if client.closed:
            break
        client.write(batch)
    client.until(lambda: False)
    return client.closed


def frame(kind, flags, stream, payload):
    """One raw frame on a connection of its own."""

    def case():
        client = Client()
        client.settled()
        client.write(struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload)
        client.until(lambda: False)
        return client.closed

    return case


def bomb():
    """One large field in the table of HPACK, named forty times."""
    client = Client()
    client.settled()
    first = client.answer(client.open(client.headers("/bomb") + [("x-bomb", "y" * 3900)] * 40))
    # What is behind it on the connection is served.
    return f"{first}, {client.answer(client.open(client.headers('/bomb/after')))}"


def take_back(when):
    """Resets a stream: right behind its head, in the middle of its body, waiting for the answer, or in the answer."""

    def case():
        client = Client()
        client.settled()
        path = "/hang/back-answer" if when == "answer" else f"/wait/back-{when}"
        stream = client.open(client.headers(path, "POST"), end=when == "waiting")
        if when == "body":
            client.h2.send_data(stream, b"half")
            client.flush()
            client.seen(path + "/data")
        elif when == "waiting":
            client.seen(path)
        elif when == "answer":
            client.until(lambda: client.bodies.get(stream))
        client.h2.reset_stream(stream, 8)
        client.flush()
        return client.answer(client.open(client.headers(f"/back/after-{when}")))

    return case


def upload(path):
    """Is answered before it has sent its body, and goes on with the connection."""

    def case():
        client = Client()
        stream = client.open(client.headers(path, "POST", content_length="1000000"), end=False)
        client.h2.send_data(stream, b"u" * 1000)
        client.flush()
        client.answer(stream)
        after = client.answer(client.open(client.headers(path + "-after")))
        # In the end nobody waits for the rest any more.
        client.until(lambda: "rst" in client.got[stream])
        return f"{client.got[stream]}; {after}"

    return case


def grpc_denied():
    """The whole answer to a refused gRPC call."""
    client = Client()
    stream = client.open(client.headers("/denied/Call", "POST", content_type="application/grpc", te="trailers"), end=False)
    client.answer(stream)
    fields = client.heads[stream]
    names = [":status", "content-type", "grpc-status"]
    return f"{[fields[name] for name in names]} {client.bodies.get(stream)} {client.trailers.get(stream)} {fields['grpc-message']}"


def events():
    """Each event is sent when the one before it has come."""
    client = Client()
    stream = client.open(client.headers("/events", accept="text/event-stream"))
    for number in range(3):
        client.until(lambda: client.texts.get(stream, b"").count(b"\n\n") > number)
        client.answer(client.open(client.headers("/next")))
    end = client.answer(stream)
    return f"{end} {client.heads[stream]['content-type']} {client.texts[stream].decode().split()}"


def goaway():
    """The upstream goes away at the first of ten requests that are under way."""
    client = Client()
    client.settled()
    client.answer(client.open(client.headers("/goaway-before")))
    opened = []
    for n in range(10):
        opened.append(client.next)
        client.h2.send_headers(client.next, client.headers("/goaway" if n == 0 else f"/behind/{n}"), end_stream=True)
        client.next += 2
    client.flush()
    client.until(lambda: all(stream in client.ended for stream in opened))
    first, others = client.got[opened[0]], {client.got[stream] for stream in opened[1:]}
    return f"{first}, {sorted(others)}, {client.answer(client.open(client.headers('/goaway-after')))}"


def dead():
    """The upstream's connection is dead for all that can be seen; the next call has another one."""
    client = Client()
    client.settled()
    first = client.answer(client.open(client.headers("/wait/dead")))
    return f"{first}, {client.answer(client.open(client.headers('/dead-after')))}"


def stalled():
    """Takes nothing of one answer, and goes on with others all the while."""
    client = Client()
    client.settled()
    stuck = client.open(client.headers("/big/stalled"))
    client.held = {stuck}
    while stuck not in client.ended and not client.closed:
        other = client.answer(client.open(client.headers("/seen/big/stalled")))
        if other != "status 200":
            return other
    return f"{client.got.get(stuck)} {client.closed}"


def small(client, path):
    """A call with a small body both ways."""
    stream = client.open(client.headers(path, "POST"), end=False)
    client.until(lambda: client.h2.local_flow_control_window(stream) >= 100)
    client.h2.send_data(stream, b"u" * 100, end_stream=True)
    client.flush()
    return f"{client.answer(stream)} {client.bodies.get(stream)}"


def beside_readers():
    """Takes no more of fifteen answers than it has to, and has a call beside them."""
    client = Client()
    client.settled()
    client.h2.increment_flow_control_window(1 << 24)
    client.held = {client.open(client.headers(f"/endless/{n}")) for n in range(15)}
    client.until(lambda: all(client.bodies.get(stream) == 65535 for stream in client.held))
    client.seen("/endless/14/full")
    return small(client, "/echo/beside")


def beside_writers():
    """Sends on fifteen streams until nothing more is taken of any, and has a call beside them."""
    client = Client()
    client.settled()
    opened = [client.open(client.headers(f"/slow/{n}", "POST"), end=False) for n in range(15)]
    quiet = False
    while not quiet and not client.closed:
        for stream in opened:
            while part := min(client.h2.local_flow_control_window(stream), 8192):
                client.h2.send_data(stream, b"u" * part)
                client.flush()
        client.sock.settimeout(1)
        try:
            client.read()
        except TimeoutError:
            quiet = True
        client.sock.settimeout(10)
    return small(client, "/echo/beside")


def slow_head():
    """Never comes to the end of a head, byte by byte."""
    client = Client()
    client.settled()
    head = block(client.headers("/slow") + [("x", "y" * 200)])
    data = HeadersFrame(1, head, flags=["END_HEADERS", "END_STREAM"]).serialize()
    client.sock.settimeout(0.1)
    for byte in data[:-1]:
        client.write(bytes([byte]))
        try:
            if not client.read():
                break
        except TimeoutError:
            pass
    return client.closed


def made_resets():
    """Makes the agent reset one served stream after the other (CVE-2025-8671)."""
    client, count = Client(), 0
    client.settled()
    while not client.closed and count < 40:
        stream = client.open(client.headers("/hang/made"))
        client.until(lambda: client.bodies.get(stream))
        # A window beyond all bounds.
        client.write(struct.pack(">I", 4)[1:] + struct.pack(">BBII", 8, 0, stream, 2**31 - 1))
        client.until(lambda: stream in client.ended)
        count += 1
    client.until(lambda: False)
    return f"{client.closed} after {count}"


def patient():
    """Takes three times as much back as one window allows, and waits for the next window in between."""
    client = Client()
    client.settled()
    for _ in range(3):
        for _ in range(9):
            stream = client.open(client.headers("/hang/patient"))
            client.until(lambda: client.bodies.get(stream))
            client.h2.reset_stream(stream, 8)
            client.flush()
        time.sleep(1.1)
    return client.answer(client.open(client.headers("/patient-after")))


def beside():
    """A good connection goes on while another one floods."""
    good = Client()
    good.settled()
    open_stream = good.open(good.headers("/hang/beside"))
    good.until(lambda: good.bodies.get(open_stream))
    flooded = rapid()
    return f"{flooded}, {good.answer(good.open(good.headers('/beside')))}, {good.got[open_stream]}"


def leave():
    """Sends a request and is gone at once."""
    client = Client()
    client.settled()
    client.open(client.headers("/hang/leave"))
    client.sock.close()
    return "gone"


def short_body():
    client = Client()
    stream = client.open(client.headers("/echo/short", "POST", content_length="10"), end=False)
    client.h2.send_data(stream, b"half", end_stream=True)
    client.flush()
    return client.answer(stream)


M, S, A, P = (":method", "GET"), (":scheme", "https"), (":authority", HOST), (":path", "/malformed")
CASES = {
    "streams": streams,
    "one-too-many": one_too_many,
    "coalesced": coalesced,
    "aborted": aborted,
    "server-reset": get("/reset/1"),
    "server-cancels": get("/cancel/1"),
    "rapid": rapid,
    "resets": resets,
    "continuation": continuation,
    "pings": pings,
    "settings": settings,
    "mixed": mixed,
    "bomb": bomb,
    "leave": leave,
    "beside": beside,
    "patient": patient,
    "made-resets": made_resets,
    "extended-connect": pseudo((":method", "CONNECT"), (":protocol", "websocket"), S, A, P),
    "stalled": stalled,
    "beside-readers": beside_readers,
    "beside-writers": beside_writers,
    "slow-head": slow_head,
    "goaway": goaway,
    "dead": dead,
    "refuse": get("/refuse/1"),
    "grpc-denied": grpc_denied,
    "events": events,
    "denied-upload": upload("/denied/upload"),
    "early-upload": upload("/early/upload"),
    "back-head": take_back("head"),
    "back-body": take_back("body"),
    "back-waiting": take_back("waiting"),
    "back-answer": take_back("answer"),
    "stream-0": frame(1, 5, 0, block([("x", "y")])),
    "even-stream": frame(1, 5, 2, block(Client.headers(None, "/even"))),
    "data-0": frame(0, 0, 0, b"data"),
    "data-idle": frame(0, 0, 5, b"data"),
    "reset-idle": frame(3, 0, 5, bytes(4)),
    "window-0": frame(8, 0, 0, struct.pack(">I", 2**31 - 1)),
    "lone-continuation": frame(9, 4, 1, block([("x", "y")])),
    "bad-hpack": frame(1, 5, 1, b"\xff" * 6),
    "long-frame": frame(0, 0, 1, bytes(20000)),
    "push": frame(5, 4, 1, bytes(4) + block([("x", "y")])),
    "large": get("/large", **{f"x{n}": "y" * 8000 for n in range(9)}),
    "huge": get("/huge", **{f"x{n}": "y" * 8000 for n in range(60)}),
    "fields": get("/fields", **{f"x{n}": "y" for n in range(150)}),
    "connect": pseudo((":method", "CONNECT"), A),
    "trace": pseudo((":method", "TRACE"), S, A, P),
    "no-path": pseudo(M, S, A),
    "empty-path": pseudo(M, S, A, (":path", "")),
    "relative-path": pseudo(M, S, A, (":path", "malformed")),
    "star-path": pseudo(M, S, A, (":path", "*")),
    "absolute-path": pseudo(M, S, A, (":path", f"https://{HOST}/absolute")),
    "dotted-path": pseudo(M, S, A, (":path", "/dotted/../path")),
    "encoded-path": pseudo(M, S, A, (":path", "/encoded%2fpath")),
    "double-path": pseudo(M, S, A, (":path", "//double")),
    "fragment": pseudo(M, S, A, (":path", "/fragment#part")),
    "blank": pseudo(M, S, A, (":path", "/bl ank")),
    "no-method": pseudo(S, A, P),
    "two-methods": pseudo(M, M, S, A, P),
    "two-authorities": pseudo(M, S, A, (":authority", "other.example.test"), P),
    "unknown-pseudo": pseudo(M, S, A, P, (":odd", "1")),
    "late-pseudo": pseudo(M, S, ("x", "y"), A, P),
    "status": pseudo(M, S, A, P, (":status", "200")),
    "upper-case": pseudo(M, S, A, P, ("X-Upper", "1")),
    "connection": pseudo(M, S, A, P, ("connection", "close")),
    "transfer-encoding": pseudo(M, S, A, P, ("transfer-encoding", "chunked")),
    "te": pseudo(M, S, A, P, ("te", "gzip")),
    "line-break": pseudo(M, S, A, P, ("x", "a\r\nb: c")),
    "http-scheme": pseudo(M, (":scheme", "http"), A, P),
    "odd-scheme": pseudo(M, (":scheme", "ftp"), A, P),
    "no-authority": pseudo(M, S, P),
    "host-alone": pseudo(M, S, (":path", "/host-alone"), ("host", HOST)),
    "host-differs": pseudo(M, S, A, (":path", "/host-differs"), ("host", "other.example.test")),
    "user": pseudo(M, S, (":authority", "me@" + HOST), (":path", "/user")),
    "short-body": short_body,
}

for case in sys.argv[2:]:
    try:
        got = CASES[case]()
    except (OSError, h2.exceptions.H2Error) as error:
        got = repr(error)
    print(json.dumps({"case": case, "got": got}), flush=True)
