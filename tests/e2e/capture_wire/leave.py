"""Managed: tries to get a packet out on the wire in each way that connect() alone does not stop."""

import ctypes, socket, struct, sys

V4, V6 = sys.argv[1:3]
LIBC = ctypes.CDLL(None, use_errno=True)
LSRR = bytes([131, 7, 4]) + socket.inet_pton(socket.AF_INET, V4) + b"\0"
RTHDR = bytes([0, 4, 4, 1, 1, 0, 0, 0]) + socket.inet_pton(socket.AF_INET6, V6) * 2


def attempt(name, family, kind, action):
    try:
        one = socket.socket(family, kind)
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


def fast_open(one, to):
    one.sendto(b"early", 0x20000000, (to, 444))


def fast_open_later(one, to):
    one.setsockopt(socket.IPPROTO_TCP, 30, 1)  # TCP_FASTOPEN_CONNECT
    one.connect((to, 444))
    one.send(b"early")


def mapped(one, to):
    one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    if one.type == socket.SOCK_STREAM:
        one.connect(("::ffff:" + V4, 444))
    else:
        one.sendto(b"mapped", ("::ffff:" + V4, 443))


class Piece(ctypes.Structure):
    _fields_ = [("base", ctypes.c_char_p), ("len", ctypes.c_size_t)]


class Message(ctypes.Structure):  # struct mmsghdr
    _fields_ = [("name", ctypes.c_char_p), ("namelen", ctypes.c_uint), ("iov", ctypes.POINTER(Piece)), ("iovlen", ctypes.c_size_t),
                ("control", ctypes.c_void_p), ("controllen", ctypes.c_size_t), ("flags", ctypes.c_int), ("len", ctypes.c_uint)]


def sockaddr(family, to, port):
    packed = socket.inet_pton(family, to)
    if family == socket.AF_INET:
        return struct.pack("=H", family) + struct.pack("!H", port) + packed + bytes(8)
    return struct.pack("=H", family) + struct.pack("!HI", port, 0) + packed + bytes(4)


def many(one, to):
    name = sockaddr(one.family, to, 443)
    piece = Piece(b"many", 4)
    two = (Message * 2)(*[Message(name, len(name), ctypes.pointer(piece), 1) for _ in range(2)])
    if LIBC.sendmmsg(one.fileno(), two, 2, 0) < 0:
        raise OSError(ctypes.get_errno(), "sendmmsg")


def segments(one, to):
    one.setsockopt(socket.IPPROTO_UDP, 103, 4)  # UDP_SEGMENT
    one.sendto(b"segments", (to, 443))


def in_parts(one, to):
    one.sendto(b"first", socket.MSG_MORE, (to, 443))
    one.sendto(b"last", (to, 443))


def let_go(one, to):
    one.connect((to, 53))
    if LIBC.connect(one.fileno(), bytes(16), 16) < 0:  # AF_UNSPEC
        raise OSError(ctypes.get_errno(), "connect")
    one.sendto(b"let go", (to, 443))


def bound(one):
    one.setsockopt(socket.SOL_SOCKET, 62, INDEX)  # SO_BINDTOIFINDEX


def hinted(one):
    level, name = (socket.IPPROTO_IP, 50) if one.family == socket.AF_INET else (socket.IPPROTO_IPV6, 76)
    one.setsockopt(level, name, struct.pack("!I", INDEX))  # IP_UNICAST_IF


def sticky(one):
    if one.family == socket.AF_INET:
        one.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("4s4si", bytes(4), bytes(4), INDEX))
    else:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, bytes(16) + struct.pack("I", INDEX))


def after(prepare):
    def action(one, to):
        prepare(one)
        one.connect((to, 444)) if one.type == socket.SOCK_STREAM else one.sendto(b"led", (to, 443))

    return action


def beside(one, to):
    one.connect(("fe80::1", 444, 0, INDEX)) if one.type == socket.SOCK_STREAM else one.sendto(b"x", ("fe80::1", 443, 0, INDEX))


INDEX = socket.if_nametoindex("in0")
for family in (socket.AF_INET, socket.AF_INET6):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        name = "%s %s" % (family.name, kind.name)
        attempt(name + " device", family, kind, device(443))
        attempt(name + " device, other port", family, kind, device(444))
        attempt(name + " route", family, kind, route)
        attempt(name + " plain", family, kind, lambda one, to: one.connect((to, 444)))
    attempt(name + " device of the packet's own", family, socket.SOCK_DGRAM, own_device)
    attempt(name + " sendto", family, socket.SOCK_DGRAM, lambda one, to: one.sendto(b"x", (to, 443)))
    attempt(name + " fast open", family, socket.SOCK_STREAM, fast_open)
    attempt(name + " raw", family, socket.SOCK_RAW, lambda one, to: one.sendto(b"x", (to, 0)))
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        name = "%s %s" % (family.name, kind.name)
        for prepare in (bound, hinted, sticky):
            attempt(name + " " + prepare.__name__, family, kind, after(prepare))
    for action in (many, segments, in_parts, let_go):
        attempt("%s %s" % (family.name, action.__name__), family, socket.SOCK_DGRAM, action)
    attempt(family.name + " fast open later", family, socket.SOCK_STREAM, fast_open_later)
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    attempt(kind.name + " mapped", socket.AF_INET6, kind, mapped)
    attempt(kind.name + " beside", socket.AF_INET6, kind, beside)
