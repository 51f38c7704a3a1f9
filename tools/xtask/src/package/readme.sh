# A Debian on which Portkeep was never installed: the .deb, the wheel, and the examples of the README as they are written.
# `examples` has them: two lines for a shell, and two programs, compiled.

ok deb --install "/packages/new/portkeep_${new}_amd64.deb"
# There is no systemd here; this is what the service starts.
chroot "$root" portkeep agent --up >"$root/run/agent" 2>&1 &
agent=$!
for _ in $(seq 100); do in_root portkeep status --json 2>/dev/null | grep -q '"agent":true' && break; sleep 0.1; done
export PYTHONDONTWRITEBYTECODE=1
log() { "$@" >"$root/run/log" 2>&1; }
ok log in_root python3 -m venv --system-site-packages /run/venv
ok log in_root sh -c '/run/venv/bin/pip install --no-index /packages/portkeep-*.whl'
shown 'installed: the .deb, and the wheel with pip'

mkdir "$root/run/suite"
cat >"$root/run/suite/test_ports.py" <<'END'
import socket

import pytest


@pytest.mark.parametrize("number", range(40))
def test_a_port_that_is_chosen_and_bound_later(number):
    with socket.socket() as chooser:
        chooser.bind(("", 0))
        port = chooser.getsockname()[1]
    assert 61000 <= port <= 65535
    socket.socket().bind(("", port))
END
# `pytest -n 8`: without the file's own cache, which would be left.
ok log chroot "$root" sh -c 'cd /run/suite && PYTEST_ADDOPTS="-p no:cacheprovider" sh /examples/suite'
said '40 passed'
cat >"$root/run/suite/test_ports.py" <<'END'
import portkeep


def test_the_fixture_and_the_library(free_port):
    with portkeep.reserve(4, label="web") as r:
        assert r.enforcement == "kernel" and free_port not in r.ports
        r.bind_tcp()
END
ok log chroot "$root" sh -c 'cd /run/suite && /run/venv/bin/python -m pytest -p no:cacheprovider'
said '1 passed'
shown 'a flaky test suite under run --ephemeral, and the package for Python with its pytest plugin'

ok log chroot "$root" sh /examples/service
in_root portkeep who 8443 | grep -q tomcat.service || fail 'port 8443 is not reserved for tomcat.service'
in_root python3 -c 'import socket; socket.socket().bind(("", 8443))' 2>/dev/null && fail 'port 8443 can be bound'
shown 'a service'

for language in rust c; do
	ok log chroot "$root" "/examples/$language"
	said ports:
	shown "a program in $language"
done

kill "$agent"
wait "$agent" || true
ok log in_root /run/venv/bin/pip uninstall --yes portkeep
rm -rf "$root/run/suite" "$root/run/venv"
ok deb --purge portkeep
gone
in_root getent group portkeep >/dev/null && fail 'the group is left'
everything >"$root/run/after"
diff "$root/run/before" "$root/run/after" || fail 'files are left'
shown 'removed: nothing is left'
