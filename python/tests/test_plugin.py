"""The fixtures, in real pytest runs of their own, with pytest-asyncio and pytest-xdist."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import NOBODY

import portkeep

UNUSED = "[pytest]\nportkeep_unused_ports = true\nasyncio_mode = auto\n"
NEIGHBOURS = Path(__file__).with_name("neighbours.py")


def test_a_port_stays_reserved_until_the_test_ends(pytester):
    pytester.makepyfile("""
        import socket, portkeep

        seen = []

        def test_one(free_port, free_ports):
            row = free_ports(3)
            assert row == list(range(row[0], row[0] + 3)) and free_port not in row
            seen.extend([free_port, *row])
            for port in seen:
                if portkeep.enforcement() == "kernel":
                    assert portkeep.who(port, "tcp").name == portkeep.who(port, "udp").name == "test_one"
                with socket.create_server(("", port)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
                    datagrams.bind(("", port))

        def test_other():
            if portkeep.enforcement() == "kernel":
                assert not any(map(portkeep.who, seen))
            portkeep.reserve(require="held").close()
    """)
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["portkeep: *"])


def test_long_and_strange_test_names(pytester):
    pytester.makepyfile("""
        import pytest

        @pytest.mark.parametrize("what", ["é" * 40, "\\x00", "x" * 100])
        def test_name(what, free_port):
            assert free_port > 1024
    """)
    pytester.runpytest_subprocess().assert_outcomes(passed=3)


# With the fixtures of both plugins: which of them a test gets is seen by the pool and by the end of the reservation.
ASYNCIO_TESTS = """
    import asyncio, portkeep, pytest

    async def test_tcp(unused_tcp_port, unused_tcp_port_factory):
        for port in (unused_tcp_port, unused_tcp_port_factory(), unused_tcp_port_factory()):
            server = await asyncio.start_server(lambda *_: None, "localhost", port)
            server.close()
            await server.wait_closed()
        {check}

    async def test_udp(unused_udp_port, unused_udp_port_factory):
        for port in (unused_udp_port, unused_udp_port_factory()):
            transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                asyncio.DatagramProtocol, local_addr=("127.0.0.1", port))
            transport.close()
        {check}
"""


def test_the_fixtures_of_pytest_asyncio_are_left_alone(pytester):
    pytester.makepyfile(ASYNCIO_TESTS.format(check="assert not 61000 <= port <= 65535"))
    pytester.makeini("[pytest]\nasyncio_mode = auto\n")
    pytester.runpytest_subprocess().assert_outcomes(passed=2)


@pytest.mark.parametrize("order", [[], ["-p", "no:asyncio", "-p", "pytest_asyncio.plugin"]])
def test_the_fixtures_of_pytest_asyncio_are_replaced_by_the_option(pytester, order):
    pytester.makepyfile(ASYNCIO_TESTS.format(check="assert 61000 <= port <= 65535 or 10000 <= port < 32768"))
    pytester.makeini(UNUSED)
    pytester.runpytest_subprocess(*order).assert_outcomes(passed=2)


def test_a_fixture_of_the_project_wins(pytester):
    pytester.makeconftest("import pytest\n@pytest.fixture\ndef unused_tcp_port(): return 7")
    pytester.makepyfile("def test_it(unused_tcp_port): assert unused_tcp_port == 7")
    pytester.makeini(UNUSED)
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def test_require_kernel(pytester):
    pytester.makepyfile("def test_it(free_port): pass")
    pytester.makeini("[pytest]\nportkeep_require_kernel = true\n")
    result = pytester.runpytest_subprocess()
    if portkeep.enforcement() == "kernel":
        result.assert_outcomes(passed=1)
    else:
        result.assert_outcomes(errors=1)
        result.stdout.fnmatch_lines(["*NotEnforcedError: *portkeep up*"])


def test_with_xdist_no_two_tests_have_one_port(pytester):
    """Each test keeps its port while its neighbours choose theirs."""
    pytester.makepyfile("""
        import socket, time, pytest

        @pytest.mark.parametrize("number", range(200))
        def test_it(number, free_port, unused_tcp_port, unused_udp_port):
            time.sleep(0.01)
            with socket.create_server(("127.0.0.1", free_port)), socket.create_server(("127.0.0.1", unused_tcp_port)):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
                    datagrams.bind(("127.0.0.1", unused_udp_port))
    """)
    pytester.makeini(UNUSED)
    pytester.runpytest_subprocess("-n", "4").assert_outcomes(passed=200)


LOST = """
    import os, socket, threading, time, pytest

    def serve(server, nonce):
        connection, _ = server.accept()
        connection.sendall(nonce)
        connection.close()

    @pytest.mark.parametrize("number", range(1000))
    def test_it(number, {fixture}):
        port, nonce = {fixture}, os.urandom(16)
        time.sleep(0.002)  # As long as a server may need to start, and its neighbours to bind.
        with socket.create_server(("127.0.0.1", port)) as server:
            thread = threading.Thread(target=serve, args=(server, nonce))
            thread.start()
            with socket.create_connection(("127.0.0.1", port)) as client:
                assert client.recv(16) == nonce
            thread.join()
"""


@pytest.mark.parametrize("fixture", ["free_port", "unused_tcp_port"])
def test_none_of_1000_ports_is_lost_to_hostile_neighbours(pytester, kernel, fixture):
    if os.geteuid() != 0:
        pytest.skip("needs root: the neighbours are another user")
    pytester.makepyfile(LOST.format(fixture=fixture))
    pytester.makeini(UNUSED)
    words = [sys.executable, str(NEIGHBOURS), str(NOBODY)]
    neighbours = [subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(3)]
    try:
        for neighbour in neighbours:
            assert neighbour.stdout is not None
            assert neighbour.stdout.readline() == b"ready\n"
        result = pytester.runpytest_subprocess("-n", "4", "-q")
        # They were there all the time.
        assert all(neighbour.poll() is None for neighbour in neighbours)
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.communicate()
    result.assert_outcomes(passed=1000)


def test_neighbours_bind_what_is_not_reserved():
    """The test above can fail: a port that nobody reserved is taken while it is watched."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    words = [sys.executable, str(NEIGHBOURS), str(os.getuid()), str(port)]
    neighbour = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert neighbour.stdout is not None
        assert neighbour.stdout.readline() == "ready\n"
        assert neighbour.stdout.readline() == f"bound {port}\n"
    finally:
        neighbour.kill()
        neighbour.communicate()
