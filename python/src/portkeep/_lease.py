"""Reservations that end with a fixture."""

import pytest

from ._acquire import reserve
from ._control import LABEL_BYTES
from ._reservation import Reservation
from ._types import Transport


def lease(request: pytest.FixtureRequest, count: int, transport: Transport) -> Reservation:
    """Ports that other code may bind by number, until the scope of the fixture ends."""
    name = (request.node.name or "pytest").replace("\0", "")
    reservation = reserve(
        count,
        transport=transport,
        label=name.encode()[:LABEL_BYTES].decode(errors="ignore"),
        require="kernel" if request.config.getini("portkeep_require_kernel") else None,
    )
    request.addfinalizer(reservation.close)
    reservation.let_go()
    return reservation
