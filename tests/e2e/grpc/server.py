"""A gRPC server. Arguments: IPv4 and IPv6 address, port, log, certificate, key."""
import concurrent.futures, json, sys, threading
import grpc

lock = threading.Lock()


def log(context, method, body):
    head = "\r\n".join(f"{name}: {value}" for name, value in context.invocation_metadata())
    with lock, open(sys.argv[4], "a") as file:
        file.write(json.dumps({"path": method, "head": "head\r\n" + head, "body": body, "trailers": ""}) + "\n")


def unary(request, context):
    log(context, "/test.Echo/Unary", len(request))
    context.set_trailing_metadata([("x-end", "unary")])
    return request


def collect(requests, context):
    return b"".join(requests)


def split(request, context):
    for byte in request:
        yield bytes([byte])


def both(requests, context):
    for request in requests:
        yield request
    context.set_trailing_metadata([("x-end", "both")])


def fail(request, context):
    context.abort(grpc.StatusCode.NOT_FOUND, "there is no such thing")


def hang(request, context):
    log(context, "/test.Echo/Hang", len(request))
    ended = threading.Event()

    def end():
        log(context, "/test.Echo/Hang/ended", 0)
        ended.set()

    # Before the first message: the client may cancel as soon as it has it, and nothing comes back here then.
    context.add_callback(end)
    yield b"begun"
    ended.wait(20)


handlers = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Collect": grpc.stream_unary_rpc_method_handler(collect),
    "Split": grpc.unary_stream_rpc_method_handler(split),
    "Both": grpc.stream_stream_rpc_method_handler(both),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "Hang": grpc.unary_stream_rpc_method_handler(hang),
}
server = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
with open(sys.argv[5], "rb") as certificate, open(sys.argv[6], "rb") as key:
    credentials = grpc.ssl_server_credentials([(key.read(), certificate.read())])
for address in (sys.argv[1], f"[{sys.argv[2]}]"):
    assert server.add_secure_port(f"{address}:{sys.argv[3]}", credentials)
server.start()
server.wait_for_termination()
