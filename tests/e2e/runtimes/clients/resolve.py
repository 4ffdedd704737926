"""`resolve.py udp|tcp NAME` prints its addresses, as c-ares finds them."""
import select, sys
import pycares

flags = pycares.ARES_FLAG_USEVC if sys.argv[1] == "tcp" else 0
channel = pycares.Channel(flags=flags, timeout=5, tries=1)
failed = []


def told(found, error):
    if error:
        failed.append(pycares.errno.strerror(error))
    else:
        print(*(one.host for one in found), sep="\n")


for kind in (pycares.QUERY_TYPE_A, pycares.QUERY_TYPE_AAAA):
    channel.query(sys.argv[2], kind, told)
while True:
    readers, writers = channel.getsock()
    if not readers and not writers:
        break
    readable, writable, _ = select.select(readers, writers, [], channel.timeout())
    for one in readable:
        channel.process_fd(one, pycares.ARES_SOCKET_BAD)
    for one in writable:
        channel.process_fd(pycares.ARES_SOCKET_BAD, one)
    if not readable and not writable:
        channel.process_fd(pycares.ARES_SOCKET_BAD, pycares.ARES_SOCKET_BAD)
sys.exit("; ".join(failed) or None)
