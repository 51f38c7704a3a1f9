"""The words that arguments may be, and the checks of them."""

from __future__ import annotations

import operator
from typing import Literal

Transport = Literal["tcp", "udp", "tcp+udp"]
TRANSPORTS: tuple[Transport, ...] = ("tcp", "udp", "tcp+udp")
Scope = Literal["process", "user", "cgroup"]
Enforcement = Literal["kernel", "held"]


def check_int(name: str, value: object, low: int, high: int) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{name} is an int, not bool")
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} is an int, not {type(value).__name__}") from None
    if not low <= number <= high:
        raise ValueError(f"{name} is from {low} to {high}, not {number}")
    return number


def check_port(name: str, value: object) -> int:
    return check_int(name, value, 1, 65535)


def check_word(name: str, value: object, words: tuple[str, ...]) -> str:
    if value not in words:
        raise ValueError(f"{name} is one of {', '.join(map(repr, words))}, not {value!r}")
    return str(value)


def check_transport(value: object) -> str:
    return check_word("transport", value, TRANSPORTS)
