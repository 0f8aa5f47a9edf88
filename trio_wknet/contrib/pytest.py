"""Fixtures for tests of applications, with pytest-trio. In ``conftest.py``::

pytest_plugins = ["trio_wknet.contrib.pytest"]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from trio_wknet import open_engine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_wknet import Conn, Engine, Listener

HERE = "tcp://127.0.0.1"


@pytest.fixture
def wknet_reactors() -> int:
    """The number of reactor threads of `wknet_engine`: 0, in-loop.

    In Trio's own thread, `trio.testing.wait_all_tasks_blocked` and mock clocks see
    everything in flight. Override it with a fixture of the same name in ``conftest.py`` or
    in a test module, with another number or with ``params``.
    """
    return 0


@pytest.fixture
async def wknet_engine(wknet_reactors: int) -> AsyncIterator[Engine]:
    """An engine. What it still has open at the end of the test is closed at once."""
    async with open_engine(wknet_reactors) as engine:
        yield engine


@pytest.fixture
async def wknet_listener(wknet_engine: Engine) -> AsyncIterator[Listener]:
    """A listener of `wknet_engine` on a free port of 127.0.0.1::

    async def test_server(wknet_listener, nursery):
        nursery.start_soon(wknet_listener.serve, handler)
        stream = await trio.open_tcp_stream(*wknet_listener.address)
    """
    async with await wknet_engine.listen(f"{HERE}:0") as listener:
        yield listener


@pytest.fixture
async def wknet_pair(wknet_engine: Engine) -> tuple[Conn, Conn]:
    """Two connections of `wknet_engine`, connected to each other over TCP: the client's, and
    the one that was accepted::

    async def test_handler(wknet_pair, nursery):
        client, server = wknet_pair
        nursery.start_soon(handler, server)
    """
    async with await wknet_engine.listen(f"{HERE}:0") as listener:
        client = await wknet_engine.connect(f"{HERE}:{listener.address[1]}")
        return client, await listener.accept()
