"""The examples of the README run as written."""

from __future__ import annotations

from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()
EXAMPLES = [block.split("```")[0] for block in README.split("```python\n")[1:]]


def test_the_first_example(capfd):
    exec(EXAMPLES[0], variables := {})
    variables["server"].close()
    assert "range(" in (printed := capfd.readouterr().out) and "serving on" in printed


def test_the_fixtures(pytester):
    server = "import socket, pytest\ndef start_server(port): return socket.create_server(('127.0.0.1', port))\n"
    pytester.makepyfile(server + EXAMPLES[1].replace("        ...", "        pass"))
    pytester.runpytest_subprocess().assert_outcomes(passed=2)
