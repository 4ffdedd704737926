"""Outside: logs each IP packet that comes in over the wire, but for what neighbours say to each other (ICMPv6, IGMP)."""

import socket, sys

log = open(sys.argv[1], "a", buffering=1)
wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0003))
log.write("ready\n")
while True:
    packet, (device, kind, direction, *_) = wire.recvfrom(65535)
    if direction == socket.PACKET_OUTGOING or device != "out0":
        continue
    if kind == 0x0800 and packet[9] != 2:
        log.write("%s %s\n" % (socket.inet_ntop(socket.AF_INET, packet[16:20]), packet.hex()))
    elif kind == 0x86DD and packet[6] != 58 and packet[24] != 0xFF:
        log.write("%s %s\n" % (socket.inet_ntop(socket.AF_INET6, packet[24:40]), packet.hex()))
