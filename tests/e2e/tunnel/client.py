"""A client that trusts the upstream's own authority alone: `client.py CA HOST`. Reads lines from standard input; each
is a path to ask for on the one connection, and the answer's status is printed; what /big answers is left unread. An
end of the connection prints "closed"."""
import socket, ssl, sys

context = ssl.create_default_context(cafile=sys.argv[1])
sock = socket.create_connection((sys.argv[2], 443), 10)
try:
    sock = context.wrap_socket(sock, server_hostname=sys.argv[2])
    print("open", flush=True)
    sock.settimeout(30)
    for line in sys.stdin:
        path = line.strip()
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {sys.argv[2]}\r\n\r\n".encode())
        if path.startswith("/big"):
            continue
        answer = sock.recv(65536)
        print(answer.split()[1].decode() if answer else "closed", flush=True)
except OSError:
    print("closed", flush=True)
