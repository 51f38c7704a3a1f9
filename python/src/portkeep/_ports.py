"""Lists of ports: how they are written (rules L1 and L3), and how their blocks are known as one reservation (L2)."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from itertools import chain

from ._types import TRANSPORTS, Transport, check_port

Blocks = tuple[range, ...]

_MOST_BLOCKS = 64
# A label of 24 bytes in the kernel: 16 of text, a zero, how many blocks, and a number in 6 digits.
_TEXT = 16
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def parse(ports: str | int, transport: Transport | None) -> tuple[Blocks, Transport]:
    """The blocks of a text, lowest first, and the transport that it or the argument says; ``"tcp"`` if neither does."""
    if isinstance(ports, int) and not isinstance(ports, bool):
        ports = str(check_port("ports", ports))
    if not isinstance(ports, str):
        raise TypeError(f"ports is a str or an int, not {type(ports).__name__}")
    words = []
    said = None
    for word in ports.split(","):
        word, slash, behind = word.partition("/")
        if slash:
            if behind.strip() not in TRANSPORTS:
                raise ValueError(f"{behind.strip()!r} is no transport: write tcp, udp or tcp+udp")
            if said not in (None, behind.strip()):
                raise ValueError(f"{ports!r} names different transports: make a reservation for each")
            said = behind.strip()
        words.append(word.strip())
    found: Transport = next((known for known in TRANSPORTS if known == (said or transport)), "tcp")
    if said and transport and said != transport:
        raise ValueError(f"{ports!r} says {said}, and transport is {transport!r}: say it once")
    return _joined(_block(word, found) for word in words), found


def _block(word: str, transport: Transport) -> range:
    if not word:
        raise ValueError("a port is missing: write 8080, 8080-8089 or 80,443")
    if not set(word) <= set("0123456789-: "):
        port = _service(word, transport)
        return range(port, port + 1)
    first, dash, last = word.replace(":", "-").partition("-")
    try:
        start, end = int(first), int(last if dash else first)
    except ValueError:
        raise ValueError(f"{word!r} is neither a port nor a range: write 8080 or 8080-8089") from None
    if not 1 <= start <= end <= 65535:
        raise ValueError(f"{word!r} is not within 1-65535, the lower port first")
    return range(start, end + 1)


def _service(name: str, transport: Transport) -> int:
    try:
        found = {socket.getservbyname(name, each) for each in transport.split("+")}
    except OSError:
        raise ValueError(f"{name!r} is neither a port, nor a range, nor a service for {transport}") from None
    if len(found) > 1:
        raise ValueError(f"{name!r} has different ports for TCP and UDP: name them apart")
    return found.pop()


def _joined(found: Iterable[range]) -> Blocks:
    blocks: list[range] = []
    for block in sorted(found, key=lambda block: block.start):
        if blocks and block.start < blocks[-1].stop:
            raise ValueError(f"port {block.start} is in the list twice")
        if blocks and block.start == blocks[-1].stop:
            blocks[-1] = range(blocks[-1].start, block.stop)
        else:
            blocks.append(block)
    if len(blocks) > _MOST_BLOCKS:
        raise ValueError(
            f"a list has at most {_MOST_BLOCKS} blocks, this one has {len(blocks)}: make several reservations"
        )
    return tuple(blocks)


def all_of(blocks: Blocks) -> Sequence[int]:
    """The ports of one block as a ``range``, of several as a ``tuple``."""
    return blocks[0] if len(blocks) == 1 else tuple(chain.from_iterable(blocks))


def text(*blocks: range) -> str:
    """``61000``, ``61000-61003``, ``80,443``."""
    return ",".join(f"{block[0]}" if len(block) == 1 else f"{block[0]}-{block[-1]}" for block in blocks)


def marked(label: str, blocks: int, number: int) -> bytes:
    """The label of each block of a list. ``number`` is one that other lists of the process do not have."""
    begin = label.encode()[:_TEXT].decode(errors="ignore").encode()
    digits = "".join(_DIGITS[number // 36**place % 36] for place in reversed(range(6)))
    return begin.ljust(_TEXT + 1, b"\0") + f"{chr(ord('0') - 1 + blocks)}{digits}".encode()


def mark(label: bytes) -> bytes | None:
    """The part that the labels of a list share, and no other label has."""
    return label if label[_TEXT] == 0 and label[_TEXT + 1] else None
