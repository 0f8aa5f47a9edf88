"""Unread bytes looked at in place: peek and discard, and what a view holds up."""

from __future__ import annotations

import gc
import weakref
from contextlib import suppress
from typing import Any

import pytest
import trio
from event_servers import STYLES, caller, served, styled, turns_pass
from helpers import SMALL, conn_and_peer, content, plain_pair, read_all, send, until
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

import trio_wknet
from trio_wknet import Conn, Engine, Limits

Peer = tuple[Conn, Any]


async def buffered(conn: Conn, size: int) -> None:
    await until(lambda: conn.statistics().buffered_inbound >= size, f"{size} bytes inbound")


async def test_peek_and_discard(peer: Peer) -> None:
    conn, sock = peer
    assert not conn.peek()
    conn.discard(0)
    await send(sock, b"abcdef")
    await buffered(conn, 6)
    assert bytes(conn.peek()) == bytes(conn.peek(10)) == b"abcdef"
    assert bytes(conn.peek(max_bytes=2)) == b"ab"
    conn.discard(2)
    assert conn.peek().readonly
    with pytest.raises(ValueError, match="n must be at most the 4 bytes there are, not 5"):
        conn.discard(5)
    conn.discard(1)
    assert await conn.receive_some() == b"def"
    sock.close()
    await conn.wait_closed()
    assert not conn.peek()
    assert conn.receive_nowait() == b""


async def test_a_view_pins_its_bytes(peer: Peer) -> None:
    """Nothing takes bytes while it lives: what it shows cannot change under it."""
    conn, sock = peer
    await send(sock, b"line\nrest")
    await buffered(conn, 9)
    view = conn.peek(4)
    part = view[1:3]
    for take in (
        conn.receive_nowait,
        lambda: conn.receive_exactly_nowait(1),
        lambda: conn.receive_until_nowait(b"\n"),
        lambda: conn.discard(1),
    ):
        with pytest.raises(BufferError, match="a view from peek"):
            take()
    for receive in (
        conn.receive_some,
        lambda: conn.receive_exactly(1),
        lambda: conn.receive_until(b"\n"),
        lambda: conn.receive_into(bytearray(4)),
        conn.detach,
    ):
        with pytest.raises(BufferError, match="a view from peek"):
            await receive()
    conn.discard(0)
    assert conn.statistics().buffered_inbound == 9
    await send(sock, bytes(100_000))
    await buffered(conn, 65536)
    assert bytes(view) == b"line"
    view.release()
    assert bytes(part) == b"in"
    with pytest.raises(BufferError):
        conn.receive_nowait()
    del part
    assert conn.receive_until_nowait(b"\n") == b"line"


async def test_views_of_a_ring_that_grows(engine: Engine, kind: str) -> None:
    """It moves to larger blocks; each view keeps the one that it was made for."""
    data = content("growing", 300_000)
    async with conn_and_peer(engine, kind, limits=Limits(inbound=300_000)) as (conn, sock):
        views: list[Any] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, sock, data)
            while not views or len(views[-1]) < len(data):
                views.append(conn.peek())
                await trio.lowlevel.checkpoint()
        assert all(view == data[: len(view)] for view in views)
        for view in views:
            view.release()
        assert await conn.receive_exactly(len(data)) == data


