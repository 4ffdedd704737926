"""Makes system calls that are given as words: NUMBER ARGUMENT..., calls divided by "/". Prints what each one says: 0 or
more, or the error's name. An argument that is no number is a string's address."""
import ctypes
import errno
import sys

syscall = ctypes.CDLL(None, use_errno=True).syscall
syscall.restype = ctypes.c_long


def argument(word):
    try:
        return ctypes.c_ulong(int(word, 0) & 0xFFFFFFFFFFFFFFFF)
    except ValueError:
        return ctypes.c_char_p(word.encode())


for call in " ".join(sys.argv[1:]).split("/"):
    ctypes.set_errno(0)
    result = syscall(*[argument(word) for word in call.split()])
    print(result if result >= 0 else errno.errorcode[ctypes.get_errno()], flush=True)
