"""With asyncio."""

from __future__ import annotations

import asyncio

import pytest
from test_kernel import stopped_agent  # noqa: F401

import portkeep

pytestmark = pytest.mark.asyncio


async def test_async_with(mode):
    async with portkeep.reserve_async(2, require=mode) as r:
        assert r.enforcement == mode
        server = await asyncio.start_server(lambda _, writer: writer.close(), sock=r.bind_tcp())
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()


async def test_await(mode):
    r = await portkeep.reserve_async(require=mode)
    r.close()


async def test_specific_ports(agent):
    async with portkeep.reserve_async(2, at=20040) as r:
        assert r.ports == range(20040, 20042)
        with pytest.raises(portkeep.InUseError):
            await portkeep.reserve_async(at=20041)


async def test_the_loop_runs_while_the_agent_is_waited_for(stopped_agent):  # noqa: F811
    waiting = asyncio.ensure_future(portkeep.reserve_async(at=20050, timeout=60))
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert not waiting.done()
    info = portkeep.who(20050)
    assert info is None or info.state == "pending"
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert portkeep.who(20050) is None
