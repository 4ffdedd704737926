"""Outside: takes every connection."""

import socket, sys

listener = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=4096)
print("ready", flush=True)
while True:
    listener.accept()[0].close()