@pytest.mark.parametrize("inbound", [500, 3 << 20])
async def test_bytes_that_wrap_are_shown_in_one_piece(
    engine: Engine, kind: str, inbound: int
) -> None:
    """Small ones are moved under the lock, large ones in pieces while more comes."""
    data = content("wrapping", 8 * inbound)
    async with (
        conn_and_peer(engine, kind, limits=Limits(inbound=inbound)) as (conn, sock),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(send, sock, data)
        at = 0
        while at < len(data):
            await buffered(conn, min(inbound * 3 // 4, len(data) - at))
            whole = conn.peek()
            few = conn.peek(100)
            assert few == data[at : at + len(few)]
            assert whole == data[at : at + len(whole)]
            n = len(whole) * 2 // 3 + 1
            del whole, few
            conn.discard(n)
            at += n


@pytest.mark.parametrize("reset", [False, True])
async def test_closed_with_a_view(engine: Engine, kind: str, reset: bool) -> None:
    """Nobody waits for it, and it shows what it did."""
    async with conn_and_peer(engine, kind) as (conn, sock):
        await send(sock, b"before the close")
        await buffered(conn, 16)
        view = conn.peek()
        if reset:
            conn.abort()
        else:
            await conn.aclose()
            assert await read_all(sock) == b""
        with pytest.raises(trio.ClosedResourceError):
            conn.peek()
        with pytest.raises(trio.ClosedResourceError):
            conn.discard(0)
        await turns_pass(engine)
        assert bytes(view) == b"before the close"


async def test_a_view_outlives_its_engine(nothing_left: None, reactors: int, kind: str) -> None:
    views = []
    for _ in range(3):
        async with trio_wknet.open_engine(reactors) as engine:
            async with conn_and_peer(engine, kind) as (conn, sock):
                for size in (10, 1000, 40_000):
                    await send(sock, b"x" * size)
                    await buffered(conn, size)
                    views.append(conn.peek())
                assert len(views[-1]) == 41_010
            del conn
    gc.collect()
    assert {bytes(view[:1]) + bytes(view[-1:]) for view in views} == {b"xx"}
    while views:
        views.pop(len(views) // 2).release()


async def test_one_connections_view_is_no_others_affair(engine: Engine, kind: str) -> None:
    """It stops at its own bound. Another one on the same reactors goes on."""
    data = content("others", 200_000)
    limits = Limits(inbound=1000)
    async with (
        conn_and_peer(engine, kind, limits=limits, options=SMALL) as (held, theirs),
        conn_and_peer(engine, kind, limits=limits) as (conn, sock),
    ):
        await send(theirs, b"pinned")
        await buffered(held, 6)
        view = held.peek()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, theirs, data)
            nursery.start_soon(send, sock, data)
            got = await conn.receive_exactly(len(data))
            assert got == data
            await buffered(held, 1000)
            assert held.statistics().buffered_inbound == 1000
            assert bytes(view) == b"pinned"
            view.release()
            assert await held.receive_exactly(6 + len(data)) == b"pinned" + data


async def test_peek_while_reading_is_paused(engine: Engine, kind: str) -> None:
    data = content("paused", 50_000)
    async with (
        conn_and_peer(engine, kind, limits=Limits(inbound=1000)) as (conn, sock),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(send, sock, data)
        at = turn = 0
        while at < len(data):
            await buffered(conn, min(1000, len(data) - at))
            with conn.peek() as view:
                n = len(view)
                assert view == data[at : at + n]
            turn += 1
            if turn % 3 == 0:  # now from the socket itself
                assert conn.receive_nowait(n + 500) == data[at : at + n + 500]
                at += min(n + 500, len(data) - at)
            else:
                conn.discard(n)
                at += n


async def test_a_task_that_receives_goes_first(peer: Peer) -> None:
    conn, sock = peer
    async with trio.open_nursery() as nursery:
        nursery.start_soon(conn.receive_some)
        await wait_all_tasks_blocked()
        for use in (conn.peek, lambda: conn.discard(0)):
            with pytest.raises(trio.BusyResourceError):
                use()
        await send(sock, b"!")


async def test_a_view_made_between_the_wake_and_the_step(peer: Peer) -> None:
    """A task was woken for bytes, and before it runs another one looks at them."""
    conn, sock = peer
    outcomes: list[Any] = []

    async def receive() -> None:
        try:
            outcomes.append(await conn.receive_some())
        except BufferError as error:
            outcomes.append(error)

    async def look() -> None:
        while not outcomes:
            with suppress(trio.BusyResourceError):
                views.extend(filter(None, [conn.peek()]))
            if views:
                return
            await trio.lowlevel.checkpoint()

    for _ in range(20):
        outcomes.clear()
        views: list[Any] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await wait_all_tasks_blocked()
            nursery.start_soon(look)
            await send(sock, b"bytes")
        (outcome,) = outcomes
        if isinstance(outcome, BufferError):
            assert views == [b"bytes"]
            views.clear()
            assert conn.receive_nowait() == b"bytes"
        else:
            assert outcome == b"bytes"
            assert views == []


async def test_a_broken_connection_shows_what_came_before(peer: Peer) -> None:
    conn, sock = peer
    await send(sock, b"before")
    await buffered(conn, 6)
    sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1" + bytes(7))
    conn.send_nowait(b"unread")
    sock.close()
    await conn.wait_closed()
    with conn.peek() as view:
        assert bytes(view) == b"before"
    conn.discard(6)
    if conn.close_reason != "eof":
        with pytest.raises(trio.BrokenResourceError):
            conn.peek()


async def test_arguments(peer: Peer) -> None:
    conn, _ = peer
    bad: list[Any] = ["1", 1.5, b""]
    for value in bad:
        with pytest.raises(TypeError, match="max_bytes must be an integer"):
            conn.peek(value)
        with pytest.raises(TypeError, match="n must be an integer"):
            conn.discard(value)
    with pytest.raises(TypeError, match="n must be an integer"):
        conn.discard(None)  # type: ignore[arg-type]
    for count in (0, -1, -(2**70)):
        with pytest.raises(ValueError, match=f"max_bytes .* not {count}"):
            conn.peek(count)
    for count in (-1, -(2**70), 1, 2**70):
        with pytest.raises(ValueError, match=f"n must .* not {count}"):
            conn.discard(count)


@pytest.mark.parametrize("style", STYLES)
async def test_in_event_mode(engine: Engine, style: str) -> None:
    """A header is looked at, and stays until its message is whole. A view that a
    callback keeps outlives it, and whatever object the next one gets knows of it."""
    kept: list[Any] = []
    got: list[bytes] = []
    refused: list[BufferError] = []

    def on_data(conn: Conn) -> None:
        while len(head := bytes(conn.peek(2))) == 2:
            size = int.from_bytes(head, "big")
            message = conn.peek(2 + size)
            if len(message) < 2 + size:
                return
            if size == 3:
                kept.append(message)
                return
            got.append(bytes(message[2:]))
            message.release()
            try:
                conn.discard(2 + size)
            except BufferError as error:
                refused.append(error)
                return

    async with served(engine, styled(on_data, style)) as listener:
        with caller(listener) as peer:
            for piece in (b"\0", b"\5he", b"llo\0\1", b"!\0\4last\0\3"):
                await peer.send(piece)
                await turns_pass(engine)
            assert got == [b"hello", b"!", b"last"]
            await peer.send(b"abc")
            await until(lambda: kept)
            await peer.send(b"more")
            await until(lambda: len(kept) == 2)
            assert kept == [b"\0\3abc"] * 2
            assert refused == []
            kept.pop()
            (conn,) = engine.connections.values()
            with pytest.raises(BufferError):
                conn.receive_nowait()
            kept.clear()
            conn.discard(5)
            del conn
            await peer.send(bytes(8))
            await until(lambda: len(got) == 3)
    assert kept == []


async def test_a_view_that_its_own_connection_keeps(engine: Engine) -> None:
    """A cycle through the connection's context is garbage once it is closed."""
    ours, theirs = plain_pair()
    conn = engine.adopt(ours)
    assert isinstance(conn, Conn)
    with theirs:
        theirs.send(b"kept")
        await buffered(conn, 4)
        conn.context = conn.peek()
        conn.abort()
        there = weakref.ref(conn)
        del conn
        await trio.lowlevel.checkpoint()
        for _ in range(3):  # what a finalizer lets go of is garbage for the next one
            gc.collect()
        assert there() is None


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(1, 700)),
        st.tuples(st.just("peek"), st.integers(1, 900)),
        st.tuples(st.just("release"), st.integers(0, 5)),
        st.tuples(st.just("discard"), st.integers(0, 900)),
        st.tuples(st.just("take"), st.integers(1, 900)),
    ),
    max_size=40,
)


@given(STEPS, st.sampled_from([0, 1]))
def test_against_a_bytearray(steps: list[tuple[str, int]], reactors: int) -> None:
    async def main() -> None:
        limits = Limits(inbound=100_000)
        with trio.fail_after(20):
            async with (
                trio_wknet.open_engine(reactors) as engine,
                conn_and_peer(engine, limits=limits) as (conn, sock),
            ):
                await follow(conn, sock, steps)

    trio.run(main)


async def follow(conn: Conn, sock: Any, steps: list[tuple[str, int]]) -> None:
    unread = bytearray()
    views: list[tuple[memoryview, bytes]] = []
    for number, (step, n) in enumerate(steps):
        if step == "send":
            unread += (data := content(number, n))
            await send(sock, data)
            await buffered(conn, len(unread))
        elif step == "peek":
            view = conn.peek(n)
            assert view == unread[:n]
            if view:
                views.append((view, bytes(unread[:n])))
        elif step == "release" and views:
            views.pop(n % len(views))[0].release()
        elif step == "discard" and n <= len(unread):
            if views and n:
                with pytest.raises(BufferError):
                    conn.discard(n)
            else:
                conn.discard(n)
                del unread[:n]
        elif step == "take" and unread:
            if views:
                with pytest.raises(BufferError):
                    conn.receive_nowait(n)
            else:
                assert conn.receive_nowait(n) == unread[:n]
                del unread[:n]
        assert all(view == shown for view, shown in views)
        assert conn.statistics().buffered_inbound == len(unread)


async def test_framed_with_a_view(peer: Peer) -> None:
    """Frames are taken, too: not from under a view."""
    conn, sock = peer
    await send(sock, b"one\ntwo\n")
    await buffered(conn, 8)
    view = conn.peek()
    framing = trio_wknet.Delimited(b"\n", max_frame=10)
    with pytest.raises(BufferError, match="a view from peek"):
        conn.framed(framing)
    assert bytes(view) == b"one\ntwo\n"
    view.release()
    channel = conn.framed(framing)
    for look in (conn.peek, lambda: conn.discard(0)):
        with pytest.raises(trio.BusyResourceError, match="unframe"):
            look()
    assert await channel.receive() == b"one"
    channel.unframe()
    with conn.peek() as view:
        assert bytes(view) == b"two\n"
        with pytest.raises(BufferError):
            conn.framed(framing)
