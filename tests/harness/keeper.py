"""Starts a command with descriptors as systemd passes them (sd_listen_fds(3)).

Arguments: the descriptors' names, joined by ':', then the command. The descriptors come over standard input."""
import fcntl, os, socket, sys

FIRST, FAR = 3, 1000
names, command = sys.argv[1], sys.argv[2:]
channel = socket.socket(fileno=os.dup(0))
_, passed, _, _ = socket.recv_fds(channel, 1, 253)
channel.close()
# Out of each other's way first.
far = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FAR) for fd in passed]
for fd in passed:
    os.close(fd)
for place, fd in enumerate(far):
    os.dup2(fd, FIRST + place)
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
if far:
    os.environ |= {"LISTEN_FDS": str(len(far)), "LISTEN_FDNAMES": names, "LISTEN_PID": str(os.getpid())}
os.execvp(command[0], command)
