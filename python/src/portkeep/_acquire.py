"""Asking for a reservation."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import socket
import time
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from types import TracebackType

from . import _control, _held, _info, _others, _ports
from ._control import LABEL_BYTES
from ._errors import Error, InUseError, NotEnforcedError, TimedOutError
from ._reservation import Reservation
from ._types import Enforcement, Scope, Transport, check_int, check_port, check_transport, check_word


@dataclass
class _Request:
    count: int = 1
    at: int | None = None
    transport: Transport | None = None
    align: int = 1
    scope: Scope | None = None
    strict: bool = False
    label: str = ""
    require: Enforcement | None = None
    timeout: float = 10.0
    ports: str | int | None = None
    also: str | Iterable[str] = ()
    _blocks: _ports.Blocks = field(default=(), init=False, repr=False)
    """The ports that are named, if any are."""
    _transport: Transport = field(default="tcp", init=False, repr=False)
    _others: tuple[_control.Other, ...] = field(default=(), init=False, repr=False)

    def __post_init__(self) -> None:
        check_int("count", self.count, 1, 65535)
        if self.at is not None and check_port("at", self.at) + self.count > 65536:
            raise ValueError(f"{self.count} ports from {self.at} on end behind 65535")
        if self.transport is not None:
            check_transport(self.transport)
            self._transport = self.transport
        check_int("align", self.align, 1, 32768)
        if self.align & (self.align - 1):
            raise ValueError(f"align is a power of two, not {self.align}")
        if (self.at or 0) % self.align:
            raise ValueError(f"port {self.at} is not a multiple of {self.align}")
        if self.at is not None:
            self._blocks = (range(self.at, self.at + self.count),)
        if self.ports is not None:
            if self.at is not None or self.count != 1 or self.align != 1:
                raise ValueError("ports names all ports: leave out count, at and align")
            self._blocks, self._transport = _ports.parse(self.ports, self.transport)
        if self.scope is not None:
            check_word("scope", self.scope, ("process", "user", "cgroup"))
        self._others = _others.parse(self.also)
        if not isinstance(self.label, str):
            raise TypeError(f"label is a str, not {type(self.label).__name__}")
        if len(self.label.encode()) > LABEL_BYTES or "\0" in self.label:
            raise ValueError(f"label has at most {LABEL_BYTES} bytes and no zero among them, unlike {self.label!r}")
        if self.require is not None:
            check_word("require", self.require, ("kernel", "held"))
        self.timeout = float(self.timeout)
        # Not `< 0`: a NaN is refused, too.
        if not self.timeout >= 0:
            raise ValueError(f"timeout is 0 or more seconds, not {self.timeout:g}")

    @property
    def named(self) -> str:
        """The ports that are named, for messages."""
        return f"{_ports.text(*self._blocks)}/{self._transport}"


def reserve(
    count: int = 1,
    *,
    at: int | None = None,
    ports: str | int | None = None,
    transport: Transport | None = None,
    align: int = 1,
    scope: Scope | None = None,
    also: str | Iterable[str] = (),
    strict: bool = False,
    label: str = "",
    require: Enforcement | None = None,
    timeout: float = 10.0,
) -> Reservation:
    """Reserve ``count`` consecutive ports, or those that ``ports`` names.

    at: the first port; without it the system chooses. Specific ports outside the pool wait for the agent.
    ports: in place of ``count`` and ``at`` these ports, all or none: ``"80,443"``, ``"8000-8003,9000/udp"``. The names of
        services may be among them.
    transport: ``"tcp"`` (the default), ``"udp"`` or ``"tcp+udp"`` (the same numbers for both).
    align: make the first port a multiple of this power of two.
    scope: who may use the ports. Without it all processes of your user, because a server that you start is another
        process; in held mode this process. ``"process"`` and ``"cgroup"`` (yours and those below) are the others.
    also: others that may use the ports beside the scope, at most four: ``"unit=docker.service"``, ``["user=root", "group=7"]``.
    strict: only associated sockets may bind the ports.
    label: a name for listings and for error messages of others, at most 24 bytes; of a list, 16 are kept.
    require: ``"kernel"`` to fail where the kernel does not enforce; ``"held"`` to hold the ports in any case.
    timeout: how many seconds to wait for the agent.
    """
    request = _Request(count, at, transport, align, scope, strict, label, require, timeout, ports, also)
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
    owner = _control.new_socket(request._transport)
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
    label = request.label.encode()
    if len(request._blocks) > 1:
        label = _ports.marked(request.label, len(request._blocks), secrets.randbelow(36**6))
        for block in request._blocks:
            # Before the first is claimed, so that others do not see a list come and go.
            if _info.conflict(block, request._transport):
                raise _explained(request, errno.EADDRINUSE)
    granted: list[_control.Grant] = []
    try:
        wanted: tuple[range | None, ...] = request._blocks or (None,)
        for each in wanted:
            granted.append((yield from _acquire_block(request, owner, each, label)))
    except BaseException:
        for grant in granted:
            with contextlib.suppress(OSError):
                _control.release(owner, grant.token)
        raise
    return Reservation(
        tokens=tuple(grant.token for grant in granted),
        blocks=tuple(range(grant.start, grant.start + grant.length) for grant in granted),
        transport=request._transport,
        scope=request.scope or "user",
        label=request.label,
        owner=owner,
    )


def _acquire_block(
    request: _Request, owner: socket.socket, block: range | None, label: bytes
) -> Generator[float, None, _control.Grant]:
    """Acquire these ports, or any."""
    try:
        _control.acquire(
            owner,
            start=block[0] if block else 0,
            count=len(block) if block else request.count,
            flags=(_control.BOTH if request._transport == "tcp+udp" else 0)
            | (_control.STRICT if request.strict else 0),
            scope=_control.SCOPES.index(request.scope or "user"),
            align=request.align,
            label=label,
            also=request._others,
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
            message = f"the agent did not confirm {request.named} within {request.timeout:g} s: see `portkeep status`"
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
    return grant


def _hold(request: _Request) -> Reservation:
    if request.scope in ("user", "cgroup"):
        raise NotEnforcedError(
            errno.EOPNOTSUPP, f'scope="{request.scope}" needs the kernel: an administrator runs `portkeep up`'
        )
    if request._others:
        raise NotEnforcedError(
            errno.EOPNOTSUPP, "only the kernel can let others in (`also`): an administrator runs `portkeep up`"
        )
    held: list[_held.Block] = []
    try:
        for block in request._blocks:
            held.append(_held.hold(block, request._transport))
    except BaseException:
        for each in held:
            each.close()
        raise
    if not held:
        held.append(_held.find(request.count, request.align, request._transport))
    label = request.label.encode()
    if len(held) > 1:
        label = _ports.marked(request.label, len(held), secrets.randbelow(36**6))
    for each in held:
        each.show(label)
    return Reservation(
        tokens=tuple(secrets.randbelow((1 << 64) - 1) + 1 for _ in held),
        blocks=tuple(each.ports for each in held),
        transport=request._transport,
        scope="process",
        label=request.label,
        held=tuple(held),
    )


def _explained(request: _Request, number: int) -> Error:
    """The meaning of a request's error number."""
    if number == errno.EADDRINUSE and request._blocks:
        for block in request._blocks:
            holder = _info.conflict(block, request._transport)
            if holder is not None:
                port = next(port for port in holder.ports if port in block)
                return InUseError(number, f"{port}/{holder.transport} belongs to {holder.owner}", holder)
        return InUseError(number, f"{request.named}: another program has a port of it bound")
    if number in (errno.ENOSPC, errno.EADDRINUSE):
        return Error(errno.ENOSPC, f"the pool has no {request.count} free ports in a row: ask for fewer")
    named = request.named if request._blocks else "this block"
    count = sum(map(len, request._blocks)) or request.count
    messages = {
        errno.EDQUOT: f"{count} ports are more than the quota of your user leaves: close other reservations, "
        "or have `quota` raised (portkeep.toml)",
        errno.EACCES: f"{named} has privileged ports: only root reserves them, unless a policy allows it",
        errno.ENETDOWN: f"{named} is outside the pool and the agent does not answer: "
        "start it with `portkeep agent`, or let the system choose the ports",
        errno.ECANCELED: "an administrator ended the reservation before it was granted",
    }
    return Error(number, messages.get(number) or f"the request was refused: {os.strerror(number)}")
