"""Port reservations that the Linux kernel enforces.

>>> import portkeep
>>> with portkeep.reserve(4, label="web") as r:
...     server = r.bind_tcp()                  # listens on a port of the block
...     server.getsockname()[1] in r.ports
...     server.close()
True

No process outside the scope of a reservation can bind one of its ports, on any local address, with any socket option,
as any user. The reservation ends when the ``with`` block or the process ends, however it ends. Bound sockets keep
running.

``r.enforcement`` is ``"kernel"`` where an administrator ran ``portkeep up``. Elsewhere, on other systems too, it is
``"held"``: the process keeps the ports with sockets of its own, which protects less. ``require="kernel"`` makes that an
error. See https://github.com/portkeep/portkeep, docs/guides/python.md.
"""

from ._acquire import reserve, reserve_async
from ._errors import Error, InUseError, NotEnforcedError, NotInScopeError, TimedOutError
from ._info import Info, enforcement, who
from ._reservation import Reservation, associate

__all__ = [
    "Error",
    "InUseError",
    "Info",
    "NotEnforcedError",
    "NotInScopeError",
    "Reservation",
    "TimedOutError",
    "associate",
    "enforcement",
    "reserve",
    "reserve_async",
    "who",
]
