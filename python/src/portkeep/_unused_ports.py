"""The fixtures of pytest-asyncio, with the same names and scopes."""

from __future__ import annotations

from typing import Callable

import pytest

from ._lease import lease


@pytest.fixture
def unused_tcp_port(request: pytest.FixtureRequest) -> int:
    """A free TCP port, reserved until the test ends."""
    return lease(request, 1, "tcp").port


@pytest.fixture
def unused_udp_port(request: pytest.FixtureRequest) -> int:
    """A free UDP port, reserved until the test ends."""
    return lease(request, 1, "udp").port


@pytest.fixture(scope="session")
def unused_tcp_port_factory(request: pytest.FixtureRequest) -> Callable[[], int]:
    """A function that gives another free TCP port at each call, reserved until the session ends."""
    return lambda: lease(request, 1, "tcp").port


@pytest.fixture(scope="session")
def unused_udp_port_factory(request: pytest.FixtureRequest) -> Callable[[], int]:
    """A function that gives another free UDP port at each call, reserved until the session ends."""
    return lambda: lease(request, 1, "udp").port
