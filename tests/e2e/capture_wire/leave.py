"""Managed: tries to get a packet out on the wire in each way that connect() alone does not stop."""

import socket, struct, sys

V4, V6 = sys.argv[1:3]
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
