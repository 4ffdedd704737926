"""Connects to the admin socket many times and keeps silent; says so, and waits for a word."""
import socket
import sys

kept = []
for _ in range(int(sys.argv[2])):
    one = socket.socket(socket.AF_UNIX)
    one.connect(sys.argv[1])
    kept.append(one)
print("connected", flush=True)
sys.stdin.readline()
