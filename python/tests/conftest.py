"""What the tests share. Those that need the kernel run where `portkeep up` was run, and are skipped elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

import portkeep

pytest_plugins = ["pytester"]

NOBODY = 65534

# Binds TRANSPORT HOST PORT REUSE and says how that ends.
BINDS = """
import errno, socket, sys
transport, host, port, reuse = sys.argv[1:]
kind = socket.SOCK_STREAM if transport == "tcp" else socket.SOCK_DGRAM
s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind)
if reuse == "True":
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
try:
    s.bind((host, int(port)))
    print("bound")
except OSError as error:
    print(errno.errorcode[error.errno])
"""


def binds(transport: str, port: int, *, host: str = "127.0.0.1", reuse: bool = False, user: int | None = None) -> str:
    """How a bind in another process ends: ``bound``, ``EADDRINUSE``."""
    words = [sys.executable, "-c", BINDS, transport, host, str(port), str(reuse)]
    return subprocess.run(words, capture_output=True, text=True, check=True, user=user).stdout.strip()


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
