"""Lists of ports: one reservation of several blocks."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
import subprocess

import pytest
from conftest import binds

import portkeep
from portkeep import _ports


def blocks(text, transport=None):
    found, said = _ports.parse(text, transport)
    return f"{_ports.text(*found)}/{said}"


@pytest.mark.parametrize(
    ("text", "transport", "meaning"),
    [
        ("8443", None, "8443/tcp"),
        (8443, "udp", "8443/udp"),
        ("5000:5019", None, "5000-5019/tcp"),
        (" 443 , 80 ", None, "80,443/tcp"),
        ("80,81", None, "80-81/tcp"),
        ("5002,5000-5001", None, "5000-5002/tcp"),
        ("8000-8003,9000/tcp+udp", None, "8000-8003,9000/tcp+udp"),
        ("80/udp,443", "udp", "80,443/udp"),
        ("http,https", None, "80,443/tcp"),
        ("domain", "tcp+udp", "53/tcp+udp"),
    ],
)
def test_l1_one_syntax(text, transport, meaning):
    if str(text)[0].isalpha() and not os.path.exists("/etc/services"):
        pytest.skip("no /etc/services")
    assert blocks(text, transport) == meaning


@pytest.mark.parametrize(
    ("text", "transport"),
    [
        ("", None),
        ("80,", None),
        ("0", None),
        ("65536", None),
        ("90-80", None),
        ("1-2-3", None),
        ("80-", None),
        ("80:", None),
        ("-80", None),
        ("80--90", None),
        ("80 90", None),
        ("80,,443", None),
        ("80,79-81", None),
        ("80/sctp", None),
        ("80/tcp,81/udp", None),
        ("80/tcp", "udp"),
        ("no-such-service", None),
        (",".join(str(port) for port in range(2, 132, 2)), None),
    ],
)
def test_l1_what_is_not_in_it(text, transport):
    with pytest.raises(ValueError):
        portkeep.reserve(ports=text, transport=transport)


@pytest.mark.parametrize("beside", [{"count": 2}, {"at": 80}, {"align": 2}])
def test_a_list_says_how_many(beside):
    with pytest.raises(ValueError):
        portkeep.reserve(ports="8000,9000", **beside)
    with pytest.raises(TypeError):
        portkeep.reserve(ports=8000.5)


def test_l2_a_list_is_one_reservation(mode, request):
    if mode == "kernel":
        request.getfixturevalue("agent")
    bind = request.getfixturevalue("outsider") if mode == "kernel" else binds
    with portkeep.reserve(ports="20040-20041,20050", label="a long name of it", require=mode) as r:
        assert r.blocks == (range(20040, 20042), range(20050, 20051))
        assert tuple(r.ports) == (20040, 20041, 20050)
        assert (r.port, r.token, len(set(r.tokens))) == (20040, r.tokens[0], 2)
        assert repr(r) == f"<Reservation 20040-20041,20050/tcp 'a long name of it' ({mode})>"
        for port in r.ports:
            assert bind("tcp", port) == "EADDRINUSE"
        assert bind("tcp", 20042) == "bound"
        # Its ports, all of them, and no other.
        servers = [r.bind_tcp() for _ in r.ports]
        assert sorted(server.getsockname()[1] for server in servers) == list(r.ports)
        with pytest.raises(portkeep.Error) as caught:
            r.bind_tcp()
        assert caught.value.errno == errno.EADDRINUSE
        for server in servers:
            server.close()
        with r.bind_tcp(port=20050) as server:
            assert server.getsockname()[1] == 20050
        with pytest.raises(portkeep.Error) as caught:
            r.bind_tcp(port=20042)
        assert caught.value.errno == errno.EACCES
        assert r.environ()["PORTS"] == "20040,20041,20050" and r.environ()["PORT2"] == "20050"
    for port in r.ports:
        assert bind("tcp", port) == "bound"


def test_l2_others_see_one(agent):
    with portkeep.reserve(ports="20060,20062/tcp+udp", label="web") as r:
        for port in r.ports:
            info = portkeep.who(port, "udp")
            assert info is not None
            assert (info.blocks, info.name, info.token) == (r.blocks, "web", r.token)
        assert str(portkeep.who(20062)).startswith("20060,20062/tcp+udp, pid ")
        variables = r.environ()
        assert variables["PORTKEEP_TOKENS"] == ",".join(f"{token:016x}" for token in r.tokens)
        with socket.socket() as sock:
            portkeep.associate(sock, r.tokens[1])
            sock.bind(("127.0.0.1", 0))
            assert sock.getsockname()[1] == 20062


def test_l2_the_command_lists_one(mode, request):
    command = os.environ.get("PORTKEEP_TEST_COMMAND")
    if command is None:
        pytest.skip("PORTKEEP_TEST_COMMAND is not set")
    if mode == "kernel":
        request.getfixturevalue("agent")
    with portkeep.reserve(ports="20064,20066", label="joined", require=mode):
        listed = subprocess.run([command, "list", "20066", "--json"], capture_output=True, text=True, check=True)
        assert [(each["ports"], each["name"]) for each in json.loads(listed.stdout)] == [("20064,20066", "joined")]


def test_l2_all_or_nothing(mode, request):
    if mode == "kernel":
        request.getfixturevalue("agent")
    with portkeep.reserve(ports="20072", label="first", require=mode):
        with pytest.raises(portkeep.InUseError) as caught:
            portkeep.reserve(ports="20070,20072", require=mode)
        assert caught.value.errno == errno.EADDRINUSE and "20072/tcp" in str(caught.value)
    # The second block is bound, which is found out when the first one is claimed.
    with socket.create_server(("127.0.0.1", 20072)), pytest.raises(portkeep.InUseError):
        portkeep.reserve(ports="20070,20072", require=mode)
    assert binds("tcp", 20070) == "bound"
    portkeep.reserve(ports="20070,20072", require=mode).close()


def test_l3_a_list_of_one_block_is_a_block(mode, request):
    if mode == "kernel":
        request.getfixturevalue("agent")
    label = "twenty-four bytes of it."
    with portkeep.reserve(ports="20080,20081", label=label, require=mode) as r:
        assert r.ports == range(20080, 20082)
        if mode == "kernel":
            info = portkeep.who(20081)
            assert info is not None and info.name == label


def test_a_list_with_asyncio(agent):
    async def reserve():
        async with portkeep.reserve_async(ports="20090,20092") as r:
            return tuple(r.ports)

    assert asyncio.run(reserve()) == (20090, 20092)
