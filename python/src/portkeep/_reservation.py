"""The reservation as a context manager."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Sequence
from types import TracebackType

from . import _control, _held, _info, _ports
from ._errors import Error, NotEnforcedError, NotInScopeError
from ._types import Enforcement

_Address = tuple[object, ...]


class Reservation:
    """Ports that no outsider can bind; :func:`reserve` makes it. Closing it ends the reservation.

    Sockets that are already bound are not disturbed by its end.
    """

    def __init__(
        self,
        *,
        tokens: tuple[int, ...],
        blocks: _ports.Blocks,
        transport: str,
        scope: str,
        label: str,
        owner: socket.socket | None = None,
        held: tuple[_held.Block, ...] = (),
    ) -> None:
        self.tokens = tokens
        """The token of each block."""
        self.blocks = blocks
        """The ports as blocks, lowest first: one ``range``, or several of a list."""
        self.transport = transport
        """``"tcp"``, ``"udp"`` or ``"tcp+udp"``."""
        self.scope = scope
        """The processes that may use it: ``"process"``, ``"user"`` or ``"cgroup"``."""
        self.label = label
        self._owner = owner
        self._held = held

    @property
    def token(self) -> int:
        """Its name. A process in the scope uses it with :func:`associate`. Of a list, that of the first block."""
        return self.tokens[0]

    @property
    def ports(self) -> Sequence[int]:
        """The ports: a ``range``, of a list a ``tuple``."""
        return _ports.all_of(self.blocks)

    @property
    def port(self) -> int:
        """The first port."""
        return self.blocks[0][0]

    @property
    def enforcement(self) -> Enforcement:
        """``"kernel"``: no outsider can bind the ports. ``"held"``: this process keeps them bound."""
        return "held" if self._held else "kernel"

    def bind_tcp(self, host: str = "127.0.0.1", port: int = 0) -> socket.socket:
        """A socket that listens on a free port of the block, or on this one."""
        sock = self._bound("tcp", host, port)
        try:
            sock.listen()
        except BaseException:
            sock.close()
            raise
        return sock

    def bind_udp(self, host: str = "127.0.0.1", port: int = 0) -> socket.socket:
        """A UDP socket on a free port of the block, or on this one."""
        return self._bound("udp", host, port)

    def bind(self, sock: socket.socket, address: _Address) -> int:
        """Bind a socket of your own, ``address`` being as for ``socket.bind``; port 0: any free one. Returns the port."""
        transport = "udp" if sock.type == socket.SOCK_DGRAM else "tcp"
        port = address[1]
        if transport not in self.transport.split("+"):
            raise Error(errno.EINVAL, f"the reservation is for {self.transport}, the socket is {transport}")
        if port != 0 and port not in self.ports:
            raise Error(errno.EACCES, f"port {port} is outside the reservation {_ports.text(*self.blocks)}")
        # Port 0: out of the first block that has a free one.
        *others, last = [i for i, block in enumerate(self.blocks) if port == 0 or port in block]
        for i in others:
            try:
                return self._bind_in(i, sock, transport, address)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
        return self._bind_in(last, sock, transport, address)

    def _bind_in(self, block: int, sock: socket.socket, transport: str, address: _Address) -> int:
        try:
            if self._held:
                return self._held[block].bind(sock, transport, address)
            associate(sock, self.tokens[block])
            sock.bind(address)
        except Error:
            raise
        except OSError as error:
            raise self._why_not_bound(error, address[1]) from error
        return int(sock.getsockname()[1])

    def associate(self, sock: socket.socket) -> None:
        """Let an unbound socket take its port out of the reservation; of a list, out of its first block.

        Its ``bind`` to port 0 gets a free port of the block, and its ``connect`` without ``bind`` a source port. A UDP
        socket has to do one of the two before it sends. Needs the kernel; :meth:`bind` works in held mode, too.
        """
        if self._held:
            raise NotEnforcedError(errno.EOPNOTSUPP, "a held reservation cannot be associated: use Reservation.bind")
        associate(sock, self.token)

    def environ(self) -> dict[str, str]:
        """The variables that ``portkeep run`` sets, for a child process that binds the ports.

        They are PORT (the first), PORT0, PORT1, ..., PORTS (comma-separated), <LABEL>_PORT, PORTKEEP_TOKEN (the first),
        PORTKEEP_TOKENS and PORTKEEP_ENFORCEMENT. Includes :meth:`let_go`.
        """
        self.let_go()
        variables = {"PORT": str(self.port), "PORTS": ",".join(map(str, self.ports))}
        variables.update((f"PORT{i}", str(port)) for i, port in enumerate(self.ports))
        if self.label:
            name = "".join(c.upper() if c.isascii() and c.isalnum() else "_" for c in self.label)
            # No shell can read a variable that begins with a digit.
            variables[f"_{name}_PORT" if name[0].isdigit() else f"{name}_PORT"] = str(self.port)
        if not self._held:
            variables["PORTKEEP_TOKEN"] = f"{self.token:016x}"
            variables["PORTKEEP_TOKENS"] = ",".join(f"{token:016x}" for token in self.tokens)
        variables["PORTKEEP_ENFORCEMENT"] = self.enforcement
        return variables

    def let_go(self) -> None:
        """Let other code bind the ports by number: call it before you start a server that gets a port number.

        The kernel needs nothing for that. In held mode this process stops holding the ports, or the server could not
        bind them; then they are only as safe as any free port that no automatic choice uses.
        """
        for block in self._held:
            block.let_go()

    def close(self) -> None:
        """End the reservation. A process that inherited it by fork only closes its copy."""
        for block in self._held:
            block.close()
        if self._owner is not None and self._owner.fileno() >= 0:
            for token in self.tokens:
                # Closing is not enough: a forked child may have a copy of the descriptor. It fails if the reservation is
                # another process's, or an administrator ended it.
                with contextlib.suppress(OSError):
                    _control.release(self._owner, token)
            self._owner.close()

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        label = f" {self.label!r}" if self.label else ""
        return f"<Reservation {_ports.text(*self.blocks)}/{self.transport}{label} ({self.enforcement})>"

    def _bound(self, transport: str, host: str, port: int) -> socket.socket:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM if transport == "tcp" else socket.SOCK_DGRAM)
        try:
            if transport == "tcp" and os.name == "posix":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.bind(sock, (host, port))
        except BaseException:
            sock.close()
            raise
        return sock

    def _why_not_bound(self, error: OSError, port: object) -> OSError:
        if error.errno == errno.EADDRINUSE and port == 0:
            return Error(error.errno, f"every port of the reservation {_ports.text(*self.blocks)} is in use")
        if error.errno == errno.EADDRINUSE:
            return Error(error.errno, f"port {port} of the reservation is in use")
        if error.errno == errno.EACCES and _info.lookup(self.token) is None:
            return Error(error.errno, "the reservation has ended: reserve again")
        return error


_NOT_ASSOCIATED = {
    errno.ENOENT: "no such reservation, or it has ended",
    errno.EPERM: 'this process is outside the scope of the reservation: reserve with scope="user" or "cgroup"',
    errno.EOPNOTSUPP: "only TCP and UDP sockets can be associated",
    errno.ENOPROTOOPT: "the kernel enforces no reservations here: an administrator runs `portkeep up`",
}


def associate(sock: socket.socket, token: int) -> None:
    """Let an unbound socket take its port out of a reservation, in any process of its scope.

    A child has the token in its environment: ``int(os.environ["PORTKEEP_TOKEN"], 16)``.
    """
    if not 0 < token < 1 << 64:
        raise ValueError("a token is an int of 64 bits and not 0")
    try:
        _control.associate(sock, token)
    except OSError as error:
        number = error.errno or 0
        if number == errno.EPERM:
            raise NotInScopeError(number, _NOT_ASSOCIATED[number]) from error
        if number == errno.ENOPROTOOPT:
            raise NotEnforcedError(number, _NOT_ASSOCIATED[number]) from error
        if number == errno.EINVAL and sock.getsockname()[1]:
            raise Error(number, "the socket is already bound: associate it before bind and connect") from error
        if number == errno.EINVAL:
            message = "the reservation is of another transport or network namespace than the socket"
            raise Error(number, message) from error
        if number in _NOT_ASSOCIATED:
            raise Error(number, _NOT_ASSOCIATED[number]) from error
        raise
