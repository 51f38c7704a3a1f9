"""Held mode and its limits."""

from __future__ import annotations

import errno
import os
import resource
import socket
import sys

import pytest
from conftest import binds

import portkeep
from portkeep import _held


def hold(*arguments, **named):
    return portkeep.reserve(*arguments, require="held", **named)


def test_specific_ports_that_are_in_use():
    with hold() as r:
        with pytest.raises(portkeep.InUseError) as caught:
            hold(at=r.port)
        assert caught.value.errno == errno.EADDRINUSE
    with hold(at=r.port) as again:
        assert again.port == r.port


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no memory files here")
def test_others_see_what_is_held():
    """`portkeep who` and `list` look for this among the descriptors of processes."""

    def shown():
        folder = "/proc/self/fd"
        paths = [f"{folder}/{number}" for number in os.listdir(folder)]
        links = [os.readlink(path) for path in paths if os.path.lexists(path)]
        return [link for link in links if link.startswith("/memfd:portkeep-held ")]

    with hold(2, transport="tcp+udp", label="a label") as r:
        (link,) = shown()
        words = link.removeprefix("/memfd:").removesuffix(" (deleted)").split(" ", 4)
        assert words[:3] == ["portkeep-held", f"{r.ports[0]}-{r.ports[-1]}", "3"]
        assert words[3].isdigit() and words[4] == "a label"
    assert shown() == []


@pytest.mark.parametrize("scope", ["user", "cgroup"])
def test_no_scope_but_the_process(scope):
    with pytest.raises(portkeep.NotEnforcedError) as caught:
        hold(scope=scope)
    assert caught.value.errno == errno.EOPNOTSUPP


def test_no_other_process_is_admitted():
    with pytest.raises(portkeep.NotEnforcedError) as caught:
        hold(also="user=0")
    assert caught.value.errno == errno.EOPNOTSUPP and "let others in" in str(caught.value)


def test_where_nothing_enforces(monkeypatch):
    """On another system the control codes are not even tried."""
    monkeypatch.setattr(sys, "platform", "darwin")
    assert portkeep.enforcement() == "held"
    with portkeep.reserve() as r:
        assert r.enforcement == "held"
    for call in (lambda: portkeep.reserve(require="kernel"), lambda: portkeep.who(80)):
        with pytest.raises(portkeep.NotEnforcedError) as caught:
            call()
        assert caught.value.errno == errno.ENOPROTOOPT


def test_binding_where_sockets_cannot_overlap(monkeypatch):
    """As on other systems: the holder closes first."""
    monkeypatch.setattr(_held, "_LINUX", False)
    with hold(2, transport="tcp+udp") as r:
        with r.bind_tcp(port=r.port), r.bind_udp() as datagrams:
            assert datagrams.getsockname()[1] in r.ports
            r.bind_tcp().close()
        r.let_go()
        assert binds("tcp", r.ports[1]) == "bound"


def test_a_released_port_can_be_bound_and_is_not_held_twice():
    with hold(4, transport="tcp+udp") as r:
        r.let_go()
        assert binds("tcp", r.ports[0]) == binds("udp", r.ports[3], host="::") == "bound"
        with pytest.raises(portkeep.InUseError):
            hold(at=r.ports[2])
        # The reservation may still use the ports itself.
        with r.bind_tcp() as server:
            assert server.getsockname()[1] in r.ports
    hold(at=r.ports[2]).close()


def test_a_full_search_finds_nothing_twice():
    reservations = [hold(3, align=4) for _ in range(50)]
    ports = [port for r in reservations for port in r.ports]
    assert len(set(ports)) == 150 and all(r.port % 4 == 0 for r in reservations)
    for r in reservations:
        r.close()


def test_a_drawn_port_is_not_drawn_again_while_it_is_in_use():
    with hold(2) as r, r.bind_tcp("127.0.0.1") as one, r.bind_tcp("127.0.0.1") as other:
        # The next draw would be of the first port, on an address that is free.
        with pytest.raises(portkeep.Error):
            r.bind_tcp("127.0.0.2")
        assert one.getsockname() != other.getsockname()


def test_a_forked_child_cannot_bind():
    with hold() as r:
        pid = os.fork()
        if pid == 0:
            try:
                r.bind_tcp()
            except portkeep.NotInScopeError:
                os._exit(0)
            os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0


def test_too_few_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        with pytest.raises(portkeep.Error) as caught:
            hold(100)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.errno == errno.EMFILE and "ulimit" in str(caught.value)


def test_no_room():
    with pytest.raises(portkeep.Error) as caught:
        hold(30000)
    assert caught.value.errno == errno.ENOSPC


def test_datagrams_to_a_holder_are_not_the_programs():
    with hold(transport="udp") as r:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"early", ("127.0.0.1", r.port))
        with r.bind_udp() as sock:
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                sock.recv(10)
