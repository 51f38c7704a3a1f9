"""Wrong arguments are refused before the kernel is asked."""

import pytest

import portkeep


@pytest.mark.parametrize("call", [portkeep.reserve, portkeep.reserve_async])
@pytest.mark.parametrize(
    "named",
    [
        {"count": "4"},
        {"count": 1.5},
        {"count": None},
        {"count": True},
        {"at": True},
        {"at": "http"},
        {"label": 7},
        {"label": b"web"},
        {"timeout": "long"},
        {"also": [7]},
        {"also": [b"user=root"]},
    ],
)
def test_wrong_types(call, named):
    with pytest.raises((TypeError, ValueError)) as caught:
        call(**named)
    assert next(iter(named)) in str(caught.value) or "timeout" in named


@pytest.mark.parametrize("call", [portkeep.reserve, portkeep.reserve_async])
@pytest.mark.parametrize(
    "named",
    [
        {"count": 0},
        {"count": -1},
        {"count": 65536},
        {"at": 0},
        {"at": 65536},
        {"at": 65535, "count": 2},
        {"transport": "sctp"},
        {"transport": 6},
        {"align": 0},
        {"align": 3},
        {"at": 5001, "align": 2},
        {"scope": "everybody"},
        {"label": "é" * 13},
        {"label": "a\0b"},
        {"require": "luck"},
        {"timeout": -1},
        {"timeout": float("nan")},
        {"also": "docker.service"},
        {"also": "unit=docker"},
        {"also": "unit=getty@.service"},
        {"also": "unit=.service"},
        {"also": "unit=a/b.service"},
        {"also": f"unit={'n' * 120}.service"},
        {"also": "cgroup=/web.slice"},
        {"also": "user="},
        {"also": "user=nobody is called this"},
        {"also": "group=4294967295"},
        {"also": ["user=1", "user=1"]},
        {"also": [f"group={n}" for n in range(5)]},
    ],
)
def test_wrong_values(call, named):
    with pytest.raises(ValueError):
        call(**named)


@pytest.mark.parametrize("arguments", [("80",), (0,), (70000,), (80, "icmp")])
def test_who_checks_its_arguments(arguments):
    with pytest.raises((TypeError, ValueError)):
        portkeep.who(*arguments)


@pytest.mark.parametrize("token", [0, -1, 1 << 64])
def test_a_token_has_64_bits(token):
    import socket

    with socket.socket() as sock, pytest.raises(ValueError):
        portkeep.associate(sock, token)


def test_errors_are_os_errors():
    error = portkeep.InUseError(98, "80/tcp is in use")
    assert (error.errno, error.strerror, error.holder) == (98, "80/tcp is in use", None)
    assert issubclass(portkeep.NotInScopeError, PermissionError)
    assert issubclass(portkeep.TimedOutError, TimeoutError)
