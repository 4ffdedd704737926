"""An upstream that takes connections and says nothing. Arguments: IPv4 and IPv6 address, port, and more that it ignores."""
import socket, sys

kept, listener = [], socket.create_server((sys.argv[1], int(sys.argv[3])))
while True:
    kept.append(listener.accept())
