"""Trio's own check of a half-closeable stream, on every transport and form."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
import trio
from helpers import SMALL, clog, two_conns
from trio.testing import assert_checkpoints, check_half_closeable_stream

from trio_wknet import Conn, Engine, Limits

# A closed connection lingers, so that the sender learns of it late: not too late.
ROOMY = Limits(linger_bytes=65536)
TIGHT = Limits(inbound=4096, outbound=4096, linger_bytes=65536)
# How many clogged pairs a check asks for, at most. TCP takes its time to clog, so
# they are made all at once.
STOCK = 24


async def clog_towards(receiver: Conn, sender: Conn) -> None:
    await clog(sender, lambda: receiver.statistics().buffered_inbound >= TIGHT.inbound)


@pytest.mark.parametrize("deferring", [False, True], ids=["at-once", "deferring"])
async def test_trios_own_check_passes(
    engine: Engine, kind: str, deferring: bool, long: bool
) -> None:
    if deferring:
        engine._core.send_batch.threshold = 0
    async with AsyncExitStack() as pairs:
        stock: list[tuple[Conn, Conn]] = []

        async def make() -> tuple[Conn, Conn]:
            return await pairs.enter_async_context(two_conns(engine, kind, limits=ROOMY))

        async def make_clogged() -> tuple[Conn, Conn]:
            return stock.pop()

        for _ in range(100 if long else 1):
            async with trio.open_nursery() as nursery:
                for _ in range(STOCK):
                    both = await pairs.enter_async_context(
                        two_conns(engine, kind, limits=TIGHT, options=SMALL)
                    )
                    stock.append(both)
                    nursery.start_soon(clog_towards, both[0], both[1])
                    nursery.start_soon(clog_towards, both[1], both[0])
            await check_half_closeable_stream(make, make_clogged)
            stock.clear()
            await pairs.aclose()


async def test_the_makers_clog(engine: Engine, kind: str) -> None:
    """The check above is worth what its clogged streams are."""
    async with two_conns(engine, kind, limits=TIGHT, options=SMALL) as (sender, receiver):
        await clog_towards(receiver, sender)
        before = sender.statistics().bytes_sent
        with trio.move_on_after(0.02) as scope:
            await sender.send_all(b"x")
        assert scope.cancelled_caught
        assert sender.statistics().bytes_sent == before
        got = 0
        while got < before:
            got += len(await receiver.receive_some())
        assert got == before


async def test_every_success_is_a_checkpoint(pair: tuple[Conn, Conn]) -> None:
    one, other = pair
    with assert_checkpoints():
        await one.send_all(b"")
    with assert_checkpoints():
        await one.send_all(b"abcdef:")
    with assert_checkpoints():
        await one.wait_send_all_might_not_block()
    with assert_checkpoints():
        await one.flush()
    with assert_checkpoints():
        assert await other.receive_exactly(2) == b"ab"
    with assert_checkpoints():
        assert await other.receive_into(bytearray(1)) == 1
    with assert_checkpoints():
        assert await other.receive_some(1) == b"d"
    with assert_checkpoints():
        assert await other.receive_until(b":") == b"ef"
    with assert_checkpoints():
        await one.send_eof()
    with assert_checkpoints():
        await one.send_eof()
    with assert_checkpoints():
        assert await other.receive_some() == b""
    with assert_checkpoints():
        await other.wait_closed()
    with assert_checkpoints():
        await other.aclose()
    with assert_checkpoints():
        await other.aclose()
    with assert_checkpoints():
        await one.wait_closed()


async def test_what_raises_on_a_closed_connection(pair: tuple[Conn, Conn]) -> None:
    conn, _ = pair
    await conn.aclose()
    for call in (
        lambda: conn.send_all(b"x"),
        lambda: conn.receive_some(),
        lambda: conn.receive_into(bytearray(1)),
        lambda: conn.receive_exactly(1),
        lambda: conn.receive_until(b"\n"),
        lambda: conn.wait_send_all_might_not_block(),
        lambda: conn.flush(),
        lambda: conn.send_eof(),
        lambda: conn.detach(),
    ):
        with pytest.raises(trio.ClosedResourceError):
            await call()
    for call_now in (
        lambda: conn.send_nowait(b"x"),
        lambda: conn.receive_nowait(),
        lambda: conn.getsockopt(1, 2),
        lambda: conn.setsockopt(1, 2, 3),
    ):
        with pytest.raises(trio.ClosedResourceError):
            call_now()


async def test_operations_are_coroutines_in_all_that_trio_asks(pair: tuple[Conn, Conn]) -> None:
    one, other = pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other.receive_exactly, 3)
        nursery.start_soon(one.send_all, b"abc")
    operation = one.send_all(b"x")
    await operation
    with pytest.raises(RuntimeError, match="already awaited"):
        await operation
    with pytest.warns(RuntimeWarning, match="never awaited"):
        one.send_all(b"x")  # type: ignore[unused-coroutine]
