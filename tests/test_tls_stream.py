"""TLSStream over our connections: bytes, errors, cancellation, ends."""

from __future__ import annotations

import gc
import random
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, nullcontext, suppress
from typing import Any

import pytest
import trio
from helpers import SMALL, content, read, read_all, two_conns, until
from tls_helpers import (
    NAME,
    client_context,
    outgoing,
    over,
    records,
    server_context,
    shake_hands,
    two_tls,
)
from trio.testing import assert_checkpoints, check_two_way_stream, wait_all_tasks_blocked

from trio_wknet import Conn, Engine, Limits, TLSStream

Pair = tuple[TLSStream, TLSStream]
TIGHT = Limits(inbound=4096, linger_bytes=65536)


@pytest.fixture(params=["tls12", "tls13"])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def streams(engine: Engine, kind: str, version: str) -> AsyncIterator[Pair]:
    async with two_tls(engine, kind, version) as pair:
        yield pair


@pytest.fixture
async def tls(engine: Engine) -> AsyncIterator[Pair]:
    """The same where neither version nor transport matters."""
    async with two_tls(engine) as pair:
        yield pair


# -- bytes -----------------------------------------------------------------------------

SIZES = [1, 64, 16384, 16385, 65536, 65537, 400_000, 3]


async def send_sizes(stream: TLSStream, seed: str) -> None:
    for size in SIZES:
        await stream.send_all(content((seed, size), size))


async def expect_sizes(stream: TLSStream, seed: str) -> None:
    for size in SIZES:
        assert await read(stream, size) == content((seed, size), size)


async def test_bytes_both_ways_at_once(streams: Pair) -> None:
    one, other = streams
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_sizes, one, "there")
        nursery.start_soon(expect_sizes, other, "there")
        nursery.start_soon(send_sizes, other, "back")
        nursery.start_soon(expect_sizes, one, "back")


async def test_without_a_handshake_of_its_own(pair: tuple[Conn, Conn], version: str) -> None:
    """The first receive and send do it, of both ends and all at once."""
    one, other = over(*pair, version)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_sizes, one, "there")
        nursery.start_soon(expect_sizes, other, "there")
        nursery.start_soon(send_sizes, other, "back")
        nursery.start_soon(expect_sizes, one, "back")


@pytest.mark.parametrize("kind_of", [bytearray, memoryview, lambda data: memoryview(data)[::1]])
async def test_any_bytes_can_be_sent(tls: Pair, kind_of: Callable[[bytes], Any]) -> None:
    for size in (5, 200_000):
        data = kind_of(content("any", size))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tls[0].send_all, data)
            assert await read(tls[1], size) == content("any", size)


async def test_a_bytearray_can_be_resized_once_it_was_sent(tls: Pair) -> None:
    for size in (5, 200_000):
        data = bytearray(size)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, tls[1], size)
            await tls[0].send_all(data)
            data.clear()


async def test_nothing_can_be_sent(tls: Pair) -> None:
    await tls[0].send_all(b"")
    await tls[0].send_all(bytearray())
    await tls[0].send_all(b"x")
    assert await tls[1].receive_some() == b"x"


async def test_several_records_are_received_at_once(tls: Pair) -> None:
    one, other = tls
    wire = records(one, b"a" * 16384, b"b", b"c" * 100)
    await one.transport_stream.send_all(wire)
    conn = other.transport_stream
    await until(lambda: conn.statistics().buffered_inbound == len(wire))
    assert await other.receive_some() == b"a" * 16384 + b"b" + b"c" * 100


async def test_no_more_is_received_than_was_asked_for(tls: Pair) -> None:
    one, other = tls
    await one.transport_stream.send_all(records(one, b"abc", b"defg"))
    got = [await other.receive_some(2) for _ in range(2)]
    while len(b"".join(got)) < 7:
        got.append(await other.receive_some(2))
    assert b"".join(got) == b"abcdefg"
    assert max(map(len, got)) == 2


async def test_a_record_that_comes_byte_by_byte(tls: Pair) -> None:
    one, other = tls
    wire = records(one, b"slowly")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one_by_one, one.transport_stream, wire)
        assert await other.receive_some() == b"slowly"


async def one_by_one(conn: Conn, wire: bytes) -> None:
    for at in range(len(wire)):
        await conn.send_all(wire[at : at + 1])


