"""Shared by the tests. Those that need the kernel run where `portkeep up` was run, and are skipped elsewhere."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable

import pytest

import portkeep

pytest_plugins = ["pytester"]

NOBODY = 65534


def in_child(work: Callable[[], str], *, user: int | None = None) -> str:
    """The result of ``work`` in another process, as another user if one is named."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if user is not None:
                os.setgroups([])
                os.setgid(user)
                os.setuid(user)
            os.write(writing, work().encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading) as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    assert text, "the child failed"
    return text


def binds(transport: str, port: int, *, host: str = "127.0.0.1", reuse: bool = False, user: int | None = None) -> str:
    """How a bind in another process ends: ``bound``, ``EADDRINUSE``."""

    def bind() -> str:
        kind = socket.SOCK_STREAM if transport == "tcp" else socket.SOCK_DGRAM
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuse)
            try:
                sock.bind((host, port))
            except OSError as error:
                return errno.errorcode[error.errno or 0]
            return "bound"

    return in_child(bind, user=user)


@pytest.fixture
def kernel() -> None:
    """Skips the test where the kernel enforces nothing."""
    if portkeep.enforcement() != "kernel":
        if "PORTKEEP_REQUIRE_KERNEL" in os.environ:
            pytest.fail("PORTKEEP_REQUIRE_KERNEL is set, and the kernel enforces nothing here")
        pytest.skip("needs kernel enforcement: `portkeep up`")


@pytest.fixture
def outsider(kernel: None) -> Callable[..., str]:
    """Binds as another user, who is outside every scope of these tests."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    return lambda *words, **named: binds(*words, user=NOBODY, **named)


@pytest.fixture
def agent(kernel: None) -> None:
    """Skips the test where no agent confirms specific ports."""
    try:
        portkeep.reserve(at=20000, require="kernel").close()
    except portkeep.Error as error:
        if "PORTKEEP_REQUIRE_KERNEL" in os.environ:
            raise
        pytest.skip(f"needs the agent: {error}")


@pytest.fixture(params=["kernel", "held"])
def mode(request: pytest.FixtureRequest) -> str:
    """Runs the test in both modes."""
    if request.param == "kernel":
        request.getfixturevalue("kernel")
    return str(request.param)
