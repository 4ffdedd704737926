"""Outside: tells whoever connects to port 7000 of these addresses where it comes from, and hangs up."""

import select, socket, sys

log, listening = open(sys.argv[1], "a", buffering=1), []
for address in sys.argv[2:]:
    one = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind((address, 7000))
    one.listen()
    listening.append(one)
log.write("ready\n")
while True:
    for ready in select.select(listening, [], [])[0]:
        connection, peer = ready.accept()
        line = "%s %s" % peer[:2]
        log.write("accepted %s\n" % line)
        connection.sendall(line.encode())
        connection.close()