async def test_every_success_is_a_checkpoint(pair: tuple[Conn, Conn], version: str) -> None:
    one, other = over(*pair, version)

    async def check(stream: TLSStream) -> None:
        with assert_checkpoints():
            await stream.do_handshake()
        with assert_checkpoints():
            await stream.do_handshake()
        with assert_checkpoints():
            await stream.send_all(b"xyz")
        with assert_checkpoints():
            await stream.send_all(b"")
        with assert_checkpoints():
            await stream.wait_send_all_might_not_block()
        for expected in b"xyz":
            with assert_checkpoints():
                assert await stream.receive_some(1) == bytes([expected])
        with assert_checkpoints():
            await stream.unwrap()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(check, one)
        nursery.start_soon(check, other)


# -- Trio's own check --------------------------------------------------------------------


async def clog_towards(receiver: TLSStream, sender: TLSStream) -> None:
    """Have a sender's connection hold more than the system takes while nobody reads."""
    conn = sender.transport_stream
    conn.send_nowait(records(sender, *[bytes(16384)] * 20))
    await until(lambda: receiver.transport_stream.statistics().buffered_inbound >= TIGHT.inbound)
    assert conn.statistics().buffered_outbound > 65536


# The check takes two seconds: a version of TLS sees no difference between TCP and unix.
@pytest.mark.parametrize(
    ("kind", "version", "https_compatible"),
    [
        *[("tcp", "tls12", False), ("tcp", "tls13", False), ("tcp", "tls13", True)],
        ("unix", "tls13", False),
    ],
)
async def test_trios_own_check_passes(
    engine: Engine, kind: str, version: str, https_compatible: bool, long: bool
) -> None:
    # TCP takes its time to clog.
    clogs = long or kind == "unix"
    options: dict[str, Any] = {"https_compatible": https_compatible}
    async with AsyncExitStack() as pairs:

        async def make() -> Pair:
            conns = await pairs.enter_async_context(two_conns(engine, kind))
            return over(*conns, version, **options)

        async def make_clogged() -> Pair:
            making = two_tls(engine, kind, version, limits=TIGHT, options=SMALL, **options)
            one, other = await pairs.enter_async_context(making)
            await clog_towards(one, other)
            await clog_towards(other, one)
            return one, other

        await check_two_way_stream(make, make_clogged if clogs else None)


# -- who may call what when --------------------------------------------------------------


async def test_another_task_of_a_kind_is_refused(tls: Pair) -> None:
    one, other = tls
    sender: dict[str, Callable[[], Awaitable[object]]] = {
        "send_all": lambda: one.send_all(b"x"),
        "wait": one.wait_send_all_might_not_block,
        "unwrap": one.unwrap,
    }
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.receive_some)
        await clog_towards(other, one)
        nursery.start_soon(one.send_all, b"x")
        await wait_all_tasks_blocked()
        for refused in sender.values():
            with pytest.raises(trio.BusyResourceError, match="another task"):
                await refused()
        with pytest.raises(trio.BusyResourceError, match="another task is receiving"):
            await one.receive_some()
        nursery.cancel_scope.cancel()


async def test_somebody_uses_the_connection_itself(tls: Pair) -> None:
    one, _ = tls
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.transport_stream.receive_some)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError, match="another task is receiving"):
            await one.receive_some()
        nursery.cancel_scope.cancel()
    await tls[1].send_all(b"fine")
    assert await one.receive_some() == b"fine"


@pytest.mark.parametrize(
    ("call", "error", "named"),
    [
        (lambda s: s.receive_some(0), ValueError, "max_bytes"),
        (lambda s: s.receive_some("x"), TypeError, "max_bytes"),
        (lambda s: s.send_all("text"), TypeError, "data"),
        (lambda s: s.send_all(memoryview(b"abc")[::2]), TypeError, "data"),
        (lambda s: s.send_all(7), TypeError, "data"),
    ],
)
async def test_bad_input(
    pair: tuple[Conn, Conn], call: Callable[[TLSStream], Any], error: type[Exception], named: str
) -> None:
    one, other = over(*pair, "tls13")
    await shake_hands(one, other)
    with pytest.raises(error, match=named):
        await call(one)
    await one.send_all(b"still fine")
    assert await other.receive_some() == b"still fine"


