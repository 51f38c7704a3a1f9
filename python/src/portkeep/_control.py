"""The private socket option level.

``crates/kernel/bpf/portkeep.h`` of the repository describes it. Every port is in host byte order.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from typing import Any, NamedTuple

from ._errors import Error, NotEnforcedError

LEVEL = 0x504B
ACQUIRE, RELEASE, ASSOCIATE, SELECT = 100, 101, 102, 103
VERSION, GRANTED, STATE = 200, 201, 202

TRANSPORTS = {1: "tcp", 2: "udp", 3: "tcp+udp"}
SCOPES = ("process", "user", "cgroup", "group", "unit", "administrators")
STATES = {1: "pending", 2: "active", 3: "refused"}
BOTH, STRICT, PERSISTENT = 1, 2, 0x80
BY_TOKEN, BY_PORT, BY_NEXT = 1, 2, 3
LABEL_BYTES = 24
NAME_BYTES = 128

# Structures only grow, so the oldest form with these fields is the only limit.
_OLDEST_ABI = 2
_ACQUIRE = struct.Struct("=HHIHHH2xQ24s")
_OTHER = struct.Struct(f"=II{NAME_BYTES}s")
_SELECT = struct.Struct("=HHB3xQ")
_TOKEN = struct.Struct("=Q")
_ROOM = 512


class Other(NamedTuple):
    """Another that may use the ports beside the scope: a user or group by its id, a unit by its name."""

    kind: int
    id: int
    name: bytes


class Version(NamedTuple):
    abi: int
    agent: int


class Grant(NamedTuple):
    token: int
    start: int
    length: int
    transports: int
    state: int
    error: int


class State(NamedTuple):
    token: int
    netns: int
    cgroup: int
    since: int
    pid: int
    uid: int
    start: int
    length: int
    transports: int
    state: int
    scope: int
    flags: int
    bound: int
    error: int
    comm: bytes
    label: bytes


_VERSION = struct.Struct("=II")
_GRANT = struct.Struct("=QHHBBH")
_STATE = struct.Struct("=QQQQIIHHBBBBIH2x16s24s")


def _get(sock: socket.socket, option: int, layout: struct.Struct) -> tuple[Any, ...]:
    answer = sock.getsockopt(LEVEL, option, _ROOM)
    if len(answer) < layout.size:
        raise NotEnforcedError(errno.ENOPROTOOPT, "Portkeep here is of another version: upgrade whichever is older")
    return layout.unpack_from(answer)


def new_socket(transport: str) -> socket.socket:
    """A socket that carries control codes; of IPv6 where there is no IPv4."""
    kind = socket.SOCK_DGRAM if transport == "udp" else socket.SOCK_STREAM
    try:
        return socket.socket(socket.AF_INET, kind)
    except OSError:
        return socket.socket(socket.AF_INET6, kind)


def version(sock: socket.socket) -> Version | None:
    """Which Portkeep serves this socket; ``None`` if none does."""
    if sys.platform != "linux":
        return None
    try:
        found = Version(*_get(sock, VERSION, _VERSION))
    except NotEnforcedError:
        raise
    except OSError as error:
        # The answers of IPv6 and IPv4 sockets to a level they do not know.
        if error.errno in (errno.ENOPROTOOPT, errno.EOPNOTSUPP):
            return None
        raise
    if found.abi < _OLDEST_ABI:
        raise NotEnforcedError(
            errno.ENOPROTOOPT,
            f"Portkeep here speaks version {found.abi} of the control codes, this package needs {_OLDEST_ABI}: "
            "upgrade Portkeep",
        )
    return found


def acquire(
    sock: socket.socket,
    *,
    start: int,
    count: int,
    flags: int,
    scope: int,
    align: int,
    label: bytes,
    also: tuple[Other, ...],
) -> None:
    request = _ACQUIRE.pack(start, count, flags, scope, align, len(also), 0, label)
    sock.setsockopt(LEVEL, ACQUIRE, request + b"".join(_OTHER.pack(*other) for other in also))


def granted(sock: socket.socket) -> Grant:
    """The outcome of the socket's last ACQUIRE. A refusal is reported once."""
    return Grant(*_get(sock, GRANTED, _GRANT))


def release(sock: socket.socket, token: int) -> None:
    sock.setsockopt(LEVEL, RELEASE, _TOKEN.pack(token))


def associate(sock: socket.socket, token: int) -> None:
    sock.setsockopt(LEVEL, ASSOCIATE, _TOKEN.pack(token))


def state(*, by: int, port: int = 0, transport: int = 0, token: int = 0) -> State | None:
    """The reservation in question, ``None`` if there is none; an error where nothing enforces."""
    with new_socket("udp") as sock:
        if version(sock) is None:
            raise NotEnforcedError(
                errno.ENOPROTOOPT, "the kernel enforces no reservations here: an administrator runs `portkeep up`"
            )
        sock.setsockopt(LEVEL, SELECT, _SELECT.pack(by, port, transport, token))
        try:
            return State(*_get(sock, STATE, _STATE))
        except Error:
            raise
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
