"""Not managed, and root: tries over and over to have the ports of others, until standard input ends.

Arguments: the ports, each as `tcp 127.0.0.1:4001` or `udp [::1]:4002`. Prints a JSON line on what comes of ports that are free,
which it must get in every way, and of one of its own that is not; and at the end one on those of the others."""
import collections, errno, itertools, json, socket, sys, threading, time

WAYS = {
    socket.AF_INET: [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::ffff:127.0.0.1")],
    socket.AF_INET6: [(socket.AF_INET6, "::1")],
}
OPTIONS = [(), (socket.SO_REUSEADDR,), (socket.SO_REUSEPORT,), (socket.SO_REUSEADDR, socket.SO_REUSEPORT)]
SHARED, OWN = 0, 1


def attempts(family):
    """Who has a port at one family's loopback is also in the way of the wildcard address of both."""
    ways = [(*way, SHARED) for way in WAYS[family]] + [(socket.AF_INET6, "::", SHARED)]
    if family == socket.AF_INET6:
        ways.append((socket.AF_INET6, "::", OWN))
    return list(itertools.product(ways, OPTIONS))


def take(kind, port, way, options):
    """The socket, or why there is none."""
    family, address, only = way
    one = socket.socket(family, kind)
    try:
        for option in options:
            one.setsockopt(socket.SOL_SOCKET, option, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        one.bind((address, port))
        if kind == socket.SOCK_STREAM:
            one.listen()
        return one
    except OSError as error:
        one.close()
        return errno.errorcode[error.errno]


def outcomes(kind, family, port):
    came = collections.Counter()
    for way, options in attempts(family):
        one = take(kind, port, way, options)
        if isinstance(one, str):
            came[one] += 1
        else:
            came["taken"] += 1
            one.close()
    return came


def parsed(text):
    kind, at = text.split()
    host, port = at.rsplit(":", 1)
    family = socket.AF_INET6 if "[" in host else socket.AF_INET
    return socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM, family, int(port)


theirs = [parsed(text) for text in sys.argv[1:]]
free, held = collections.Counter(), collections.Counter()
for kind, family, _ in theirs:
    own = take(kind, 0, (*WAYS[family][0], SHARED), ())
    port = own.getsockname()[1]
    held += outcomes(kind, family, port)
    own.close()
    free += outcomes(kind, family, port)
print(json.dumps({"free": free, "held": held}), flush=True)

stop, came, rounds = threading.Event(), collections.Counter(), 0
threading.Thread(target=lambda: (sys.stdin.read(), stop.set())).start()
while not stop.wait(0.002):
    rounds += 1
    for port in theirs:
        came += outcomes(*port)
print(json.dumps({"rounds": rounds, "came": came}), flush=True)
