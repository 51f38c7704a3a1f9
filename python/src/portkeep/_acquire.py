"""Asking for a reservation."""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import socket
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from types import TracebackType

from . import _control, _held, _info
from ._control import LABEL_BYTES
from ._errors import Error, InUseError, NotEnforcedError, TimedOutError
from ._reservation import Reservation
from ._types import Enforcement, Scope, Transport, check_int, check_port, check_transport, check_word


@dataclass
class _Request:
    count: int = 1
    at: int | None = None
    transport: Transport = "tcp"
    align: int = 1
    scope: Scope | None = None
    strict: bool = False
    label: str = ""
    require: Enforcement | None = None
    timeout: float = 10.0

    def __post_init__(self) -> None:
        check_int("count", self.count, 1, 65535)
        if self.at is not None and check_port("at", self.at) + self.count > 65536:
            raise ValueError(f"{self.count} ports from {self.at} on end behind 65535")
        check_transport(self.transport)
        check_int("align", self.align, 1, 32768)
        if self.align & (self.align - 1):
            raise ValueError(f"align is a power of two, not {self.align}")
        if (self.at or 0) % self.align:
            raise ValueError(f"port {self.at} is not a multiple of {self.align}")
        if self.scope is not None:
            check_word("scope", self.scope, ("process", "user", "cgroup"))
        if not isinstance(self.label, str):
            raise TypeError(f"label is a str, not {type(self.label).__name__}")
        if len(self.label.encode()) > LABEL_BYTES or "\0" in self.label:
            raise ValueError(f"label has at most {LABEL_BYTES} bytes and no zero among them, unlike {self.label!r}")
        if self.require is not None:
            check_word("require", self.require, ("kernel", "held"))
        self.timeout = float(self.timeout)

    @property
    def block(self) -> str:
        """The specific block, for messages."""
        assert self.at is not None
        return f"{_info.block(range(self.at, self.at + self.count))}/{self.transport}"


def reserve(
    count: int = 1,
    *,
    at: int | None = None,
    transport: Transport = "tcp",
    align: int = 1,
    scope: Scope | None = None,
    strict: bool = False,
    label: str = "",
    require: Enforcement | None = None,
    timeout: float = 10.0,
) -> Reservation:
    """Reserve ``count`` consecutive ports.

    at: the first port; without it the system chooses. Specific ports outside the pool wait for the agent.
    transport: ``"tcp"``, ``"udp"`` or ``"tcp+udp"`` (the same numbers for both).
    align: make the first port a multiple of this power of two.
    scope: who may use the ports. Without it all processes of your user, because a server that you start is another
        process; in held mode this process. ``"process"`` and ``"cgroup"`` (yours and those below) are the others.
    strict: only associated sockets may bind the ports.
    label: a name for listings and for error messages of others, at most 24 bytes.
    require: ``"kernel"`` to fail where the kernel does not enforce; ``"held"`` to hold the ports in any case.
    timeout: how many seconds to wait for the agent.
    """
    request = _Request(count, at, transport, align, scope, strict, label, require, timeout)
    steps = _steps(request)
    try:
        while True:
            time.sleep(next(steps))
    except StopIteration as done:
        reservation: Reservation = done.value
        return reservation
    finally:
        # After a KeyboardInterrupt this cancels the request.
        steps.close()


@dataclass
class reserve_async(_Request):
    """As :func:`reserve`, with the same arguments, without blocking the event loop.

    ``async with portkeep.reserve_async(4) as r:``, or ``r = await portkeep.reserve_async(4)``.
    """

    _reservation: Reservation | None = field(default=None, init=False, repr=False)

    async def _reserve(self) -> Reservation:
        steps = _steps(self)
        try:
            while True:
                try:
                    pause = next(steps)
                except StopIteration as done:
                    reservation: Reservation = done.value
                    return reservation
                await asyncio.sleep(pause)
        finally:
            steps.close()

    def __await__(self) -> Generator[object, None, Reservation]:
        return self._reserve().__await__()

    async def __aenter__(self) -> Reservation:
        self._reservation = await self
        return self._reservation

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._reservation is not None
        self._reservation.close()


