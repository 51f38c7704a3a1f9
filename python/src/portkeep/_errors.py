"""The exceptions: an ``OSError`` each, with ``errno``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._info import Info


class Error(OSError):
    """A call of this package failed; ``errno`` has the number, ``strerror`` the text."""

    holder: Info | None
    """The reservation in the way, where it is known."""

    def __init__(self, errno: int, message: str, holder: Info | None = None) -> None:
        super().__init__(errno, message)
        self.holder = holder


class InUseError(Error):
    """``EADDRINUSE``: a port is reserved by another process, or bound."""


class NotEnforcedError(Error):
    """``ENOPROTOOPT`` or ``EOPNOTSUPP``: only the kernel could do this, and it enforces nothing here."""


class NotInScopeError(Error, PermissionError):
    """``EPERM``: this process is outside the scope of the reservation."""


class TimedOutError(Error, TimeoutError):
    """``ETIMEDOUT``: the agent did not confirm specific ports in time. The request is cancelled."""
