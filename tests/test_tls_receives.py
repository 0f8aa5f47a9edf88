"""The receives of a TLS stream that a `Conn` has, too: so much, up to a delimiter, without
waiting."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random
from typing import Any

import pytest
import trio
from helpers import content, two_conns, until
from tls_helpers import NAME, client_context, over, records, server_context, shake_hands
from trio.testing import assert_checkpoints, memory_stream_pair, wait_all_tasks_blocked

from trio_wknet import (
    Conn,
    DelimiterNotFound,
    IncompleteRead,
    Limits,
    TLSStream,
    open_engine,
)

Pair = tuple[TLSStream, TLSStream]
pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture(params=["in-loop", "1-reactor", "2-reactors", "another-transport"])
async def form(request: pytest.FixtureRequest) -> AsyncIterator[Callable[[], Awaitable[Pair]]]:
    """Makes two connected streams, without a handshake."""
    name = str(request.param)

    async def plain() -> Pair:
        client, server = memory_stream_pair()
        return (
            TLSStream(client, client_context(), server_hostname=NAME),
            TLSStream(server, server_context(), server_side=True),
        )

    with trio.fail_after(30):
        if name == "another-transport":
            yield plain
            return
        reactors = 0 if name == "in-loop" else int(name[0])
        async with open_engine(reactors) as engine, two_conns(engine) as conns:

            async def ours() -> Pair:
                return over(*conns, "tls13")

            yield ours


@pytest.fixture
async def tls(form: Callable[[], Awaitable[Pair]]) -> Pair:
    """The same after the handshake."""
    one, other = await form()
    await shake_hands(one, other)
    return one, other


async def came(stream: TLSStream, size: int) -> None:
    """Wait until so many bytes of TLS are there, where that can be seen."""
    conn = stream.transport_stream
    if isinstance(conn, Conn):
        await until(lambda: conn.statistics().buffered_inbound >= size)


def receives(stream: TLSStream) -> list[Callable[[], Awaitable[Any]]]:
    return [
        stream.receive_some,
        lambda: stream.receive_exactly(1),
        lambda: stream.receive_until(b"x"),
        lambda: stream.receive_into(bytearray(1)),
    ]


# --- what is received ---------------------------------------------------------------------


async def test_so_much_and_up_to_a_delimiter(form: Callable[[], Awaitable[Pair]]) -> None:
    """Whatever the records, and with the handshake."""
    one, other = await form()
    large = content("large", 300_000)
    parts = [b"ab", b"c\r\nde", b"f\r", b"\n", large[:7], large[7:], b"rest"]

    async def send() -> None:
        for part in parts:
            await one.send_all(part)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        assert await other.receive_exactly(1) == b"a"
        assert await other.receive_until(b"\r\n") == b"bc"
        assert await other.receive_until(b"\r\n") == b"def"
        into = bytearray(5)
        got = bytes(into[: await other.receive_into(into)])
        got += await other.receive_exactly(len(large) - len(got))
        assert got == large
        assert await other.receive_some(2) == b"re"
        assert await other.receive_exactly(2) == b"st"


async def test_bytes_that_were_not_wanted_are_received_next(tls: Pair) -> None:
    one, other = tls
    await one.send_all(b"0123456789" * 3)
    assert await other.receive_exactly(3) == b"012"
    assert await other.receive_some(4) == b"3456"
    assert other.receive_nowait(1) == b"7"
    assert other.receive_exactly_nowait(2) == b"89"
    assert other.receive_until_nowait(b"5") == b"01234"
    into = bytearray(4)
    assert await other.receive_into(into) == 4
    assert into == b"6789"
    assert other.receive_nowait() == b"0123456789"
    with pytest.raises(trio.WouldBlock):
        other.receive_nowait()


async def test_without_waiting(form: Callable[[], Awaitable[Pair]]) -> None:
    one, other = await form()
    calls: list[Callable[[], Any]] = [
        other.receive_nowait,
        lambda: other.receive_exactly_nowait(1),
        lambda: other.receive_until_nowait(b"x"),
    ]
    for call in calls:
        with pytest.raises(trio.NeedHandshakeError):
            call()
    await shake_hands(one, other)
    with pytest.raises(trio.WouldBlock):
        other.receive_nowait()
    if not isinstance(other.transport_stream, Conn):
        return  # what has come shows only in a receive
    wire = records(one, b"abc", b"de", b"\n")
    await one.transport_stream.send_all(wire[:-3])
    await came(other, len(wire) - 3)
    with pytest.raises(trio.WouldBlock):
        other.receive_until_nowait(b"\n")
    with pytest.raises(trio.WouldBlock):
        other.receive_exactly_nowait(6)
    assert other.receive_exactly_nowait(1) == b"a"
    await one.transport_stream.send_all(wire[-3:])
    await came(other, 3)
    assert other.receive_until_nowait(b"\n") == b"bcde"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.aclose)
    await until(lambda: other.close_reason == "eof")
    with pytest.raises(IncompleteRead):
        other.receive_exactly_nowait(1)
    assert other.receive_nowait() == b""


async def test_every_success_is_a_checkpoint(tls: Pair) -> None:
    one, other = tls
    await one.send_all(b"0123456789\n1")
    with assert_checkpoints():
        await other.receive_exactly(2)
    with assert_checkpoints():
        await other.receive_exactly(2)
    with assert_checkpoints():
        await other.receive_some(1)
    with assert_checkpoints():
        await other.receive_into(bytearray(1))
    with assert_checkpoints():
        assert await other.receive_until(b"\n") == b"6789"


# --- ends, errors --------------------------------------------------------------------------


async def test_what_came_stays(tls: Pair) -> None:
    one, other = tls
    await one.send_all(b"0123456789")
    with pytest.raises(DelimiterNotFound) as missing:
        await other.receive_until(b"\n", 5)
    assert missing.value.max_bytes == 5
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.aclose)
        with pytest.raises(IncompleteRead) as much:
            await other.receive_exactly(11)
        assert (much.value.expected, much.value.buffered) == (11, 10)
        with pytest.raises(IncompleteRead) as line:
            await other.receive_until(b"\n")
        assert (line.value.expected, line.value.buffered) == (None, 10)
        assert await other.receive_exactly(10) == b"0123456789"
        assert await other.receive_some() == b""
        with pytest.raises(IncompleteRead):
            await other.receive_exactly(1)


async def test_the_limit_before_a_delimiter_is_the_connections() -> None:
    async with open_engine(0) as engine, two_conns(engine, limits=Limits(inbound=4096)) as conns:
        one, other = over(*conns, "tls13")
        await shake_hands(one, other)
        await one.send_all(bytes(5000))
        with pytest.raises(DelimiterNotFound):
            await other.receive_until(b"\n")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.send_all, b"\n")
            assert await other.receive_until(b"\n", 5000) == bytes(5000)


async def test_a_truncation_comes_behind_what_came(tls: Pair) -> None:
    one, other = tls
    await one.send_all(b"abc")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.aclose_forcefully, one)
        for _ in range(2):
            with pytest.raises(trio.BrokenResourceError):
                await other.receive_exactly(4)
        assert await other.receive_exactly(2) == b"ab"
        assert await other.receive_some() == b"c"
        with pytest.raises(trio.BrokenResourceError):
            await other.receive_some()


async def test_closing_forgets_what_came(tls: Pair) -> None:
    one, other = tls
    await one.send_all(b"abcd")
    assert await other.receive_exactly(2) == b"ab"
    await other.aclose()
    for call in receives(other):
        with pytest.raises(trio.ClosedResourceError):
            await call()
    with pytest.raises(trio.ClosedResourceError):
        other.receive_nowait()


async def test_a_connection_that_was_aborted_gives_nothing() -> None:
    async with open_engine(0) as engine, two_conns(engine) as conns:
        one, other = over(*conns, "tls13")
        await shake_hands(one, other)
        await one.send_all(b"abcd")
        assert await other.receive_exactly(2) == b"ab"
        other.abort()
        for call in receives(other):
            with pytest.raises(trio.ClosedResourceError):
                await call()


async def test_unwrapping_past_what_was_not_received(tls: Pair) -> None:
    one, other = tls
    await one.send_all(b"abcd")
    assert await other.receive_exactly(2) == b"ab"
    with pytest.raises(trio.BrokenResourceError, match="2 bytes are not received"):
        await other.unwrap()


async def test_another_task_is_refused(tls: Pair) -> None:
    one, other = tls
    waits = receives(other)
    for first in waits:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first)
            await wait_all_tasks_blocked()
            for second in waits:
                with pytest.raises(trio.BusyResourceError):
                    await second()
            with pytest.raises(trio.BusyResourceError):
                other.receive_nowait()
            with pytest.raises(trio.BusyResourceError):
                other.receive_exactly_nowait(1)
            nursery.cancel_scope.cancel()
    await one.send_all(b"fine")
    assert await other.receive_exactly(4) == b"fine"


@pytest.mark.parametrize(
    ("call", "error", "named"),
    [
        (lambda s: s.receive_exactly(0), ValueError, "n must"),
        (lambda s: s.receive_exactly("x"), TypeError, "n must"),
        (lambda s: s.receive_exactly((1 << 30) + 1), ValueError, "n must"),
        (lambda s: s.receive_until("x"), TypeError, "delimiter"),
        (lambda s: s.receive_until(b""), ValueError, "delimiter"),
        (lambda s: s.receive_until(b"x", 0), ValueError, "max_bytes"),
        (lambda s: s.receive_into(b"x"), TypeError, "buffer"),
        (lambda s: s.receive_into(bytearray()), ValueError, "buffer"),
        (lambda s: s.receive_into(7), TypeError, "buffer"),
    ],
)
async def test_bad_input(
    call: Callable[[TLSStream], Any], error: type[Exception], named: str
) -> None:
    client, server = memory_stream_pair()
    one = TLSStream(client, client_context(), server_hostname=NAME)
    other = TLSStream(server, server_context(), server_side=True)
    await shake_hands(one, other)
    with pytest.raises(error, match=named):
        await call(one)
    await other.send_all(b"still fine")
    assert await one.receive_some() == b"still fine"


# --- cancellation --------------------------------------------------------------------------


async def test_cancelled_at_any_step_nothing_is_lost(tls: Pair) -> None:
    one, other = tls
    values = Random(1)
    data = content("cancelled", 20_000).replace(b"\n", b" ")
    wire = [b""]

    async def send() -> None:
        at = 0
        while at < len(data):
            size = values.randrange(1, 400)
            await one.send_all(data[at : at + size])
            at += size

    async def one_receive() -> bytes:
        kind = values.randrange(3)
        if kind == 0:
            return await other.receive_exactly(values.randrange(1, 300))
        if kind == 1:
            return await other.receive_some(values.randrange(1, 300))
        into = bytearray(values.randrange(1, 300))
        return bytes(into[: await other.receive_into(into)])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        while sum(map(len, wire)) < len(data) - 300:
            with trio.CancelScope() as scope:
                when = values.choice([-1.0, 0.0, 0.0, 1e-4, 9.0])
                if when < 0:
                    scope.cancel()
                scope.deadline = trio.current_time() + when
                wire.append(await one_receive())
        left = len(data) - sum(map(len, wire))
        wire.append(await other.receive_exactly(left))
    assert b"".join(wire) == data
