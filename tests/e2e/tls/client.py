"""TLS connections byte by byte: `client.py HOST CASE...` prints one JSON line for each case.

An answer is {"case", "got"}: "status NNN" of a request after the handshake, "alert N", "closed" or "reset" (what
the agent did instead), or "refused: WHY" (what the TLS library makes of it)."""

import json
import os
import socket
import ssl
import sys

HOST = sys.argv[1]


def hello(name=HOST, alpn=("http/1.1",), bio=None):
    """A real ClientHello, and what goes on with the handshake."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(list(alpn))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return tls, incoming, outgoing


def connect():
    sock = socket.create_connection((HOST, 443), 10)
    sock.settimeout(10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def in_pieces(data, size):
    return [data[at : at + size] for at in range(0, len(data), size)]


def in_records(data, size):
    """The handshake message out of its records and into smaller ones."""
    message = b""
    while data:
        length = int.from_bytes(data[3:5], "big")
        message, data = message + data[5 : 5 + length], data[5 + length :]
    return b"".join(b"\x16\x03\x01" + len(part).to_bytes(2, "big") + part for part in in_pieces(message, size))


def serve_out(pieces, tls, incoming, outgoing):
    """Sends the hello in pieces, ends the handshake and asks for /CASE."""
    sock = connect()
    for piece in pieces:
        sock.sendall(piece)
    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            sock.sendall(outgoing.read())
            data = sock.recv(65536)
            if not data:
                return "closed"
            incoming.write(data)
    tls.write(f"GET /{CASE} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
    sock.sendall(outgoing.read())
    while True:
        try:
            return "status " + tls.read(4096).split()[1].decode()
        except ssl.SSLWantReadError:
            incoming.write(sock.recv(65536))


def whole(size, **how):
    tls, incoming, outgoing = hello(**how)
    data = outgoing.read()
    return serve_out(in_pieces(data, size or len(data)), tls, incoming, outgoing)


def many_names(bytes_wanted):
    return tuple("x%05d-" % n + "y" * 190 for n in range(bytes_wanted // 198)) + ("http/1.1",)


def cut(size):
    tls, incoming, outgoing = hello()
    return serve_out([in_records(outgoing.read(), size)], tls, incoming, outgoing)


def broken(data, half_close=False):
    """Sends bytes and tells what comes back."""
    sock = connect()
    try:
        sock.sendall(data)
        if half_close:
            sock.shutdown(socket.SHUT_WR)
        got = b""
        while len(got) < 7:
            more = sock.recv(64)
            if not more:
                break
            got += more
    except ConnectionError:
        return "reset"
    if not got:
        return "closed"
    if got[0] == 21:
        return f"alert {got[6]}"
    return f"record {got[0]}"


def raw(**how):
    return hello(**how)[2].read()


def too_large():
    """One that announces 72 KiB and sends them."""
    message = b"\x01\x01\x20\x00" + bytes(0x12000)
    records = [b"\x16\x03\x01" + len(part).to_bytes(2, "big") + part for part in in_pieces(message, 16000)]
    return b"".join(records)


CASES = {
    "whole": lambda: whole(0),
    "bytes": lambda: whole(1),
    "pieces": lambda: whole(100),
    "records": lambda: cut(64),
    "over-1k": lambda: whole(0, alpn=many_names(3000)),
    "over-16k": lambda: whole(0, alpn=many_names(20000)),
    "upper": lambda: whole(0, name=HOST.upper()),
    "alpn-none": lambda: whole(0, alpn=()),
    "alpn-both": lambda: whole(0, alpn=("spdy/3", "http/1.1")),
    "alpn-unknown": lambda: whole(0, alpn=("spdy/3",)),
    "no-name": lambda: broken(nameless()),
    "address": lambda: broken(raw(name="192.0.2.1")),
    "random": lambda: broken(bytes([200]) + os.urandom(511)),
    "sslv2": lambda: broken(bytes.fromhex("802e0100020015000000100700c00300800100800600400400800200800000000000000000000000000000000000000000")),
    "truncated": lambda: broken(raw()[:60], half_close=True),
    "record-too-long": lambda: broken(b"\x16\x03\x01\xff\xff" + bytes(64)),
    "no-hello": lambda: broken(b"\x16\x03\x03\x00\x04\x0e\x00\x00\x00"),
    "garbled": lambda: broken(garbled()),
    "too-large": lambda: broken(too_large()),
    "slow": lambda: broken(raw()[:60]),
}


def nameless():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    outgoing = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing)
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


def garbled():
    """A hello whose session id is longer than the format allows."""
    data = bytearray(raw())
    data[5 + 4 + 34] = 200
    return bytes(data)


for CASE in sys.argv[2:]:
    try:
        got = CASES[CASE]()
    except ssl.SSLError as error:
        got = f"refused: {error}".split(" (")[0]
    except ConnectionError:
        got = "reset"
    print(json.dumps({"case": CASE, "got": got}), flush=True)
