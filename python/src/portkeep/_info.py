"""Questions about reservations. They need no right and change nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from . import _control, _ports
from ._types import Enforcement, Transport, check_port, check_transport


@dataclass(frozen=True)
class Info:
    """A reservation as it was at the moment of the question."""

    blocks: tuple[range, ...]
    """Its ports: one block, or several of a list, lowest first."""
    transport: str
    """``"tcp"``, ``"udp"`` or ``"tcp+udp"``."""
    state: str
    """``"pending"``, ``"active"`` or ``"refused"``."""
    scope: str
    """The processes that may use it: ``"process"``, ``"user"``, ``"cgroup"``, and of persistent ones ``"group"``, ``"unit"``,
    ``"administrators"``."""
    strict: bool
    persistent: bool
    """An administrator declared it: it has no owner process."""
    pid: int
    """The owner process, numbered as in the first PID namespace."""
    uid: int
    command: str
    name: str
    """Its label, or the name of a persistent one; empty if it has none."""
    bound: int
    """How many of its ports have a socket."""
    since: float
    """When it was acquired, on ``CLOCK_MONOTONIC``."""
    token: int | None
    """Only for those who may use it; of a list that of the first block."""

    @property
    def ports(self) -> Sequence[int]:
        """The ports: a ``range``, of a list a ``tuple``."""
        return _ports.all_of(self.blocks)

    def __str__(self) -> str:
        return f"{_ports.text(*self.blocks)}/{self.transport}, {self.owner}"

    @property
    def owner(self) -> str:
        """The owner in words: ``pid 812 (nginx) as 'web', reserved 3m ago``."""
        if self.persistent:
            return f"the persistent reservation {self.name!r}"
        label = f" as {self.name!r}" if self.name else ""
        return f"pid {self.pid} ({self.command}){label}, reserved {_ago(int(time.monotonic() - self.since))}"


def _ago(seconds: int) -> str:
    """As the commands write it: the two largest units, and seconds only below a minute."""
    if seconds < 60:
        return f"{seconds}s ago" if seconds else "just now"
    if seconds >= 86_400:
        seconds -= seconds % 3600
    units = ((86_400, "day"), (3600, "h"), (60, "m"))
    parts = []
    for size, unit in units:
        number, seconds = divmod(seconds, size)
        if number:
            parts.append(f"{number}{unit}{'s' if unit == 'day' and number > 1 else ''}")
    return " ".join(parts) + " ago"


def _info(state: _control.State | None) -> Info | None:
    if state is None:
        return None
    return Info(
        blocks=(range(state.start, state.start + state.length),),
        transport=_control.TRANSPORTS[state.transports],
        state=_control.STATES[state.state],
        scope=_control.SCOPES[state.scope],
        strict=bool(state.flags & _control.STRICT),
        persistent=bool(state.flags & _control.PERSISTENT),
        pid=state.pid,
        uid=state.uid,
        command=_text(state.comm),
        name=_text(state.label),
        bound=state.bound,
        since=state.since / 1e9,
        token=state.token or None,
    )


def _whole(state: _control.State | None) -> Info | None:
    """The reservation that a block belongs to. Only a list has more of them."""
    info = _info(state)
    mark = _ports.mark(state.label) if state is not None else None
    if state is None or info is None or mark is None:
        return info
    its = [
        other
        for other in _states(state.transports & 1 or 2)
        if (other.label, other.pid, other.transports) == (mark, state.pid, state.transports)
    ]
    joined = [found for found in map(_info, its) if found is not None]
    if not any(state.start == other.start for other in its):
        return info
    return replace(
        joined[0],
        blocks=tuple(found.blocks[0] for found in joined),
        bound=sum(found.bound for found in joined),
        since=min(found.since for found in joined),
        state=next((found.state for found in joined if found.state != "active"), "active"),
    )


def _states(transport: int) -> Iterator[_control.State]:
    """The blocks of this network namespace that have the transport, lowest first."""
    port = 0
    while port < 65536:
        state = _control.state(by=_control.BY_NEXT, port=port, transport=transport)
        if state is None:
            return
        yield state
        port = state.start + state.length


def _text(padded: bytes) -> str:
    return padded.split(b"\0", 1)[0].decode(errors="replace")


def enforcement() -> Enforcement:
    """The enforcement of a reservation made here: ``"kernel"`` or ``"held"``."""
    with _control.new_socket("udp") as sock:
        try:
            return "kernel" if _control.version(sock) else "held"
        except OSError:
            return "held"


def who(port: int, transport: Transport = "tcp") -> Info | None:
    """The reservation that a port belongs to, ``None`` if it is not reserved.

    Only the kernel knows: without enforcement this is a :class:`NotEnforcedError`.
    """
    check_port("port", port)
    check_transport(transport)
    for bit in _bits(transport):
        found = _whole(_control.state(by=_control.BY_PORT, port=port, transport=bit))
        if found is not None:
            return found
    return None


def lookup(token: int) -> Info | None:
    """The reservation with this token."""
    return _info(_control.state(by=_control.BY_TOKEN, token=token))


def conflict(ports: range, transport: str) -> Info | None:
    """A reservation that overlaps a block, for the sake of a good error message."""
    for bit in _bits(transport):
        for by in (_control.BY_PORT, _control.BY_NEXT):
            state = _control.state(by=by, port=ports[0], transport=bit)
            if state is not None and state.start <= ports[-1] and ports[0] < state.start + state.length:
                return _whole(state)
    return None


def _bits(transport: str) -> list[int]:
    return [bit for bit in (1, 2) if _control.TRANSPORTS[bit] in transport.split("+")]
