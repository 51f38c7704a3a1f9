"""A reservation in both modes."""

from __future__ import annotations

import doctest
import errno
import os
import socket
import subprocess
import sys

import pytest
from conftest import binds

import portkeep


def test_a_block(mode):
    with portkeep.reserve(4, label="web", require=mode) as r:
        assert r.enforcement == mode
        assert len(r.ports) == 4 and r.ports.step == 1 and r.port == r.ports[0]
        assert r.token > 0
        assert r.scope == ("user" if mode == "kernel" else "process")
        assert repr(r) == f"<Reservation {r.ports[0]}-{r.ports[-1]}/tcp 'web' ({mode})>"


def test_the_example_of_the_front_page():
    assert doctest.testmod(portkeep).attempted > 0
    assert doctest.testmod(portkeep).failed == 0


def test_bind_tcp_draws_every_port_once(mode):
    with portkeep.reserve(3, require=mode) as r:
        servers = [r.bind_tcp() for _ in r.ports]
        assert sorted(server.getsockname()[1] for server in servers) == list(r.ports)
        with pytest.raises(portkeep.Error) as caught:
            r.bind_tcp()
        assert caught.value.errno == errno.EADDRINUSE
        client = socket.create_connection(servers[0].getsockname())
        client.close()
        for server in servers:
            server.close()


def test_a_port_that_was_given_up_is_drawn_again(mode):
    with portkeep.reserve(2, require=mode) as r:
        for _ in range(6):
            with r.bind_tcp() as server, socket.create_connection(server.getsockname()) as client:
                # The server closes first, so its side stays in TIME_WAIT.
                server.accept()[0].close()
                assert client.recv(1) == b""


def test_bind_udp_on_every_address(mode):
    with portkeep.reserve(2, transport="udp", require=mode) as r:
        with r.bind_udp("0.0.0.0", r.ports[1]) as one, r.bind_udp("::1", r.ports[0]) as other:
            assert one.getsockname() == ("0.0.0.0", r.ports[1])
            assert other.getsockname()[:2] == ("::1", r.ports[0])
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.sendto(b"hello", ("127.0.0.1", r.ports[1]))
            assert one.recv(10) == b"hello"


def test_both_transports(mode):
    with portkeep.reserve(transport="tcp+udp", require=mode) as r:
        with r.bind_tcp() as stream, r.bind_udp() as datagrams:
            assert stream.getsockname() == datagrams.getsockname()


def test_the_wrong_transport_and_port(mode):
    with portkeep.reserve(2, require=mode) as r:
        with pytest.raises(portkeep.Error) as caught:
            r.bind_udp()
        assert caught.value.errno == errno.EINVAL
        with pytest.raises(portkeep.Error) as caught:
            r.bind_tcp(port=r.ports[-1] + 1)
        assert caught.value.errno == errno.EACCES
        with r.bind_tcp(port=r.port), pytest.raises(portkeep.Error) as caught:
            r.bind_tcp(port=r.port)
        assert caught.value.errno == errno.EADDRINUSE


def test_a_socket_of_the_program(mode):
    with portkeep.reserve(2, align=2, require=mode) as r, socket.socket(socket.AF_INET6) as sock:
        assert r.port % 2 == 0
        port = r.bind(sock, ("::", 0))
        assert port in r.ports and sock.getsockname()[1] == port
        # Options are as the program set them.
        if mode == "held":
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 0


def test_another_process_cannot_bind_what_is_not_given_out(mode, request):
    bind = request.getfixturevalue("outsider") if mode == "kernel" else binds
    with portkeep.reserve(transport="tcp+udp", require=mode) as r:
        for transport in ("tcp", "udp"):
            for host in ("127.0.0.1", "0.0.0.0", "::1", "::"):
                assert bind(transport, r.port, host=host) == "EADDRINUSE"
                assert bind(transport, r.port, host=host, reuse=True) == "EADDRINUSE"
    assert bind("tcp", r.port) in ("bound", "EADDRINUSE")


def test_sockets_outlive_the_reservation(mode):
    with portkeep.reserve(require=mode) as r:
        server = r.bind_tcp()
    with server, socket.create_connection(server.getsockname()):
        server.accept()[0].close()


def test_close_twice_and_use_after(mode):
    r = portkeep.reserve(require=mode)
    r.close()
    r.close()
    if mode == "kernel":
        with pytest.raises(portkeep.Error) as caught:
            r.bind_tcp()
        assert caught.value.errno == errno.ENOENT


def test_a_child_process_binds(mode):
    child = """
import os, socket
s = socket.create_server(("127.0.0.1", int(os.environ["PORT1"])))
print(os.environ["PORTS"], os.environ["PORTKEEP_ENFORCEMENT"], os.environ["MY_WEB_PORT"])
"""
    with portkeep.reserve(2, label="my-web", require=mode) as r:
        environment = {**os.environ, **r.environ()}
        done = subprocess.run([sys.executable, "-c", child], env=environment, capture_output=True, text=True)
        assert done.stdout.split() == [f"{r.ports[0]},{r.ports[1]}", mode, str(r.port)], done.stderr


def test_labels_become_variables_that_shells_read(mode):
    with portkeep.reserve(label="9p.é", require=mode) as r:
        assert r.environ()["_9P___PORT"] == str(r.port)


def test_a_forked_child_ends_nothing(mode):
    with portkeep.reserve(require=mode) as r:
        pid = os.fork()
        if pid == 0:
            r.close()
            os._exit(0)
        os.waitpid(pid, 0)
        with r.bind_tcp() as server:
            assert server.getsockname()[1] == r.port
