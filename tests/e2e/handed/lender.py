"""Unmanaged: makes sockets of each kind and hands all of them to whoever connects to the Unix socket."""

import array, socket, sys

path, v4, v6 = sys.argv[1:4]
made = [
    socket.create_connection((v4, 7777)),
    socket.create_connection((v6, 7777)),
    socket.socket(socket.AF_INET, socket.SOCK_STREAM),
    socket.socket(socket.AF_INET6, socket.SOCK_STREAM),
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    socket.socket(socket.AF_INET6, socket.SOCK_DGRAM),
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    socket.socket(socket.AF_INET, socket.SOCK_RAW, 200),
]
# From a port that the policy opens, for TCP.
made[6].bind(("", 8080))
made[6].connect((v4, 7777))
server = socket.socket(socket.AF_UNIX)
server.bind(path)
server.listen()
print("ready", flush=True)
client, _ = server.accept()
fds = array.array("i", [one.fileno() for one in made])
client.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
# The lender lets go: what holds the sockets from now on is the managed process alone.
for one in made:
    one.close()
client.recv(1)
