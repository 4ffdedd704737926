"""Outside: prints each IPv6 or IPv4 packet that holds a secret, or comes from a loopback address, until one says END."""

import socket, time

wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
wire.settimeout(10)
print("ready", flush=True)
deadline = time.monotonic() + 20
while time.monotonic() < deadline:
    frame, source = wire.recvfrom(2000)
    if source[2] == socket.PACKET_OUTGOING:
        continue
    if b"END" in frame:
        print("end", flush=True)
        break
    six = frame[12:14] == b"\x86\xdd"
    four = frame[12:14] == b"\x08\x00"
    loopback = (six and frame[22:38] == bytes(15) + b"\1") or (four and frame[26] == 127)
    if loopback or b"SECRET" in frame or b"\xe9SEC" in frame:
        print("leaked", frame.hex(), flush=True)
