"""Only the kernel can do this."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from conftest import NOBODY, binds, in_child

import portkeep


@pytest.fixture(autouse=True)
def _kernel(kernel):
    pass


def test_associate_then_bind_or_connect():
    with portkeep.reserve(4) as r:
        with socket.socket() as server, socket.socket() as client:
            r.associate(server)
            server.bind(("127.0.0.1", 0))
            server.listen()
            r.associate(client)
            client.connect(server.getsockname())
            assert {server.getsockname()[1], client.getsockname()[1]} <= set(r.ports)


def test_a_child_of_the_user_associates_by_token():
    child = """
import os, socket, portkeep
s = socket.socket()
portkeep.associate(s, int(os.environ["PORTKEEP_TOKEN"], 16))
s.bind(("", 0))
print(s.getsockname()[1])
"""

    def run(r):
        words = [sys.executable, "-c", child]
        return subprocess.run(words, env={**os.environ, **r.environ()}, capture_output=True, text=True)

    with portkeep.reserve() as r:
        assert run(r).stdout == f"{r.port}\n"
    with portkeep.reserve(scope="cgroup") as r:
        assert run(r).stdout == f"{r.port}\n"
    with portkeep.reserve(scope="process") as r:
        assert "NotInScopeError: [Errno 1]" in run(r).stderr


def test_strict_ports_are_for_associated_sockets():
    with portkeep.reserve(strict=True) as r:
        with socket.socket() as sock, pytest.raises(OSError) as caught:
            sock.bind(("127.0.0.1", r.port))
        assert caught.value.errno == errno.EADDRINUSE
        r.bind_tcp().close()


def test_r11_others_are_let_in_beside_the_scope(outsider):
    with portkeep.reserve(2, scope="process", transport="tcp+udp", also=f"user={NOBODY}") as r:
        assert outsider("tcp", r.ports[1]) == outsider("udp", r.ports[0]) == "bound"
        assert binds("tcp", r.port) == "EADDRINUSE"
    name = pwd.getpwuid(NOBODY).pw_name
    with portkeep.reserve(also=["user=1", f"user={name}"]) as r:
        assert outsider("tcp", r.port) == "bound"
    with portkeep.reserve(also=("unit=docker.service", f"group={NOBODY}")) as r:
        assert outsider("tcp", r.port) == "bound"
    with portkeep.reserve(also=["unit=docker.service", "user=1"]) as r:
        assert outsider("tcp", r.port) == "EADDRINUSE"


def test_r11_others_of_a_list_and_of_asyncio(outsider, agent):
    async def reserve():
        async with portkeep.reserve_async(ports="20100,20102", also=f"user={NOBODY}") as r:
            return [outsider("tcp", port) for port in r.ports]

    assert asyncio.run(reserve()) == ["bound", "bound"]


def test_r11_the_command_shows_others():
    command = os.environ.get("PORTKEEP_TEST_COMMAND")
    if command is None:
        pytest.skip("PORTKEEP_TEST_COMMAND is not set")
    with portkeep.reserve(also=["unit=docker.service", "group=0", "user=root"], label="let in"):
        listed = subprocess.run([command, "list", "--json"], capture_output=True, text=True, check=True)
        also = next(each["also"] for each in json.loads(listed.stdout) if each["name"] == "let in")
    assert also == [
        {"kind": "user", "value": "root"},
        {"kind": "group", "value": "root"},
        {"kind": "unit", "value": "docker.service"},
    ]


def test_association_errors():
    with portkeep.reserve() as r:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, pytest.raises(portkeep.Error) as caught:
            r.associate(sock)
        assert caught.value.errno == errno.EINVAL and "transport" in str(caught.value)
        with r.bind_tcp() as sock, pytest.raises(portkeep.Error) as caught:
            r.associate(sock)
        assert caught.value.errno == errno.EINVAL and "bound" in str(caught.value)
        with socket.socket(socket.AF_UNIX) as sock, pytest.raises(portkeep.Error) as caught:
            r.associate(sock)
        assert caught.value.errno == errno.EOPNOTSUPP
    with socket.socket() as sock, pytest.raises(portkeep.Error) as caught:
        r.associate(sock)
    assert caught.value.errno == errno.ENOENT


def test_who():
    with portkeep.reserve(2, label="web", transport="tcp+udp") as r:
        for transport in ("tcp", "udp", "tcp+udp"):
            info = portkeep.who(r.ports[1], transport)
            assert info is not None
            assert (info.ports, info.transport, info.state, info.scope) == (r.ports, "tcp+udp", "active", "user")
            assert (info.name, info.uid, info.token, info.persistent) == ("web", os.getuid(), r.token, False)
            assert f"{info}".endswith("as 'web', reserved just now") or "reserved" in str(info)
    assert portkeep.who(r.port) is None


def test_specific_ports_and_their_holder(agent):
    with portkeep.reserve(3, at=20010, label="first") as r:
        assert r.ports == range(20010, 20013)
        with pytest.raises(portkeep.InUseError) as caught:
            portkeep.reserve(2, at=20009)
        error = caught.value
        assert error.errno == errno.EADDRINUSE
        assert error.holder is not None and error.holder.name == "first"
        assert "20010/tcp belongs to pid" in str(error) and "'first'" in str(error)


def test_a_port_in_use_is_refused(agent):
    with socket.create_server(("127.0.0.1", 20020)):
        with pytest.raises(portkeep.InUseError) as caught:
            portkeep.reserve(at=20020)
        assert caught.value.holder is None
    portkeep.reserve(at=20020).close()


def test_no_room():
    with pytest.raises(portkeep.Error) as caught:
        portkeep.reserve(60000)
    assert caught.value.errno in (errno.ENOSPC, errno.EDQUOT)


def test_the_quota_of_a_user():
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")

    def too_many() -> str:
        with pytest.raises(portkeep.Error) as caught:
            portkeep.reserve(4000)
        return str(caught.value)

    assert f"[Errno {errno.EDQUOT}] 4000 ports are more than the quota" in in_child(too_many, user=NOBODY)


def test_held_beside_the_kernel():
    with portkeep.reserve(require="held") as r:
        assert r.enforcement == "held"
        with socket.socket() as sock, pytest.raises(portkeep.NotEnforcedError) as caught:
            r.associate(sock)
        assert caught.value.errno == errno.EOPNOTSUPP


def eventually_free(port):
    deadline = time.monotonic() + 10
    while portkeep.who(port) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_killed_process_leaves_nothing():
    code = "import portkeep, time; r = portkeep.reserve(); print(r.port, flush=True); time.sleep(100)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            port = int(child.stdout.readline())
            assert portkeep.who(port) is not None
        finally:
            child.kill()
    eventually_free(port)


@pytest.fixture
def stopped_agent(agent):
    """The agent does not answer: its process is stopped."""
    pid = int(os.environ.get("PORTKEEP_TEST_AGENT", "0"))
    if not pid:
        pytest.skip("needs an agent that may be stopped: PORTKEEP_TEST_AGENT is its pid")
    os.kill(pid, signal.SIGSTOP)
    yield
    os.kill(pid, signal.SIGCONT)


def test_the_wait_for_the_agent_has_a_limit(stopped_agent):
    with pytest.raises(portkeep.TimedOutError) as caught:
        portkeep.reserve(at=20030, timeout=0.1)
    assert caught.value.errno == errno.ETIMEDOUT
    assert portkeep.who(20030) is None


def test_ctrl_c_ends_the_wait_and_cancels_the_request(stopped_agent):
    # A shell starts background processes with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupt = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        portkeep.reserve(at=20031, timeout=60)
    interrupt.join()
    signal.signal(signal.SIGINT, before)
    assert portkeep.who(20031) is None
