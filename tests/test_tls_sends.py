"""What a TLS stream sends without waiting: in few records, in order, within its limit."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
from helpers import SMALL, content, read, read_all, until
from tls_helpers import NAME, client_context, over, records, server_context, two_tls
from trio.testing import assert_checkpoints, memory_stream_pair, wait_all_tasks_blocked

from trio_wknet import Conn, Engine, Limits, TLSStream

Pair = tuple[TLSStream, TLSStream]


@pytest.fixture
async def tls(engine: Engine) -> AsyncIterator[Pair]:
    async with two_tls(engine) as pair:
        yield pair


def sends(stream: TLSStream) -> int:
    return stream.statistics().send_calls


async def test_one_message(tls: Pair) -> None:
    one, other = tls
    before = sends(one)
    one.send_nowait(b"now")
    assert sends(one) == before + 1  # at once
    assert await other.receive_some() == b"now"
    one.send_nowait(b"")
    one.send_nowait(bytearray(b"and "))
    one.send_nowait(memoryview(b"again"))
    assert await read(other, 9) == b"and again"


async def test_many_messages_of_a_turn_are_two_records_and_two_sends(tls: Pair) -> None:
    one, other = tls
    await one.flush()
    statistics = one.statistics()
    for n in range(100):
        one.send_nowait(b"%02d" % n)
    assert sends(one) == statistics.send_calls + 1
    expected = b"".join(b"%02d" % n for n in range(100))
    assert await read(other, 200) == expected
    after = one.statistics()
    assert after.send_calls == statistics.send_calls + 2
    assert after.bytes_sent == statistics.bytes_sent + 200 + 2 * 22


async def test_a_record_that_is_full_does_not_wait(tls: Pair) -> None:
    one, other = tls
    one.send_nowait(b"first")
    before = one.statistics().bytes_sent
    for n in range(5):
        one.send_nowait(bytes([n]) * 4096)
    assert one.statistics().bytes_sent >= before + 16384
    got = await read(other, 5 + 5 * 4096)
    assert got == b"first" + b"".join(bytes([n]) * 4096 for n in range(5))


async def test_the_order_is_kept_whatever_sends(tls: Pair) -> None:
    one, other = tls
    expected = bytearray()

    def say(data: bytes) -> None:
        one.send_nowait(data)
        expected.extend(data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_all_into, other, got := bytearray())
        for n in range(20):
            say(b"a%d" % n)
            say(b"b%d" % n)
            data = content(n, 70_000 if n == 7 else 40)
            expected.extend(data)
            await one.send_all(data)
            say(b"c")
            say(b"d")
            expected.extend(b"ef")
            await one.send_vectored([b"e", bytearray(b"f")])
            say(b"g")
            say(b"h")
            await one.flush()
        say(b"i")
        say(b"last")
        await one.aclose()
    assert got == expected


async def read_all_into(stream: TLSStream, out: bytearray) -> None:
    out += await read_all(stream)


async def test_behind_another_tasks_send(engine: Engine, kind: str) -> None:
    async with two_tls(engine, kind, options=SMALL) as (one, other):
        large = content("large", 3_000_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.send_all, large)
            await wait_all_tasks_blocked()
            one.send_nowait(b"behind")
            one.send_nowait(b" it")
            assert await read(other, len(large)) == large
            assert await read(other, 9) == b"behind it"


async def test_what_is_held_goes_ahead_of_the_goodbye(tls: Pair) -> None:
    one, other = tls

    async def unwrap() -> None:
        one.send_nowait(b"ab")
        one.send_nowait(b"cd")
        await one.unwrap()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(unwrap)
        assert await read_all(other) == b"abcd"
        await other.unwrap()


async def test_flushing(engine: Engine) -> None:
    limits = Limits(outbound=1 << 20)
    async with two_tls(engine, "unix", limits=limits, options=SMALL) as (one, other):
        for n in range(40):
            one.send_nowait(bytes([n]) * 16000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.flush)
            await wait_all_tasks_blocked()
            assert one.statistics().buffered_outbound > 0
            with pytest.raises(trio.BusyResourceError):
                await one.flush()
            got = await read(other, 40 * 16000)
        assert got == b"".join(bytes([n]) * 16000 for n in range(40))
        assert one.statistics().buffered_outbound == 0
        with assert_checkpoints():
            await one.flush()


async def test_the_limit_on_what_is_unsent(engine: Engine) -> None:
    limits = Limits(outbound=65536)
    async with two_tls(engine, "unix", limits=limits, options=SMALL) as (one, other):
        with pytest.raises(ValueError, match=r"limits\.outbound \(65536\)"):
            one.send_nowait(bytes(65536))
        accepted = 0
        with pytest.raises(trio.WouldBlock):
            while True:
                one.send_nowait(content(accepted, 5000))
                accepted += 1
        assert 0 < accepted < 200
        got = await read(other, accepted * 5000)
        assert got == b"".join(content(n, 5000) for n in range(accepted))
        one.send_nowait(b"goes on")
        assert await read(other, 7) == b"goes on"


async def test_a_connection_that_is_gone(tls: Pair) -> None:
    one, other = tls
    other.abort()
    await until(lambda: one.close_reason is not None)
    with pytest.raises(trio.BrokenResourceError):
        for _ in range(3):
            one.send_nowait(b"x")
            await trio.lowlevel.checkpoint()
    await one.aclose()
    with pytest.raises(trio.ClosedResourceError):
        one.send_nowait(b"x")
    with pytest.raises(trio.ClosedResourceError):
        await one.flush()


async def test_one_that_is_closed_with_something_held(tls: Pair) -> None:
    one, _ = tls
    one.send_nowait(b"a")
    one.send_nowait(b"b")
    one.abort()
    await wait_all_tasks_blocked()
    with pytest.raises(trio.ClosedResourceError):
        one.send_nowait(b"c")


async def test_a_cancelled_flush_loses_nothing(engine: Engine) -> None:
    limits = Limits(outbound=1 << 20)
    async with two_tls(engine, "unix", limits=limits, options=SMALL) as (one, other):
        one.send_nowait(content("a", 500_000))
        one.send_nowait(b"held")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.flush)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert await read(other, 500_004) == content("a", 500_000) + b"held"


async def test_before_the_handshake(pair: tuple[Conn, Conn]) -> None:
    one, _ = over(*pair, "tls13")
    with pytest.raises(trio.NeedHandshakeError):
        one.send_nowait(b"x")


async def test_while_another_task_ends_the_stream(tls: Pair) -> None:
    one, other = tls
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.unwrap)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            one.send_nowait(b"x")
        await other.unwrap()
    with pytest.raises(trio.ClosedResourceError):
        one.send_nowait(b"x")


async def test_over_another_transport() -> None:
    client, server = memory_stream_pair()
    one = TLSStream(client, client_context(), server_hostname=NAME)
    other = TLSStream(server, server_context(), server_side=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.do_handshake)
        nursery.start_soon(other.do_handshake)
    with pytest.raises(TypeError, match="send_nowait works over a Conn"):
        one.send_nowait(b"x")
    with pytest.raises(TypeError, match="flush works over a Conn"):
        await one.flush()
    await one.send_vectored([b"a", b"b"])
    assert await other.receive_exactly(2) == b"ab"


async def test_bad_input(tls: Pair) -> None:
    one, other = tls
    for wrong in ("text", 7, memoryview(b"abcd")[::2]):
        with pytest.raises(TypeError, match="data must be"):
            one.send_nowait(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"buffers\[1\] must be"):
        await one.send_vectored([b"a", "b"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="buffers must be an iterable"):
        await one.send_vectored(7)  # type: ignore[arg-type]
    await one.send_all(b"fine")
    assert await other.receive_exactly(4) == b"fine"


async def test_what_the_connection_tells(tls: Pair) -> None:
    one, other = tls
    assert one.close_reason is None
    assert one.remote_address == other.local_address
    assert one.statistics().bytes_sent > 0
    one.idle_timeout = 100
    assert one.idle_timeout == one.transport_stream.idle_timeout == 100
    with one.idle_scope(100, read=50), one.cancel_on_disconnect() as scope:
        other.abort()
        await trio.sleep_forever()
    assert scope.cancelled_caught
    with trio.fail_after(5):
        await one.wait_closed()
    assert one.close_reason == "reset"


async def test_a_scope_of_an_idle_stream(tls: Pair) -> None:
    one, other = tls
    with one.idle_scope(0.05) as scope:
        await one.receive_some()
    assert scope.cancelled_caught
    # A part of a record is bytes that move.
    wire = records(other, b"x")
    with one.idle_scope(100) as scope:
        await other.transport_stream.send_all(wire[:5])
        await until(lambda: one.statistics().buffered_inbound == 5)
        assert one.statistics().idle_time < 1


async def test_another_transport_tells_nothing() -> None:
    one = TLSStream(memory_stream_pair()[0], client_context(), server_hostname=NAME)
    for name in ("close_reason", "idle_timeout", "remote_address"):
        with pytest.raises(TypeError, match=f"{name} works over a Conn"):
            getattr(one, name)
    for call in (one.statistics, one.abort, one.rate, lambda: one.idle_scope(1)):
        with pytest.raises(TypeError, match="works over a Conn"):
            call()


async def test_after_unwrapping(tls: Pair) -> None:
    async with trio.open_nursery() as nursery:
        for stream in tls:
            nursery.start_soon(stream.unwrap)
    with pytest.raises(trio.ClosedResourceError):
        _ = tls[0].close_reason