async def test_what_cannot_be_made(pair: tuple[Conn, Conn]) -> None:
    with pytest.raises(TypeError, match="transport_stream"):
        TLSStream(socket, client_context())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="ssl_context"):
        TLSStream(pair[0], None)  # type: ignore[arg-type]


async def test_what_ssl_knows(pair: tuple[Conn, Conn], version: str) -> None:
    one, other = over(*pair, version)
    assert isinstance(one, trio.SSLStream)
    assert one.server_hostname == NAME
    assert (one.server_side, other.server_side) == (False, True)
    assert one.pending() == 0
    assert {"cipher", "session", "receive_some"} <= set(dir(one))
    for early in ("cipher", "version", "getpeercert", "session_reused"):
        with pytest.raises(trio.NeedHandshakeError, match=early):
            getattr(one, early)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = one.nonsense
    await shake_hands(one, other)
    assert one.version() == other.version()
    assert ("DNS", NAME) in one.getpeercert()["subjectAltName"]
    assert one.cipher() == other.cipher()
    fresh = client_context.__wrapped__(version)
    one.context = fresh
    assert one.context is one._ssl_object.context is fresh


async def test_a_session_can_be_resumed(engine: Engine, version: str) -> None:
    client, server = client_context(version), server_context(version)
    session = None
    for reused in (False, True):
        async with two_conns(engine) as conns:
            one = TLSStream(conns[0], client, server_hostname=NAME)
            if session is not None:
                one.session = session
            other = TLSStream(conns[1], server, server_side=True)
            await shake_hands(one, other)
            await other.send_all(b"tickets come along")
            await read(one, 18)
            assert one.session_reused is reused
            session = one.session


async def test_tickets_wait_for_the_first_record(pair: tuple[Conn, Conn]) -> None:
    """A client that only sends would lose what it sent, if it closed before it read them."""
    client, server = over(*pair, "tls13")
    await shake_hands(client, server)
    before = pair[1].statistics().bytes_sent
    await client.send_all(b"x")
    assert await server.receive_some() == b"x"
    assert pair[1].statistics().bytes_sent == before
    await server.send_all(b"y")
    assert pair[1].statistics().bytes_sent > before + 100
    assert await client.receive_some() == b"y"


# -- cancellation ------------------------------------------------------------------------


async def test_a_cancelled_receive_loses_nothing(streams: Pair) -> None:
    one, other = streams
    data = content("cancelled", 50_000)
    wire = records(one, data[:20_000], data[20_000:])
    got = b""
    for at in range(0, len(wire), 5_000):
        # In the middle of a record, too.
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                found: list[bytes] = []
                nursery.start_soon(collect, other, found)
                await wait_all_tasks_blocked()
                await one.transport_stream.send_all(wire[at : at + 5_000])
                await wait_all_tasks_blocked()
                scope.cancel()
        got += b"".join(found)
    assert got + await read(other, len(data) - len(got)) == data


async def collect(stream: TLSStream, found: list[bytes]) -> None:
    while True:
        found.append(await stream.receive_some())


async def test_cancelled_before_it_began(tls: Pair) -> None:
    one, other = tls
    await other.send_all(b"there")
    conn = one.transport_stream
    await until(lambda: conn.statistics().buffered_inbound > 0)
    for call in (one.receive_some, lambda: one.send_all(b"not sent")):
        with trio.CancelScope() as scope:
            scope.cancel()
            await call()
        assert scope.cancelled_caught
    assert await one.receive_some() == b"there"
    await one.send_all(b"sent")
    assert await other.receive_some() == b"sent"


async def test_a_cancelled_send_breaks_the_stream(streams: Pair) -> None:
    one, other = streams
    await clog_towards(other, one)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.send_all, b"x")
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    for call in (one.receive_some, lambda: one.send_all(b"x"), one.wait_send_all_might_not_block):
        with pytest.raises(trio.BrokenResourceError):
            await call()


async def test_a_cancelled_handshake_breaks_the_stream(pair: tuple[Conn, Conn]) -> None:
    one, _ = over(*pair, "tls13")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.receive_some)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    with pytest.raises(trio.BrokenResourceError):
        await one.receive_some()
    await one.aclose()


async def test_whoever_waits_for_a_handshake_hears_of_its_failure(pair: tuple[Conn, Conn]) -> None:
    one, _ = over(*pair, "tls13")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_broken, one.send_all, b"x")
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                inner.start_soon(one.do_handshake)
                await wait_all_tasks_blocked()
                nursery.start_soon(expect_broken, one.receive_some)
                await wait_all_tasks_blocked()
                scope.cancel()
        if not one._handshaken:
            pair[1].abort()


