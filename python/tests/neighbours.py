"""A process that takes every port it can get: ``neighbours.py UID [PORT]``.

It binds the ports of the pool in turn (or PORT), with SO_REUSEADDR and SO_REUSEPORT, keeps a few, lets the kernel choose
others, and connects to them. It ends with its standard input.
"""

from __future__ import annotations

import os
import random
import select
import socket
import sys
from collections import deque

user, *wanted = map(int, sys.argv[1:])
if user != os.getuid():
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)

# The newest; the oldest is closed when another one comes.
kept: deque[socket.socket] = deque(maxlen=16)


def take(port: int, host: str) -> bool:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    if port:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        sock.bind((host, port))
        sock.listen()
    except OSError:
        sock.close()
        return False
    if len(kept) == kept.maxlen:
        kept.popleft().close()
    kept.append(sock)
    return True


print("ready", flush=True)
port = random.randrange(61000, 65536)
while not select.select([sys.stdin], [], [], 0)[0]:
    port = wanted[0] if wanted else port + 1 if port < 65535 else 61000
    if take(port, random.choice(("0.0.0.0", "127.0.0.1", "::", "::1"))) and wanted:
        print("bound", port, flush=True)
    take(0, "127.0.0.1")
    with socket.socket() as client:
        client.settimeout(1)
        try:
            client.connect(kept[-1].getsockname()[:2] if kept[-1].family == socket.AF_INET else ("127.0.0.1", 9))
        except OSError:
            pass
