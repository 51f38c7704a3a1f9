"""pytest fixtures for ports that stay reserved until the test ends.

``free_port`` is a number, ``free_ports(n)`` gives n in a row; both are free for TCP and UDP. With
``portkeep_unused_ports = true`` in the ini file, the fixtures of pytest-asyncio with the same purpose
(``unused_tcp_port`` and so on) get their ports here, too.
"""

from __future__ import annotations

from typing import Callable

import pytest

from . import _unused_ports
from ._info import enforcement
from ._lease import lease

FreePorts = Callable[[int], list[int]]
"""The type of ``free_ports``, for annotations."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "portkeep_unused_ports",
        "let Portkeep provide unused_tcp_port, unused_udp_port and their factories",
        type="bool",
        default=False,
    )
    parser.addini(
        "portkeep_require_kernel",
        "fail where the kernel does not enforce reservations, rather than only choose ports with care",
        type="bool",
        default=False,
    )


# Last, because the fixtures that are registered later win.
@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.getini("portkeep_unused_ports"):
        config.pluginmanager.register(_unused_ports, "portkeep-unused-ports")


def pytest_report_header() -> str:
    if enforcement() == "kernel":
        return "portkeep: the kernel enforces reserved ports"
    return "portkeep: no kernel enforcement, so ports are chosen with care and not protected"


@pytest.fixture
def free_port(free_ports: FreePorts) -> int:
    """A port that is free for TCP and UDP, reserved until the test ends."""
    return free_ports(1)[0]


@pytest.fixture
def free_ports(request: pytest.FixtureRequest) -> FreePorts:
    """A function: ``free_ports(n)`` is a list of n ports in a row, reserved until the test ends."""
    return lambda count: list(lease(request, count, "tcp+udp").ports)
