"""Outside: takes TCP and UDP on port 7777 of both addresses and logs every line that arrives; calls the port that
the managed process opens, and says "still here" on that connection whenever a line asks for it."""

import select, socket, sys, time

log, v4, v6, opened = open(sys.argv[1], "ab", 0), sys.argv[2], sys.argv[3], sys.argv[4]
listening, sockets = [], []
for family, address in ((socket.AF_INET, v4), (socket.AF_INET6, v6)):
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, 7777))
    listener.listen()
    listening.append(listener)
    udp = socket.socket(family, socket.SOCK_DGRAM)
    udp.bind((address, 7777))
    sockets.append(udp)
log.write(b"ready\n")
inbound, deadline = None, time.monotonic() + 60
while time.monotonic() < deadline:
    if inbound is None:
        try:
            inbound = socket.create_connection((opened, 8080), timeout=0.2)
            sockets.append(inbound)
        except OSError:
            inbound = None
    for ready in select.select(listening + sockets, [], [], 0.1)[0]:
        if ready in listening:
            sockets.append(ready.accept()[0])
            continue
        try:
            data = ready.recv(4096)
        except OSError:
            data = b""
        if not data and ready.type == socket.SOCK_STREAM:
            sockets.remove(ready)
        elif ready is inbound:
            ready.sendall(b"answered " + data)
        else:
            log.write(data)
