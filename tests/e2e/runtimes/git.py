"""git's own HTTP backend behind TLS, as in cgi(5). Arguments: IPv4 and IPv6 address, port, log, certificate, key; the repositories are
beside the log. Without the token it answers 401."""
import http.server, json, os, socket, ssl, subprocess, sys, threading

TOKEN = "Bearer the-runtimes-token"
ROOT = os.path.join(os.path.dirname(sys.argv[4]), "repositories")
lock = threading.Lock()
subprocess.run(["git", "init", "-q", "--bare", "-b", "main", f"{ROOT}/large.git"], check=True)
subprocess.run(["git", "-C", f"{ROOT}/large.git", "config", "http.receivepack", "true"], check=True)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def body(self, out):
        total = 0
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                out.write(self.rfile.read(size))
                self.rfile.readline()
                total += size
            self.rfile.readline()
            return total
        left = int(self.headers.get("content-length", 0))
        while left:
            piece = self.rfile.read(min(left, 65536))
            out.write(piece)
            left, total = left - len(piece), total + len(piece)
        return total

    def answer(self):
        path, _, query = self.path.partition("?")
        head = "\r\n".join([self.requestline, *(f"{name}: {value}" for name, value in self.headers.items())])
        if self.headers.get("authorization") != TOKEN:
            self.send_response(401)
            self.send_header("Content-Length", "0")
            self.send_header("WWW-Authenticate", "Basic")
            self.end_headers()
            self.close_connection = True
            return
        environment = os.environ | {
            "GIT_PROJECT_ROOT": ROOT, "GIT_HTTP_EXPORT_ALL": "1", "REMOTE_USER": "runtimes", "REQUEST_METHOD": self.command,
            "PATH_INFO": path, "QUERY_STRING": query, "CONTENT_TYPE": self.headers.get("content-type", ""),
            "GIT_PROTOCOL": self.headers.get("git-protocol", ""), "HTTP_CONTENT_ENCODING": self.headers.get("content-encoding", ""),
        }
        backend = subprocess.Popen(["git", "http-backend"], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        size = self.body(backend.stdin)
        backend.stdin.close()
        with lock, open(sys.argv[4], "a") as file:
            file.write(json.dumps({"path": path, "head": head, "body": size, "trailers": ""}) + "\n")
        fields = {}
        while line := backend.stdout.readline().strip().decode():
            name, _, value = line.partition(": ")
            fields[name] = value
        self.send_response(int(fields.pop("Status", "200").split()[0]))
        for name, value in fields.items():
            self.send_header(name, value)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while piece := backend.stdout.read1(65536):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")
        backend.wait()

    do_GET = do_POST = answer


class Server(http.server.ThreadingHTTPServer):
    def server_bind(self):
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        super().server_bind()


class Server6(Server):
    address_family = socket.AF_INET6


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[5], sys.argv[6])
servers = []
for kind, address in ((Server6, sys.argv[2]), (Server, sys.argv[1])):
    server = kind((address, int(sys.argv[3])), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    servers.append(server)
threading.Thread(target=servers[0].serve_forever, daemon=True).start()
servers[1].serve_forever()
