"""Has a connection and a connected datagram socket to port 7777 of each address, and goes on with them once a file says that
somebody is enrolled; says what came of each."""

import os, socket, sys, time

who, enrolled, sockets = sys.argv[1], sys.argv[2], {}
for family, address in ((socket.AF_INET, sys.argv[3]), (socket.AF_INET6, sys.argv[4])):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        one = sockets[f"{kind.name} {family.name}"] = socket.socket(family, kind)
        one.connect((address, 7777))


def send(when):
    for name, one in sockets.items():
        try:
            one.send(f"{who} {when} by {name}\n".encode())
            print(when, name, "taken", flush=True)
        except OSError as error:
            print(when, name, os.strerror(error.errno), flush=True)


send("before")
while not os.path.exists(enrolled):
    time.sleep(0.05)
for _ in range(20):
    send("after")
    time.sleep(0.05)
print("all sent", flush=True)
time.sleep(1000)
