"""The owner of a cgroup: makes cgroups in it, moves itself and a thread about in them, and connects from each.

Arguments: the cgroup that it owns, and some that it doesn't. Prints a line for each connection."""

import os, socket, sys, threading

NOBODY = 65534
owned, foreign = sys.argv[1], sys.argv[2:]


def write(path, text):
    with open(path, "w") as file:
        file.write(text)


def make(*parts):
    path = os.path.join(owned, *parts)
    os.mkdir(path)
    return path


def connect(place):
    for port in (443, 25):
        try:
            with socket.create_connection(("192.0.2.1", port), 10) as one:
                one.shutdown(socket.SHUT_WR)
                said = one.makefile().read().split(" from=")[0]
        except OSError as error:
            said = f"err {error.errno}"
        print(place, port, said, flush=True)


def stays():
    """It can't leave what it owns."""
    for cgroup in foreign:
        for file in ("cgroup.procs", "cgroup.threads"):
            try:
                write(os.path.join(cgroup, file), "0")
            except OSError:
                continue
            sys.exit(f"it moved to {cgroup}")


def thread():
    write(os.path.join(threaded, "cgroup.threads"), str(threading.get_native_id()))
    with open("/proc/thread-self/cgroup") as file:
        assert "/child/threaded" in file.read()
    connect("threaded")
    stays()


write(os.path.join(owned, "cgroup.procs"), "0")
os.setgroups([])
os.setgid(NOBODY)
os.setuid(NOBODY)
stays()
connect("owned")
child = make("child")
write(os.path.join(child, "cgroup.procs"), "0")
stays()
connect("child")
grandchild = make("child", "grandchild")
write(os.path.join(grandchild, "cgroup.procs"), "0")
connect("grandchild")
write(os.path.join(child, "cgroup.procs"), "0")
threaded = make("child", "threaded")
write(os.path.join(threaded, "cgroup.type"), "threaded")
other = threading.Thread(target=thread)
other.start()
other.join()
connect("main")
