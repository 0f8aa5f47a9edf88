"""Closing at the moment at which another task's call has all but returned."""

from __future__ import annotations

import functools
import socket
import time
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import pytest
import trio
from helpers import SMALL, conn_and_peer, content, dial, read, read_all, until
from trio.testing import wait_all_tasks_blocked

from trio_wknet import Conn, Engine, open_engine


@types.coroutine
def interrupted(
    call: Coroutine[Any, Any, Any], then: Callable[[], object], after: int = 0
) -> Generator[Any, Any, Any]:
    """Await a call, and do something when it first lets other tasks run, or so many
    times after that."""
    try:
        trap = call.send(None)
        for _ in range(after):
            trap = call.send((yield trap))
        then()
        while True:
            trap = call.send((yield trap))
    except StopIteration as end:
        return end.value


@types.coroutine
def held_up(call: Coroutine[Any, Any, Any], by: Callable[[], object]) -> Generator[Any, Any, Any]:
    """Await a call, and do something right before it goes on from its first wait."""
    try:
        sent = yield call.send(None)
        by()
        while True:
            sent = yield call.send(sent)
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


def busy(conn: Conn, *calls: Callable[[Conn], Any]) -> None:
    """Each call is refused, and does nothing."""
    for call in calls:
        with pytest.raises(trio.BusyResourceError):
            # An operation refuses at its first step.
            call(conn).send(None)


def send_nowait(conn: Conn) -> None:
    conn.send_nowait(b"late")


SENDING = (
    send_nowait,
    lambda conn: conn.send_all(b"late"),
    Conn.flush,
    Conn.send_eof,
    Conn._detach,
    Conn.wait_send_all_might_not_block,
)
RECEIVING = (
    Conn.receive_nowait,
    Conn.receive_some,
    lambda conn: conn.receive_exactly(1),
    lambda conn: conn.receive_until(b"x"),
    lambda conn: conn.receive_into(bytearray(1)),
)


async def test_bytes_between_the_flush_and_the_end(engine: Engine, kind: str) -> None:
    """They would come behind the FIN, after they were accepted."""
    async with conn_and_peer(engine, kind) as (conn, sock):
        conn.send_nowait(b"in time")
        await interrupted(conn.send_eof(), lambda: busy(conn, *SENDING))
        assert await read_all(sock) == b"in time"
        with pytest.raises(trio.ClosedResourceError):
            conn.send_nowait(b"late")


async def test_nobody_uses_what_is_being_detached(engine: Engine, kind: str) -> None:
    async with conn_and_peer(engine, kind) as (conn, sock):
        conn.send_nowait(b"in time")
        plain, _ = await interrupted(conn.detach(), lambda: busy(conn, *SENDING))
        with plain:
            assert await read(sock, 7) == b"in time"
    async with conn_and_peer(engine, kind) as (conn, sock):
        # The reactor was told to forget it, and has not been heard yet.
        told = interrupted(conn.detach(), lambda: busy(conn, *SENDING, *RECEIVING), after=1)
        plain, unread = await told
        with plain:
            plain.send(b"in time")
            assert unread == b""
        assert await read_all(sock) == b"in time"


async def test_who_sends_while_detaching_waits(engine: Engine, kind: str) -> None:
    """What was accepted before is sent whole, and nothing behind it is accepted."""
    async with conn_and_peer(engine, kind, options=SMALL) as (conn, sock):
        data = content("detach", 900_000)
        conn.send_nowait(data)
        sockets = []

        async def detach() -> None:
            sockets.append((await conn.detach())[0])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(detach)
            await wait_all_tasks_blocked()
            busy(conn, *SENDING)
            assert await read(sock, len(data)) == data
        with sockets[0]:
            sockets[0].shutdown(socket.SHUT_WR)
            assert await read_all(sock) == b""


async def test_detaching_is_not_cancelled_half_way(engine: Engine, kind: str) -> None:
    async with conn_and_peer(engine, kind, options=SMALL) as (conn, sock):
        data = content("detach", 900_000)
        conn.send_nowait(data)
        with trio.CancelScope() as scope:
            await interrupted(conn.detach(), scope.cancel, after=1)
        assert scope.cancelled_caught
        assert await read(sock, len(data)) == data
        await conn.flush()
        with trio.CancelScope() as scope:
            plain, _ = await interrupted(conn.detach(), scope.cancel, after=1)
            plain.close()
        assert scope.cancel_called
        assert not scope.cancelled_caught
        assert await read_all(sock) == b""


@pytest.mark.parametrize("reactors", [1, 2])  # in-loop nothing is received meanwhile
async def test_what_comes_while_detaching_is_no_callbacks(engine: Engine) -> None:
    """It is handed over with the socket, not shown to `on_data` as well."""
    conns: list[Conn] = []
    seen: list[bytes] = []
    listener = await engine.listen("tcp://127.0.0.1:0")

    def receive(peer: socket.socket) -> None:
        before = engine.statistics().pool_in_use
        peer.sendall(b"late")
        while engine.statistics().pool_in_use == before:
            time.sleep(0.0001)  # until the reactor has it

    async with trio.open_nursery() as nursery:
        await nursery.start(
            functools.partial(
                listener.serve_events,
                lambda conn: seen.append(conn.receive_nowait()),
                on_connect=conns.append,
            )
        )
        with dial(listener) as peer:
            await until(lambda: conns)
            plain, unread = await held_up(conns[0].detach(), lambda: receive(peer))
            plain.close()
            assert unread == b"late"
            assert seen == []
        nursery.cancel_scope.cancel()
    await listener.aclose()
