"""Managed: takes the handed sockets, tries until none leads out any more, then tries everything else on them."""

import array, socket, struct, sys, time

path, v4, v6 = sys.argv[1:4]
COUNT = 8

# Its own listener, and a connection that came in on it: those stay.
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("", 8080))
listener.listen()
own, _ = listener.accept()

lender = socket.socket(socket.AF_UNIX)
lender.connect(path)
_, messages, _, _ = lender.recvmsg(1, socket.CMSG_SPACE(4 * COUNT))
fds = array.array("i", messages[0][2])
assert len(fds) == COUNT, fds
handed = [socket.socket(fileno=fd) for fd in fds]


def target(one):
    return (v6 if one.family == socket.AF_INET6 else v4, 7777)


def attempt(action):
    try:
        action()
        return True
    except OSError:
        return False


def is_cut(one):
    return one.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0") == b"lo"


for one in handed:
    one.settimeout(0.3)
deadline = time.monotonic() + 10
while not all(is_cut(one) for one in handed):
    if time.monotonic() > deadline:
        sys.exit("not cut off: %s" % [one for one in handed if not is_cut(one)])
    time.sleep(0.02)

led_out = []
for one in handed:
    to, name = target(one), "%s %s" % (one.family.name, one.type.name)
    late = lambda how: ("LATE %s %s\n" % (name, how)).encode()
    attempt(lambda: one.send(late("send")))
    attempt(lambda: one.sendto(late("sendto"), to))
    index = socket.if_nametoindex("in0")
    if one.family == socket.AF_INET:
        ancillary = (socket.IPPROTO_IP, 8, struct.pack("iII", index, 0, 0))
    else:
        ancillary = (socket.IPPROTO_IPV6, 50, bytes(16) + struct.pack("I", index))
    attempt(lambda: one.sendmsg([late("device of the packet's own")], [ancillary], 0, to))
    if attempt(lambda: one.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"in0\0")):
        led_out.append(name + " freed itself")
    if attempt(lambda: one.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"\0")):
        led_out.append(name + " freed itself")
    if one.type == socket.SOCK_STREAM and attempt(lambda: one.connect(to)):
        led_out.append(name + " connected")
    attempt(lambda: one.send(late("after connect")))

own.settimeout(5)
own.sendall(b"asked\n")
print("led out: %s; own: %s" % (led_out, own.recv(100).decode().strip()))
