"""Managed: connects to port 7000 of an address, and says what the other end saw and what this end is."""

import socket, sys

one = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
one.settimeout(5)
try:
    one.connect((sys.argv[1], 7000))
    seen = one.recv(100).decode()
    print("seen as", seen, "peer", one.getpeername()[0], "same", seen == "%s %s" % one.getsockname()[:2])
except OSError as error:
    print("errno", error.errno)
