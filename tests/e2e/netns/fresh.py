"""In one fresh network namespace after another: how long after it was entered a connect() succeeds, in ms, and how many failed.

Arguments: whether the loopback device is `up` from the start, or `late`, after 200 ms of refused calls (then the time is from
when it is up), or `flood`: don't wait, one after another until killed. How many, and the address and port to dial. One JSON list of
pairs on standard output."""
import ctypes, fcntl, json, os, socket, struct, sys, time

NEWNET, SIOCSIFFLAGS, UP = 0x40000000, 0x8914, 1
libc = ctypes.CDLL(None, use_errno=True)
loopback, count, address = sys.argv[1], int(sys.argv[2]), (sys.argv[3], int(sys.argv[4]))


def enter():
    assert libc.unshare(NEWNET) == 0


def bring_up():
    with socket.socket(socket.AF_UNIX) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", UP))


def failures(limit):
    """How many connects fail until one succeeds, or until the time is over."""
    failed, end = 0, time.monotonic() + limit
    while time.monotonic() < end:
        with socket.socket() as client:
            try:
                client.connect(address)
                return failed, True
            except OSError:
                failed += 1
        time.sleep(0.001)
    return failed, False


def try_once(out):
    enter()
    if loopback == "late":
        assert not failures(0.2)[1]
    start = time.monotonic()
    bring_up()
    failed, connected = failures(10)
    assert connected
    os.write(out, json.dumps([(time.monotonic() - start) * 1000, failed]).encode())


while loopback == "flood":
    enter()
    bring_up()
    failures(0.002)
seen = []
for _ in range(count):
    mine, its = os.pipe()
    child = os.fork()
    if child == 0:
        try_once(its)
        os._exit(0)
    os.close(its)
    _, status = os.waitpid(child, 0)
    assert status == 0, status
    seen.append(json.loads(os.read(mine, 4096)))
    os.close(mine)
    # The kernel tells of so many refusals a second only.
    time.sleep(0.05)
print(json.dumps(seen))
