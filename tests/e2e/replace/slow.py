"""One connection, held at three points: each line on standard input lets it go on. Prints a line at each point.

Arguments: host, and how far to go before the first stop: "tcp", "tls" or "request"."""
import http.client, socket, ssl, sys

host, point = sys.argv[1], sys.argv[2]


def stop(here):
    if here == point:
        print(here, flush=True)
        sys.stdin.readline()


def ask(path):
    connection.request("GET", path)
    answer = connection.getresponse()
    answer.read()
    print(answer.status, answer.getheader("connection"), flush=True)


connection = http.client.HTTPSConnection(host, timeout=15)
sock = socket.create_connection((host, 443), 15)
stop("tcp")
connection.sock = ssl.create_default_context().wrap_socket(sock, server_hostname=host)
stop("tls")
if point == "request":
    ask(f"/held/{point}/first")
    stop("request")
ask(f"/held/{point}")
