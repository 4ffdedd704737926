"""Unmanaged: a datagram to this neighbour that says so."""

import socket, sys

to = sys.argv[1]
scope = socket.if_nametoindex("in0") if to.startswith("fe80:") else 0
address = (to, 9, 0, scope) if ":" in to else (to, 9)
family = socket.AF_INET6 if ":" in to else socket.AF_INET
socket.socket(family, socket.SOCK_DGRAM).sendto(b"MARK " + to.encode(), address)
