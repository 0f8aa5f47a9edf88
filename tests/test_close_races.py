"""Closing at the moment at which another task's call has all but returned."""

from __future__ import annotations

import socket
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import pytest
import trio

from trio_wknet import Conn, open_engine


@types.coroutine
def interrupted(
    call: Coroutine[Any, Any, Any], then: Callable[[], object]
) -> Generator[Any, Any, Any]:
    """Await a call, and do something when it first lets other tasks run."""
    try:
        trap = call.send(None)
        then()
        while True:
            trap = call.send((yield trap))
    except StopIteration as end:
        return end.value


@pytest.mark.parametrize("reactors", [0, 1])
@pytest.mark.parametrize("call", [Conn.send_eof, Conn.detach])
@pytest.mark.parametrize("close", [Conn.abort, Conn._drop, Conn._close])
async def test_closed_during_the_last_checkpoint_of_a_flush(
    reactors: int,
    call: Callable[[Conn], Coroutine[Any, Any, Any]],
    close: Callable[[Conn], None],
) -> None:
    """`send_eof` and `detach` flush first, and the flush ends with a schedule
    point: whoever runs then may close the connection."""
    ours, theirs = socket.socketpair()
    async with open_engine(reactors) as engine:
        with theirs:
            conn = engine.adopt(ours)
            assert isinstance(conn, Conn)
            with pytest.raises(trio.ClosedResourceError):
                await interrupted(call(conn), lambda: close(conn))
