"""An ordinary gRPC client: `client.py HOST CASE...` prints one JSON line {"case", "got"} for each case, all on one channel."""
import json, queue, sys
import grpc

channel = grpc.secure_channel(f"{sys.argv[1]}:443", grpc.ssl_channel_credentials())
TIME = 10


def told(error):
    return f"{error.code().name}: {error.details()}"


def unary(method="/test.Echo/Unary", on=channel, **metadata):
    call = on.unary_unary(method)
    answer, call = call.with_call(b"hello", timeout=TIME, metadata=list(metadata.items()))
    return f"{answer.decode()} {call.code().name} {dict(call.trailing_metadata())}"


def large():
    """More than a flow-control window, both ways."""
    size = 3 << 20
    answer = channel.unary_unary("/test.Echo/Unary")(b"x" * size, timeout=TIME)
    return str(len(answer) == size)


def both():
    """Each message is sent when the answer to the one before it has come."""
    requests, got = queue.Queue(), []
    answers = channel.stream_stream("/test.Echo/Both")(iter(requests.get, None), timeout=TIME)
    for number in range(5):
        requests.put(b"%d" % number)
        got.append(next(answers).decode())
    requests.put(None)
    rest = list(answers)
    return f"{''.join(got)} {rest} {answers.code().name} {dict(answers.trailing_metadata())}"


def deadline():
    answers = channel.unary_stream("/test.Echo/Hang")(b"", timeout=2)
    return f"{next(answers).decode()} {list(answers)}"


def cancel():
    answers = channel.unary_stream("/test.Echo/Hang")(b"", timeout=TIME)
    first = next(answers).decode()
    answers.cancel()
    return f"{first} {list(answers)}"


def host(name):
    def case():
        with grpc.secure_channel(f"{name}:443", grpc.ssl_channel_credentials()) as other:
            return unary(on=other)

    return case


CASES = {
    "unary": unary,
    "large": large,
    "collect": lambda: channel.stream_unary("/test.Echo/Collect")(iter([b"a", b"b"]), timeout=TIME).decode(),
    "split": lambda: str(list(channel.unary_stream("/test.Echo/Split")(b"abc", timeout=TIME))),
    "both": both,
    "fail": lambda: unary("/test.Echo/Fail"),
    "unknown": lambda: unary("/test.Echo/Unknown"),
    "own-key": lambda: unary(authorization="Bearer mine"),
    "denied": lambda: unary("/denied.Echo/Unary"),
    "denied-stream": lambda: str(list(channel.stream_stream("/denied.Echo/Both")(iter([b"a"]), timeout=TIME))),
    "no-rule": host("other.example.test"),
    "down": host("down.example.test"),
    "deadline": deadline,
    "cancel": cancel,
}

for case in sys.argv[2:]:
    try:
        got = CASES[case]()
    except grpc.RpcError as error:
        got = told(error)
    print(json.dumps({"case": case, "got": got}), flush=True)
