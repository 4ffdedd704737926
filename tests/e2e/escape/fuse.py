"""Mounts a FUSE file system of another user's at the path that is given, which answers nobody else, and runs the command that
follows."""
import ctypes
import os
import subprocess
import sys

OTHER = 4242

libc = ctypes.CDLL(None, use_errno=True)
device = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={device},rootmode=40000,user_id={OTHER},group_id={OTHER}"
if libc.mount(b"test", sys.argv[1].encode(), b"fuse", 0, options.encode()) != 0:
    sys.exit(os.strerror(ctypes.get_errno()))
sys.exit(subprocess.run(sys.argv[2:]).returncode)
