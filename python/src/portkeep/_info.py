"""Questions about reservations. They need no right and change nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass

from . import _control
from ._types import Enforcement, Transport, check_port, check_transport


@dataclass(frozen=True)
class Info:
    """A reservation as it was at the moment of the question."""

    ports: range
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
    label: str
    bound: int
    """How many of its ports have a socket."""
    since: float
    """When it was acquired, on ``CLOCK_MONOTONIC``."""
    token: int | None
    """Only for those who may use it."""

    def __str__(self) -> str:
        return f"{block(self.ports)}/{self.transport}, {self.owner}"

    @property
    def owner(self) -> str:
        """The owner in words: ``pid 812 (nginx) as 'web', reserved 3 min ago``."""
        if self.persistent:
            return f"the persistent reservation {self.label!r}"
        label = f" as {self.label!r}" if self.label else ""
        return f"pid {self.pid} ({self.command}){label}, reserved {_age(time.monotonic() - self.since)} ago"


def block(ports: range) -> str:
    """``61000`` or ``61000-61003``."""
    return f"{ports[0]}" if len(ports) == 1 else f"{ports[0]}-{ports[-1]}"


def _age(seconds: float) -> str:
    for limit, size, unit in ((60, 1, "s"), (3600, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds // 86_400)} days"


def _info(state: _control.State | None) -> Info | None:
    if state is None:
        return None
    return Info(
        ports=range(state.start, state.start + state.length),
        transport=_control.TRANSPORTS[state.transports],
        state=_control.STATES[state.state],
        scope=_control.SCOPES[state.scope],
        strict=bool(state.flags & _control.STRICT),
        persistent=bool(state.flags & _control.PERSISTENT),
        pid=state.pid,
        uid=state.uid,
        command=_text(state.comm),
        label=_text(state.label),
        bound=state.bound,
        since=state.since / 1e9,
        token=state.token or None,
    )


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
        found = _info(_control.state(by=_control.BY_PORT, port=port, transport=bit))
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
            found = _info(_control.state(by=by, port=ports[0], transport=bit))
            if found is not None and found.ports[0] <= ports[-1] and ports[0] <= found.ports[-1]:
                return found
    return None


def _bits(transport: str) -> list[int]:
    return [bit for bit in (1, 2) if _control.TRANSPORTS[bit] in transport.split("+")]
