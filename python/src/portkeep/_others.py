"""Others that a reservation admits in addition to its scope (rule R11)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from . import _control

_MOST = 4
_UNIT = re.compile(r"[A-Za-z0-9:._\\@-]*[A-Za-z0-9:._\\-]\.(service|scope)")
# The next number means "none" to the kernel.
_MOST_ID = (1 << 32) - 2


def parse(also: str | Iterable[str]) -> tuple[_control.Other, ...]:
    """One or several of ``unit=NAME``, ``user=NAME`` and ``group=NAME``, with users and groups looked up."""
    words = [also] if isinstance(also, str) else list(also)
    if len(words) > _MOST:
        raise ValueError(f"at most {_MOST} users, groups and units can be admitted, and these are {len(words)}")
    for n, word in enumerate(words):
        if word in words[:n]:
            raise ValueError(f"{word} is named twice")
    # Two names can be one user's.
    return tuple(dict.fromkeys(map(_other, words)))


def _other(word: str) -> _control.Other:
    if not isinstance(word, str):
        raise TypeError(f"also is a str or several, not {type(word).__name__}")
    kind, _, name = word.partition("=")
    if kind == "unit":
        if not _UNIT.fullmatch(name) or len(name) >= _control.NAME_BYTES:
            raise ValueError(f"{name!r} is not the name of a systemd service or scope: write it as docker.service")
        return _control.Other(_control.SCOPES.index("unit"), 0, name.encode())
    if kind in ("user", "group") and name:
        return _control.Other(_control.SCOPES.index(kind), _account(kind, name), b"")
    raise ValueError(f"{word!r} cannot be admitted: write unit=NAME, user=NAME or group=NAME")


def _account(kind: str, name: str) -> int:
    if name.isascii() and name.isdigit():
        if int(name) > _MOST_ID:
            raise ValueError(f"{name} is not a {kind}: 0 to {_MOST_ID}")
        return int(name)
    try:
        import grp
        import pwd

        return pwd.getpwnam(name).pw_uid if kind == "user" else grp.getgrnam(name).gr_gid
    except (ImportError, KeyError):
        raise ValueError(f"there is no {kind} {name}") from None