async def expect_broken(call: Callable[..., Awaitable[object]], *args: Any) -> None:
    with pytest.raises(trio.BrokenResourceError):
        await call(*args)


async def cancelled_after(steps: int, call: Callable[[], Awaitable[object]]) -> bool:
    """Whether a call was cancelled when other tasks had so many steps meanwhile."""

    async def cancel() -> None:
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        scope.cancel()

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(cancel)
            await call()
    return scope.cancelled_caught


@pytest.mark.parametrize("steps", range(9))
async def test_a_handshake_cancelled_at_any_step(
    pair: tuple[Conn, Conn], version: str, steps: int
) -> None:
    one, other = over(*pair, version)

    async def go_on() -> None:
        with suppress(trio.BrokenResourceError):
            await other.do_handshake()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(go_on)
        if await cancelled_after(steps, one.do_handshake):
            for call in (one.do_handshake, one.receive_some, lambda: one.send_all(b"x")):
                with pytest.raises(trio.BrokenResourceError):
                    await call()
            await one.aclose()
        else:
            await one.send_all(b"done")
            assert await other.receive_some() == b"done"


async def test_receives_cancelled_at_any_step(streams: Pair) -> None:
    one, other = streams
    data, got = content("steps", 100_000), bytearray()

    async def collect_all() -> None:
        while len(got) < len(data):
            got.extend(await other.receive_some(5_000))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.send_all, data)
        steps = 0
        while await cancelled_after(steps % 7, collect_all):
            steps += 1
    assert got == data


async def test_churn(engine: Engine, kind: str, long: bool) -> None:
    """Connections that end in all ways in the middle of everything; what arrives is right."""
    rng = random.Random(1)

    async def send(stream: TLSStream, seed: int) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            for size in SIZES:
                await stream.send_all(content((seed, size), size))

    async def receive(stream: TLSStream, seed: int, most: int, nursery: trio.Nursery) -> None:
        expected = b"".join(content((seed, size), size) for size in SIZES)
        at = 0
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while at < most and (data := await stream.receive_some()):
                assert data == expected[at : at + len(data)]
                at += len(data)
            with suppress(trio.BusyResourceError):  # unwrap, while another task sends
                await rng.choice([stream.aclose, stream.unwrap, abort(stream)])()
        nursery.cancel_scope.cancel()

    def abort(stream: TLSStream) -> Callable[[], Awaitable[object]]:
        async def call() -> None:
            await trio.aclose_forcefully(stream)

        return call

    async def live(seed: int) -> None:
        async with two_conns(engine, kind) as conns:
            one, other = over(*conns, rng.choice(["tls12", "tls13"]))
            with trio.move_on_after(rng.random() * 0.05) if seed % 3 == 0 else nullcontext():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(send, one, seed)
                    nursery.start_soon(send, other, -seed)
                    nursery.start_soon(receive, other, seed, rng.randrange(sum(SIZES)), nursery)
                    nursery.start_soon(receive, one, -seed, sum(SIZES), nursery)

    for start in range(0, 2000 if long else 40, 20):
        async with trio.open_nursery() as nursery:
            for seed in range(start, start + 20):
                nursery.start_soon(live, seed + 1)


# -- ends --------------------------------------------------------------------------------


async def test_a_goodbye_ends_the_stream_and_the_other_direction_goes_on(streams: Pair) -> None:
    one, other = streams
    await one.send_all(b"last")
    await one.transport_stream.send_all(goodbye(one))
    assert await read_all(other) == b"last"
    assert await other.receive_some() == b""
    await other.send_all(b"answer")
    assert await one.receive_some() == b"answer"


def goodbye(stream: TLSStream) -> bytes:
    with pytest.raises(ssl.SSLWantReadError):
        stream._ssl_object.unwrap()
    return outgoing[stream._ssl_object].read()


async def test_an_end_without_goodbye(engine: Engine, kind: str, version: str) -> None:
    async with two_tls(engine, kind, version) as (one, other):
        await one.send_all(b"half")
        await one.transport_stream.send_eof()
        assert await other.receive_some() == b"half"
        with pytest.raises(trio.BrokenResourceError) as raised:
            await other.receive_some()
        assert isinstance(raised.value.__cause__, ssl.SSLEOFError)
        with pytest.raises(trio.BrokenResourceError):
            await other.send_all(b"x")


