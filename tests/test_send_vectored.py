"""send_vectored: many buffers, one call to the kernel."""

from __future__ import annotations

import array
from typing import Any

import pytest
import trio
from helpers import SMALL, conn_and_peer, content, read, read_all, two_conns
from hypothesis import given
from hypothesis import strategies as st
from test_send import reset
from trio.testing import wait_all_tasks_blocked

from trio_wknet import Conn, Engine, open_engine
from trio_wknet._native.testing import ReactorSender

Peer = tuple[Conn, Any]


async def test_one_call_for_many(peer: Peer) -> None:
    conn, sock = peer
    pieces = [content(n, n) for n in range(50)]
    await conn.send_vectored(iter(pieces))
    assert await read(sock, sum(map(len, pieces))) == b"".join(pieces)
    assert conn.statistics().send_calls == 1


async def test_any_number_of_them(peer: Peer) -> None:
    """More than the kernel takes at a time (IOV_MAX), empty ones, and none at all."""
    conn, sock = peer
    await conn.send_vectored([])
    await conn.send_vectored([b""] * 3000)
    assert conn.statistics().send_calls == 0
    await conn.send_vectored([b"ab", b""] * 1500)
    assert conn.statistics().send_calls == 2
    assert await read(sock, 3000) == b"ab" * 1500


async def test_kinds_of_buffers(peer: Peer) -> None:
    conn, sock = peer
    buffers: list[Any] = [b"a", bytearray(b"b"), memoryview(b"xcx")[1:2], array.array("B", [100])]
    await conn.send_vectored(buffers)
    assert await read(sock, 4) == b"abcd"


async def test_under_back_pressure(engine: Engine, kind: str) -> None:
    pieces = [content(n, n * 977 % 20_000) for n in range(120)]
    async with two_conns(engine, kind, options=SMALL) as (one, other):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.send_vectored, pieces)
            await wait_all_tasks_blocked()
            one.send_nowait(b"behind")
            expected = b"".join(pieces) + b"behind"
            assert await read(other, len(expected)) == expected
        assert one.statistics().bytes_sent == len(expected)


async def test_behind_what_is_queued(engine: Engine, kind: str) -> None:
    async with conn_and_peer(engine, kind, options=SMALL) as (conn, sock):
        data = content("queued", 400_000)
        conn.send_nowait(data)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conn.send_vectored, [b"one", b"two"])
            assert await read(sock, len(data) + 6) == data + b"onetwo"


async def test_behind_what_is_corked(peer: Peer) -> None:
    conn, sock = peer
    for n in range(5):
        conn.send_nowait(b"%d" % n)
    await conn.send_vectored([b"a", b"b"])
    assert await read(sock, 7) == b"01234ab"


async def test_buffers_are_held_until_they_are_sent(engine: Engine) -> None:
    async with conn_and_peer(engine, options=SMALL) as (conn, _):
        data = bytearray(1_000_000)
        async with trio.open_nursery() as nursery:
            pieces: list[Any] = [b"x", data]
            nursery.start_soon(conn.send_vectored, pieces)
            await wait_all_tasks_blocked()
            with pytest.raises(BufferError):
                data.append(0)
            nursery.cancel_scope.cancel()
        data.append(0)


async def test_a_reactor_waits_for_all_of_it(engine: Engine, kind: str) -> None:
    pieces = [content(n, 10_000) for n in range(60)]
    async with conn_and_peer(engine, kind, options=SMALL) as (conn, sock):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conn.send_vectored, pieces)
            await wait_all_tasks_blocked()
            ReactorSender(conn).send(b"last")
            expected = b"".join(pieces) + b"last"
            assert await read(sock, len(expected)) == expected


async def test_cancelled(engine: Engine, kind: str) -> None:
    pieces = [content(n, 5000) for n in range(400)]
    async with conn_and_peer(engine, kind, options=SMALL) as (conn, sock):
        with trio.CancelScope() as scope:
            scope.cancel()
            await conn.send_vectored(pieces)
        assert conn.statistics().bytes_sent == 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conn.send_vectored, pieces)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        sent = conn.statistics().bytes_sent
        assert 0 < sent < 2_000_000
        await conn.send_eof()
        assert await read_all(sock) == b"".join(pieces)[:sent]


async def test_bad_input(peer: Peer) -> None:
    conn, sock = peer
    with pytest.raises(TypeError, match=r"buffers must be an iterable of bytes-like.*int"):
        await conn.send_vectored(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"buffers\[1\] must be contiguous and bytes-like.*str"):
        await conn.send_vectored([b"a", "b"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"buffers\[0\] must be contiguous and bytes-like.*int"):
        await conn.send_vectored(b"abc")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"buffers\[2\] must be contiguous.*memoryview"):
        await conn.send_vectored([b"", b"", memoryview(b"abcd")[::2]])
    await conn.send_vectored([b"ok"])
    assert await read(sock, 2) == b"ok"


async def test_errors(peer: Peer) -> None:
    conn, sock = peer
    reset(sock)
    await conn.wait_closed()
    with pytest.raises(trio.BrokenResourceError):
        while True:
            await conn.send_vectored([b"x", b"y"])
    await conn.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await conn.send_vectored([b"x"])


@pytest.mark.parametrize("reactors", [0, 1])
@given(calls=st.lists(st.lists(st.one_of(st.integers(0, 50), st.integers(0, 50_000)), max_size=8)))
def test_any_calls(reactors: int, calls: list[list[int]]) -> None:
    async def main() -> None:
        pieces = [[content((n, m), size) for m, size in enumerate(c)] for n, c in enumerate(calls)]
        async with (
            open_engine(reactors) as engine,
            conn_and_peer(engine, "unix", options=SMALL) as (conn, sock),
            trio.open_nursery() as nursery,
        ):

            async def send() -> None:
                for call in pieces:
                    await conn.send_vectored(call)
                await conn.send_eof()

            nursery.start_soon(send)
            assert await read_all(sock) == b"".join(b"".join(call) for call in pieces)

    trio.run(main)
