"""Tries ways out of a workload and says of each what came of it, a line each.

Arguments: the names of those to try, without any all."""

import ctypes
import os
import socket
import subprocess
import sys

libc = ctypes.CDLL(None, use_errno=True)


def call(number, *args):
    if libc.syscall(number, *args) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def connect(path):
    socket.socket(socket.AF_UNIX).connect(path)


def write(path, text):
    with open(path, "w") as file:
        file.write(text)


def run(*command):
    """A command, and what it printed; like a system call it fails by an OSError."""
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout
    except subprocess.SubprocessError as error:
        raise OSError(str(error)) from error


def into(cgroup):
    """Has a child made in another cgroup (clone3 with CLONE_INTO_CGROUP), which no read-only mount prevents."""
    flags, ended = 0x200000000, 17
    words = (ctypes.c_uint64 * 11)(flags, 0, 0, 0, ended, 0, 0, 0, 0, 0, os.open(cgroup, os.O_PATH))
    child = libc.syscall(435, words, ctypes.sizeof(words))
    if child == 0:
        os._exit(0)
    if child < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    os.waitpid(child, 0)


def gain(program):
    """Runs a program of root's that anybody may run as root: a copy of python."""
    mine = (os.geteuid(), capabilities())
    script = "import os; print(os.geteuid(), *[line for line in open('/proc/self/status') if line.startswith('CapEff')])"
    user, _, held = run(program, "-c", script).split()
    if (int(user), held) == mine:
        raise OSError("it ran as whoever ran it")


def capabilities():
    with open("/proc/self/status") as status:
        return next(line.split()[1] for line in status if line.startswith("CapEff"))


WAYS = {
    "packet": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    "xdp": lambda: socket.socket(44, socket.SOCK_RAW),
    "vsock": lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM),
    "raw": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1),
    "io_uring": lambda: call(425, 1, ctypes.create_string_buffer(256)),
    "mounts": lambda: call(272, 0x00020000),
    "cgroups": lambda: call(272, 0x02000000),
    "mount": lambda: call(165, b"none", b"/mnt", b"tmpfs", 0, None),
    "bpf": lambda: call(321, 0, ctypes.create_string_buffer(128), 128),
    "move": lambda: write("/sys/fs/cgroup/cgroup.procs", str(os.getpid())),
    "move child": lambda: into("/sys/fs/cgroup/system.slice"),
    "tunable": lambda: write("/proc/sys/kernel/core_pattern", "|/bin/false"),
    "unit": lambda: write("/etc/systemd/system/mine.service", ""),
    "policy": lambda: write("/etc/callgate/policy.d/mine.toml", ""),
    "secret": lambda: open("/etc/callgate/secrets/api").read(),
    "authority": lambda: open("/var/lib/callgate/ca.pem").read(),
    "bus": lambda: connect("/run/dbus/system_bus_socket"),
    "manager": lambda: connect("/run/systemd/private"),
    "docker": lambda: connect("/run/docker.sock"),
    "systemd-run": lambda: run("/usr/bin/systemd-run", "--quiet", "true"),
    "setuid": lambda: gain("/opt/setuid"),
    "pins": lambda: os.listdir("/sys/fs/bpf/callgate/links"),
}

for name in sys.argv[1:] or WAYS:
    try:
        WAYS[name]()
        print(name, "OPEN", flush=True)
    except OSError as error:
        print(name, "closed:", error, flush=True)
print("all tried", flush=True)