def _steps(request: _Request) -> Generator[float, None, Reservation]:
    """Reserve. While the agent has to confirm, yields how long to pause."""
    if request.require == "held":
        return _hold(request)
    owner = _control.new_socket(request.transport)
    try:
        if _control.version(owner) is None:
            owner.close()
            if request.require == "kernel":
                raise NotEnforcedError(
                    errno.ENOPROTOOPT, "the kernel enforces no reservations here: an administrator runs `portkeep up`"
                )
            return _hold(request)
        return (yield from _acquire(request, owner))
    except BaseException:
        # Closing the owner socket takes back what was claimed.
        owner.close()
        raise


def _acquire(request: _Request, owner: socket.socket) -> Generator[float, None, Reservation]:
    scope = request.scope or "user"
    try:
        _control.acquire(
            owner,
            start=request.at or 0,
            count=request.count,
            flags=(_control.BOTH if request.transport == "tcp+udp" else 0) | (_control.STRICT if request.strict else 0),
            scope=_control.SCOPES.index(scope),
            align=request.align,
            label=request.label.encode(),
        )
    except OSError as error:
        if error.errno != errno.EINPROGRESS:
            raise _explained(request, error.errno or 0) from error
    grant = _control.granted(owner)
    give_up = time.monotonic() + request.timeout
    pause = 50e-6
    # A refusal is entered before its reason.
    while _control.STATES.get(grant.state) == "pending" or (grant.state == 3 and grant.error == 0):
        if time.monotonic() >= give_up:
            message = f"the agent did not confirm {request.block} within {request.timeout:g} s: see `portkeep status`"
            raise TimedOutError(errno.ETIMEDOUT, message)
        version = _control.version(owner)
        if version is None or not version.agent:
            raise _explained(request, errno.ENETDOWN)
        yield pause
        pause = min(2 * pause, 2e-3)
        grant = _control.granted(owner)
    if grant.error:
        raise _explained(request, grant.error)
    if not grant.token:
        raise _explained(request, errno.ECANCELED)
    ports = range(grant.start, grant.start + grant.length)
    return Reservation(
        token=grant.token,
        ports=ports,
        transport=request.transport,
        scope=scope,
        label=request.label,
        owner=owner,
    )


def _hold(request: _Request) -> Reservation:
    if request.scope in ("user", "cgroup"):
        raise NotEnforcedError(
            errno.EOPNOTSUPP, f'scope="{request.scope}" needs the kernel: an administrator runs `portkeep up`'
        )
    if request.at is not None:
        block = _held.hold(request.at, request.count, request.transport)
    else:
        block = _held.find(request.count, request.align, request.transport)
    block.show(request.label)
    return Reservation(
        token=secrets.randbelow((1 << 64) - 1) + 1,
        ports=block.ports,
        transport=request.transport,
        scope="process",
        label=request.label,
        held=block,
    )


def _explained(request: _Request, number: int) -> Error:
    """The meaning of a request's error number."""
    if number == errno.EADDRINUSE and request.at is not None:
        holder = _info.conflict(range(request.at, request.at + request.count), request.transport)
        if holder is None:
            return InUseError(number, f"{request.block}: another program has a port of it bound")
        port = max(request.at, holder.ports[0])
        return InUseError(number, f"{port}/{holder.transport} belongs to {holder.owner}", holder)
    if number in (errno.ENOSPC, errno.EADDRINUSE):
        return Error(errno.ENOSPC, f"the pool has no {request.count} free ports in a row: ask for fewer")
    block = "this block" if request.at is None else request.block
    messages = {
        errno.EDQUOT: f"{request.count} ports are more than the quota of your user leaves: close other reservations, "
        "or have `quota` raised (portkeep.toml)",
        errno.EACCES: f"{block} has privileged ports: only root reserves them, unless a policy allows it",
        errno.ENETDOWN: f"{block} is outside the pool and the agent does not answer: "
        "start it with `portkeep agent`, or let the system choose the ports",
        errno.ECANCELED: "an administrator ended the reservation before it was granted",
    }
    return Error(number, messages.get(number) or f"the request was refused: {os.strerror(number)}")
