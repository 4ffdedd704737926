"""Managed: a client that prefers QUIC as browsers do: an Initial packet to UDP 443 first, TCP when that fails."""

import os, socket, sys, urllib.request

host = sys.argv[1]
# RFC 9000 section 17.2.2: long header, version 1, connection ids of 8 and 0 bytes, padded to 1,200 bytes.
initial = bytes([0xC3, 0, 0, 0, 1, 8]) + os.urandom(8) + bytes([0, 0, 0x44, 0x9E]) + os.urandom(1182)
for family, _, _, _, address in socket.getaddrinfo(host, 443, type=socket.SOCK_DGRAM):
    udp = socket.socket(family, socket.SOCK_DGRAM)
    udp.settimeout(3)
    try:
        udp.connect(address)
        udp.send(initial)
        udp.recv(1500)
        sys.exit("QUIC was answered")
    except TimeoutError:
        sys.exit("QUIC was swallowed: the client waits for nothing")
    except OSError as error:
        print("quic", error.errno)
with urllib.request.urlopen("https://%s/fallback" % host) as answer:
    print("tcp", answer.status)
