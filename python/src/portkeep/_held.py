"""Held mode: without kernel enforcement, this process keeps ports by binding them.

A held port that was not given out is safe from everybody: it is bound, on all addresses. Beyond that:

- A port given out is as safe as the socket bound to it. When that socket closes, anybody may take the port.
- Nobody else can use the ports, child processes included, unless they are let go first.
- Every port needs a descriptor for each transport.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Iterator

from ._errors import Error, InUseError, NotInScopeError
from ._ports import text

_LINUX = sys.platform == "linux"
# The pool as it is by default, then the registered ports below Linux's ephemeral range: no automatic choice lands there.
_PLACES = (range(61000, 65536), range(10000, 32768))
# A process that forbids a port may answer EACCES.
_TAKEN = (errno.EADDRINUSE, errno.EACCES)
_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)

_Key = tuple[str, int]
_Sockets = dict[_Key, socket.socket]

# Where the next search begins: a port that was just given up is the last to be drawn again.
_cursor = random.randrange(65536)


class Block:
    """One held reservation."""

    def __init__(self, ports: range, holders: _Sockets) -> None:
        self.ports = ports
        self._holders = holders
        self._marks: _Sockets = {}
        self._next = dict.fromkeys(("tcp", "udp"), ports[0])
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._shown: int | None = None

    def show(self, label: bytes) -> None:
        """Show others what is held: `portkeep who` and `list` look for a memory file of this name."""
        if not hasattr(os, "memfd_create"):
            return
        transports = sum({"tcp": 1, "udp": 2}[transport] for transport in {transport for transport, _ in self._holders})
        # A name of a file has no zero; labels of lists do.
        shown = label.replace(b"\0", b"\x1f").decode()
        name = f"portkeep-held {text(self.ports)} {transports} {int(time.time())} {shown}"
        with contextlib.suppress(OSError):
            self._shown = os.memfd_create(name, os.MFD_CLOEXEC)

    def bind(self, sock: socket.socket, transport: str, address: tuple[object, ...]) -> int:
        """Bind a socket to a port of the block in place of its holder; port 0: a free one."""
        wanted = address[1]
        with self._lock:
            if os.getpid() != self._pid:
                raise NotInScopeError(errno.EPERM, "a held reservation serves only the process that made it")
            for port in self._candidates(transport) if wanted == 0 else (wanted,):
                assert isinstance(port, int)
                if wanted == 0 and not self._take_back(transport, port):
                    continue
                try:
                    self._replace(sock, transport, (address[0], port, *address[2:]))
                except OSError as error:
                    if error.errno != errno.EADDRINUSE:
                        raise
                else:
                    self._next[transport] = port + 1 if port < self.ports[-1] else self.ports[0]
                    return port
        if wanted == 0:
            raise Error(errno.EADDRINUSE, f"every port of the reservation {text(self.ports)} is in use")
        raise Error(errno.EADDRINUSE, f"port {wanted} of the reservation is in use")

    def let_go(self) -> None:
        """Stop holding, so that other sockets can bind. Other held reservations still keep away."""
        with self._lock:
            for key, holder in self._holders.items():
                mark = _mark(key)
                if mark is not None:
                    self._marks[key] = mark
                holder.close()
            self._holders.clear()

    def close(self) -> None:
        with self._lock:
            for sockets in (self._holders, self._marks):
                for sock in sockets.values():
                    sock.close()
                sockets.clear()
            if self._shown is not None:
                os.close(self._shown)
                self._shown = None

    def _candidates(self, transport: str) -> Iterator[int]:
        """Next-fit over what is held, then over what was given out and may be free again."""
        following = self._next[transport]
        in_turn = [*range(following, self.ports.stop), *range(self.ports[0], following)]
        held = [port for port in in_turn if (transport, port) in self._holders]
        yield from held
        yield from (port for port in in_turn if port not in held)

    def _take_back(self, transport: str, port: int) -> bool:
        """Hold the port again if it was given out and is free.

        Only then may it be drawn: a bind may succeed although another address of the port still has its socket.
        """
        key = (transport, port)
        if key not in self._holders:
            holder = _hold_again(transport, port)
            if holder is None:
                return False
            self._holders[key] = holder
            mark = self._marks.pop(key, None)
            if mark is not None:
                mark.close()
        return True

    def _replace(self, sock: socket.socket, transport: str, address: tuple[object, ...]) -> None:
        """Bind before the holder closes, so that the port is bound at every moment.

        Linux lets two sockets overlap that both have SO_REUSEADDR while neither listens. Elsewhere the holder goes first.
        """
        port = address[1]
        assert isinstance(port, int)
        holder = self._holders.get((transport, port))
        if holder is None:
            sock.bind(address)
            return
        if not _LINUX:
            self._holders.pop((transport, port)).close()
            sock.bind(address)
            return
        wanted = sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        _set_reuse(holder, 1)
        _set_reuse(sock, 1)
        try:
            sock.bind(address)
        except OSError:
            _set_reuse(holder, 0)
            raise
        finally:
            # Only for this moment, so that no other process can bind the port as well.
            _set_reuse(sock, wanted)
        self._holders.pop((transport, port)).close()


def hold(ports: range, transport: str) -> Block:
    """Hold exactly these ports."""
    holders = _hold_all(ports, transport)
    if isinstance(holders, int):
        if os.name == "posix" and holders < 1024 and os.geteuid() != 0:
            raise Error(errno.EACCES, f"port {holders} is privileged: run as root, or ask for ports from 1024 on")
        raise InUseError(errno.EADDRINUSE, f"{holders}/{transport} is in use: ask for other ports, or free it")
    return Block(ports, holders)


def find(count: int, align: int, transport: str) -> Block:
    """Hold any ports in a row."""
    global _cursor
    for place in _PLACES:
        first = place.start + _cursor % len(place)
        for low, high in ((first, place.stop), (place.start, min(first + count - 1, place.stop))):
            start = _aligned(low, align)
            while start + count <= high:
                ports = range(start, start + count)
                holders = _hold_all(ports, transport)
                if not isinstance(holders, int):
                    _cursor = ports.stop - place.start
                    return Block(ports, holders)
                start = _aligned(holders + 1, align)
    raise Error(errno.ENOSPC, f"no {count} consecutive ports are free: ask for fewer")


def _aligned(port: int, align: int) -> int:
    return -(-port // align) * align


def _hold_all(ports: range, transport: str) -> _Sockets | int:
    """A holder for every port, or the first port that cannot be had."""
    holders: _Sockets = {}
    try:
        for port in ports:
            for kind in transport.split("+"):
                holder = _hold(kind, port)
                holders[kind, port] = holder
                if _is_marked((kind, port)):
                    raise OSError(errno.EADDRINUSE, "let go by another held reservation")
    except OSError as error:
        for holder in holders.values():
            holder.close()
        if error.errno in _TAKEN:
            return port
        if error.errno in (errno.EMFILE, errno.ENFILE):
            message = f"holding {len(ports)} ports needs a descriptor for each: raise `ulimit -n`, or ask for fewer"
            raise Error(error.errno, message) from error
        raise
    return holders


def _hold(transport: str, port: int, reuse: bool = False) -> socket.socket:
    """One socket for both families where there is IPv6: nothing else can then bind the port, on any address."""
    try:
        return _hold_at(socket.AF_INET6, "::", transport, port, reuse)
    except OSError as error:
        if error.errno not in _NO_IPV6:
            raise
        return _hold_at(socket.AF_INET, "0.0.0.0", transport, port, reuse)


def _hold_at(family: int, host: str, transport: str, port: int, reuse: bool) -> socket.socket:
    holder = socket.socket(family, socket.SOCK_DGRAM if transport == "udp" else socket.SOCK_STREAM)
    try:
        if sys.platform == "win32":
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        if family == socket.AF_INET6:
            holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if reuse:
            _set_reuse(holder, 1)
        holder.bind((host, port))
    except BaseException:
        holder.close()
        raise
    return holder


def _hold_again(transport: str, port: int) -> socket.socket | None:
    """Hold a port that was given out, if it is free. TCP connections in TIME_WAIT do not count."""
    for reuse in (False, True) if _LINUX and transport == "tcp" else (False,):
        try:
            holder = _hold(transport, port, reuse)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
        else:
            if reuse:
                _set_reuse(holder, 0)
            return holder
    return None


def _set_reuse(sock: socket.socket, value: int) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, value)


# A port that was let go has a mark, an abstract Unix socket of its network namespace: processes that hold ports skip
# it. The mark ends with the process. Only Linux has such names.


def _mark(key: _Key) -> socket.socket | None:
    if not _LINUX:
        return None
    mark = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        mark.bind(f"\0portkeep-held-{key[0]}-{key[1]}")
    except OSError:
        mark.close()
        return None
    return mark


def _is_marked(key: _Key) -> bool:
    mark = _mark(key)
    if mark is not None:
        mark.close()
    return _LINUX and mark is None
