"""Managed: tries to get a packet out on the wire in each way that connect() alone does not stop."""

import ctypes, socket, struct, sys

V4, V6, LINK = sys.argv[1:4]
LSRR = bytes([131, 7, 4]) + socket.inet_pton(socket.AF_INET, V4) + b"\0"
RTHDR = bytes([0, 4, 4, 1, 1, 0, 0, 0]) + socket.inet_pton(socket.AF_INET6, V6) * 2
# For experiments (RFC 3692): there is no raw socket without one.
PROTOCOL = 253


def attempt(name, family, kind, action, protocol=0):
    try:
        one = socket.socket(family, kind, protocol)
        one.settimeout(0.3)
        action(one, V6 if family == socket.AF_INET6 else V4)
        print(name, "done")
    except OSError as error:
        print(name, error.errno)


def device(port):
    def action(one, to):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"in0\0")
        one.connect((to, port))

    return action


def route(one, to):
    if one.family == socket.AF_INET:
        one.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, LSRR)
    else:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RTHDR, RTHDR)
    one.connect((to, 443)) if one.type == socket.SOCK_STREAM else one.sendto(b"routed", (to, 53))


def own_device(one, to):
    index = socket.if_nametoindex("in0")
    if one.family == socket.AF_INET:
        ancillary = (socket.IPPROTO_IP, 8, struct.pack("iII", index, 0, 0))
    else:
        ancillary = (socket.IPPROTO_IPV6, 50, bytes(16) + struct.pack("I", index))
    for port in (53, 443):
        try:
            one.sendmsg([b"by device"], [ancillary], 0, (to, port))
        except OSError:
            pass


def chosen_device(port):
    """SO_BINDTOIFINDEX: by its number, which needs no right."""

    def action(one, to):
        one.setsockopt(socket.SOL_SOCKET, 62, socket.if_nametoindex("in0"))
        one.connect((to, port))
        one.send(b"chosen")

    return action


def preferred_device(one, to):
    """IP_UNICAST_IF, IPV6_UNICAST_IF: where no route says better."""
    index = socket.htonl(socket.if_nametoindex("in0"))
    level, option = (socket.IPPROTO_IP, 50) if one.family == socket.AF_INET else (socket.IPPROTO_IPV6, 76)
    one.setsockopt(level, option, index)
    for port in (53, 443):
        one.connect((to, port))
        one.send(b"preferred")


def sticky_device(one, to):
    """IPV6_PKTINFO, for all packets of the socket."""
    one.setsockopt(socket.IPPROTO_IPV6, 50, bytes(16) + struct.pack("I", socket.if_nametoindex("in0")))
    for port in (53, 443):
        one.connect((to, port))
        one.send(b"sticky")


def link_local(one, to):
    for port in (53, 443):
        one.connect((LINK, port, 0, socket.if_nametoindex("in0")))
        one.send(b"link")


def all_of(*actions):
    """The first error is told once all were tried."""

    def action(one, to):
        failed = None
        for each in actions:
            try:
                each(one, to)
            except OSError as error:
                failed = failed or error
        if failed:
            raise failed

    return action


def mapped(one, to):
    to = "::ffff:" + V4
    all_of(
        lambda one, to: one.sendto(b"mapped", (to, 443)),
        lambda one, to: one.sendmsg([b"mapped"], [], 0, (to, 443)),
        lambda one, to: one.connect((to, 443)),
        lambda one, to: one.send(b"mapped"),
    )(one, to)


def many(one, to):
    """sendmmsg(2): two messages in one call."""

    class Piece(ctypes.Structure):
        _fields_ = [("base", ctypes.c_char_p), ("length", ctypes.c_size_t)]

    class Message(ctypes.Structure):
        _fields_ = [
            ("name", ctypes.c_char_p),
            ("name_length", ctypes.c_uint),
            ("pieces", ctypes.POINTER(Piece)),
            ("count", ctypes.c_size_t),
            ("control", ctypes.c_void_p),
            ("control_length", ctypes.c_size_t),
            ("flags", ctypes.c_int),
            ("sent", ctypes.c_uint),
        ]

    address = struct.pack("=H", one.family) + struct.pack(">H", 443)
    if one.family == socket.AF_INET:
        address += socket.inet_pton(one.family, to) + bytes(8)
    else:
        address += bytes(4) + socket.inet_pton(one.family, to) + bytes(4)
    piece = Piece(b"many", 4)
    one_message = (address, len(address), ctypes.pointer(piece), 1, None, 0, 0, 0)
    messages = (Message * 2)(Message(*one_message), Message(*one_message))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.sendmmsg(one.fileno(), messages, 2, 0) < 0:
        raise OSError(ctypes.get_errno(), "sendmmsg")


def segmented(one, to):
    """UDP_SEGMENT: the kernel makes several packets of what is sent at once."""
    one.sendmsg([b"x" * 3000], [(socket.IPPROTO_UDP, 103, struct.pack("=H", 1000))], 0, (to, 443))


def corked(one, to):
    one.sendto(b"more", socket.MSG_MORE, (to, 443))
    one.sendto(b"and out", (to, 443))


def corked_elsewhere(one, to):
    """What was begun for one address is ended for another."""
    one.connect((to, 53))
    one.send(b"more", socket.MSG_MORE)
    one.sendto(b"and out", (to, 443))


def dissolved(one, to):
    """Connected to where it may be, and by AF_UNSPEC to nobody, then sends to where it may not be."""
    one.connect((to, 53))
    nobody = bytes(16)
    ctypes.CDLL(None).connect(one.fileno(), nobody, len(nobody))
    all_of(
        lambda one, to: one.sendto(b"dissolved", (to, 443)),
        lambda one, to: one.connect((to, 443)),
        lambda one, to: one.send(b"dissolved"),
    )(one, to)


def fast_open(one, to):
    one.sendto(b"early", 0x20000000, (to, 444))


for family in (socket.AF_INET, socket.AF_INET6):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        name = "%s %s" % (family.name, kind.name)
        attempt(name + " device", family, kind, device(443))
        attempt(name + " device, other port", family, kind, device(444))
        attempt(name + " chosen device", family, kind, chosen_device(443))
        attempt(name + " chosen device, other port", family, kind, chosen_device(444))
        attempt(name + " preferred device", family, kind, preferred_device)
        attempt(name + " route", family, kind, route)
        attempt(name + " plain", family, kind, lambda one, to: one.connect((to, 444)))
    attempt(name + " device of the packet's own", family, socket.SOCK_DGRAM, own_device)
    attempt(name + " sendto", family, socket.SOCK_DGRAM, lambda one, to: one.sendto(b"x", (to, 443)))
    attempt(name + " fast open", family, socket.SOCK_STREAM, fast_open)
    attempt(name + " raw", family, socket.SOCK_RAW, lambda one, to: one.sendto(b"by raw", (to, 0)), PROTOCOL)
    for way in (many, segmented, corked, corked_elsewhere, dissolved):
        attempt(family.name + " datagrams " + way.__name__, family, socket.SOCK_DGRAM, way)
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    attempt("AF_INET6 %s sticky device" % kind.name, socket.AF_INET6, kind, sticky_device)
    attempt("AF_INET6 %s link-local" % kind.name, socket.AF_INET6, kind, link_local)
attempt("AF_INET6 datagrams mapped", socket.AF_INET6, socket.SOCK_DGRAM, mapped)