async def test_an_end_without_goodbye_as_https_does(engine: Engine, version: str) -> None:
    async with two_tls(engine, version=version, https_compatible=True) as (one, other):
        await one.send_all(b"all")
        await one.aclose()
        assert await read_all(other) == b"all"


async def test_a_reset(engine: Engine, version: str) -> None:
    async with two_tls(engine, version=version) as (one, other):
        one.transport_stream.abort()
        with pytest.raises(trio.BrokenResourceError) as raised:
            await other.receive_some()
        assert isinstance(raised.value.__cause__, OSError)


async def test_a_damaged_record_breaks_it_behind_the_good_ones(streams: Pair) -> None:
    one, other = streams
    good, bad = records(one, b"good"), bytearray(records(one, b"bad"))
    bad[-1] ^= 1
    await one.transport_stream.send_all(good + bad)
    conn = other.transport_stream
    await until(lambda: conn.statistics().buffered_inbound == len(good + bad))
    assert await other.receive_some() == b"good"
    for _ in range(2):
        with pytest.raises(trio.BrokenResourceError):
            await other.receive_some()


async def test_a_peer_that_does_not_speak_tls(peer: tuple[Conn, Any]) -> None:
    conn, sock = peer
    await sock.send(b"GET / HTTP/1.1\r\n\r\n")
    stream = TLSStream(conn, server_context(), server_side=True)
    with pytest.raises(trio.BrokenResourceError) as raised:
        await stream.do_handshake()
    assert isinstance(raised.value.__cause__, ssl.SSLError)
    await stream.aclose()


async def test_closing_wakes_who_waits(tls: Pair) -> None:
    one, other = tls
    await clog_towards(other, one)

    async def expect_closed(call: Callable[..., Awaitable[object]], *args: Any) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await call(*args)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_closed, one.receive_some)
        nursery.start_soon(expect_closed, one.send_all, b"x")
        await wait_all_tasks_blocked()
        await one.aclose()
    for call in (one.receive_some, lambda: one.send_all(b"x"), one.unwrap, one.do_handshake):
        with pytest.raises(trio.ClosedResourceError):
            await call()
    with assert_checkpoints():
        await one.aclose()


async def test_closing_does_not_wait_for_a_peer_that_does_not_read(streams: Pair) -> None:
    one, other = streams
    await clog_towards(other, one)
    await one.aclose()
    assert len(await read_all(other)) == 20 * 16384


async def test_closing_says_goodbye_past_what_was_not_received(streams: Pair) -> None:
    one, other = streams
    await other.transport_stream.send_all(records(other, b"a", b"b"))
    assert await one.receive_some(1) == b"a"
    await one.aclose()
    assert await other.receive_some() == b""


async def test_closing_by_force_is_a_truncation(streams: Pair) -> None:
    one, other = streams
    await trio.aclose_forcefully(one)
    with pytest.raises(trio.BrokenResourceError):
        await other.receive_some()


async def test_the_connection_goes_on_without_tls(streams: Pair) -> None:
    one, other = streams
    conn = one.transport_stream
    results: list[Any] = []

    async def unwrap(stream: TLSStream) -> None:
        results.append(await stream.unwrap())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(unwrap, one)
        nursery.start_soon(unwrap, other)
    assert {raw for raw, _ in results} == {conn, *({raw for raw, _ in results} - {conn})}
    assert one.transport_stream is None
    (first, behind), (second, ahead) = results
    assert behind == ahead == b""
    await first.send_all(b"plain")
    assert await second.receive_some() == b"plain"
    with pytest.raises(trio.ClosedResourceError):
        await one.receive_some()


async def test_a_stream_is_no_garbage_of_a_cycle(engine: Engine) -> None:
    """Nothing waits for the collector: each connection is freed once nobody refers to it."""
    async with two_tls(engine) as (one, other):
        await one.send_all(b"x")
        assert await other.receive_some() == b"x"
        await one.aclose()
        await other.aclose()
    gc.collect()
    gc.disable()
    try:
        before = sum(type(it) is TLSStream for it in gc.get_objects())
        del one, other
        assert sum(type(it) is TLSStream for it in gc.get_objects()) == before - 2
    finally:
        gc.enable()
