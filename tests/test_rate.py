"""`Conn.rate`: how many bytes a second move on a connection, whoever moves them.

What a rate allows is counted: a second's worth, and what time has added since it was set. A rate
that is low enough holds back for longer than any test may take, so what arrives after it was
lifted has waited for it."""

from __future__ import annotations

import io
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from event_servers import caller, served, served_frames
from helpers import (
    DEFAULT,
    SMALL,
    conn_and_peer,
    content,
    dial,
    read,
    read_all,
    send,
    two_conns,
    until,
)
from test_idle import virtual_pair
from tls_helpers import over, shake_hands
from trio.testing import MockClock
from websocket_model import KEY, PING, PONG, frame

from trio_wknet import (
    Admission,
    Conn,
    Engine,
    FrameChannel,
    Idle,
    LengthPrefixed,
    Limits,
    Rates,
    WebSocket,
    open_engine,
    relay,
)

SLOW = 1000  # bytes a second
SIZE = 50_000  # takes longer at that rate than a test may last, and fits limits.outbound
DATA = content("rates", SIZE)
PING_FRAME = frame(PING, b"trio-wknet")
PREFIXED = LengthPrefixed(4, max_frame=SIZE)
LARGE = content("large", 3 * SIZE)  # more than a ring holds
LARGER = LengthPrefixed(4, max_frame=len(LARGE))

Pair = tuple[Conn, Conn]
Step = Callable[[], Awaitable[Any]]


class Bound:
    """What a rate that is set now allows at most."""

    def __init__(self, rate: float = SLOW) -> None:
        self.rate, self.since = rate, time.monotonic()

    def holds(self, count: int) -> bool:
        return count <= self.rate * (1 + time.monotonic() - self.since) + 1


async def expect(source: Any, data: bytes) -> None:
    assert await read(source, len(data)) == data


# -- one after the other, each way to send and to receive -----------------------------------------
#
# Each is given two connections, and says what is to be done at either end at the same time.


async def sends_all(a: Conn, b: Conn) -> tuple[Step, Step]:
    return partial(a.send_all, LARGE), partial(expect, b, LARGE)


async def sends_vectored(a: Conn, b: Conn) -> tuple[Step, Step]:
    pieces = [DATA[:7], b"", DATA[7:1500], DATA[1500:1501], DATA[1501:]]
    return partial(a.send_vectored, pieces), partial(expect, b, DATA)


async def sends_a_file(a: Conn, b: Conn) -> tuple[Step, Step]:
    async def step() -> None:
        with tempfile.TemporaryFile() as file:
            file.write(LARGE)
            file.flush()
            assert await a.send_file(file) == len(LARGE)

    return step, partial(expect, b, LARGE)


async def sends_what_is_read(a: Conn, b: Conn) -> tuple[Step, Step]:
    return partial(a.send_file, io.BytesIO(LARGE)), partial(expect, b, LARGE)


async def leaves_it_to_the_reactor(a: Conn, b: Conn) -> tuple[Step, Step]:
    async def step() -> None:
        for at in range(0, SIZE, 5000):  # the first goes out, the others are corked
            a.send_nowait(DATA[at : at + 5000])
        await a.flush()

    return step, partial(expect, b, DATA)


async def sends_behind(a: Conn, b: Conn) -> tuple[Step, Step]:
    async def step() -> None:
        a.send_nowait(DATA)
        await a.send_all(LARGE)

    return step, partial(expect, b, DATA + LARGE)


async def ends_behind(a: Conn, b: Conn) -> tuple[Step, Step]:
    async def step() -> None:
        a.send_nowait(DATA)
        await a.send_eof()

    async def to_the_end() -> None:
        assert await read_all(b) == DATA

    return step, to_the_end


async def detaches_behind(a: Conn, b: Conn) -> tuple[Step, Step]:
    async def step() -> None:
        a.send_nowait(DATA)
        sock, unread = await a.detach()
        sock.close()
        assert unread == b""

    return step, partial(expect, b, DATA)


async def waits_to_send(a: Conn, b: Conn) -> tuple[Step, Step]:
    async def step() -> None:
        for at in range(0, SIZE, 500):
            await a.wait_send_all_might_not_block()
            a.send_nowait(DATA[at : at + 500])

    return step, partial(expect, b, DATA)


async def sends_a_frame(a: Conn, b: Conn) -> tuple[Step, Step]:
    async def receive() -> None:
        assert await b.framed(LARGER).receive() == LARGE

    return partial(a.framed(LARGER).send, LARGE), receive


async def broadcasts(a: Conn, b: Conn) -> tuple[Step, Step]:
    async def step() -> None:
        group = a.engine.group()
        group.add(a)
        await group.broadcast(DATA)

    return step, partial(expect, b, DATA)


async def speaks_websocket(a: Conn, b: Conn) -> tuple[Step, Step]:
    ours, theirs = WebSocket._over(a, "client"), WebSocket._over(b, "server")

    async def receive() -> None:
        assert await theirs.receive() == LARGE

    return partial(ours.send, LARGE), receive


async def speaks_tls(a: Conn, b: Conn) -> tuple[Step, Step]:
    client, server = over(a, b, "tls13")
    await shake_hands(client, server)
    return partial(client.send_all, LARGE), partial(expect, server, LARGE)


async def is_relayed_to(a: Conn, b: Conn) -> tuple[Step, Step]:
    """Copied, and then spliced."""
    other, before = adopted(a.engine)

    async def step() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, before, a)
            await other.send_all(LARGE)
            await other.send_eof()
            await expect(b, LARGE)
            assert await b.receive_some() == b""
            await b.send_eof()
            assert await other.receive_some() == b""
        other.abort()
        before.abort()

    return step, trio.lowlevel.checkpoint


async def receives_some(a: Conn, b: Conn) -> tuple[Step, Step]:
    return partial(a.send_all, LARGE), partial(expect, b, LARGE)


async def receives_exactly(a: Conn, b: Conn) -> tuple[Step, Step]:
    async def receive() -> None:
        assert await b.receive_exactly(len(LARGE)) == LARGE

    return partial(a.send_all, LARGE), receive


async def receives_into(a: Conn, b: Conn) -> tuple[Step, Step]:
    async def receive() -> None:
        data, buffer = bytearray(), bytearray(10_000)
        while len(data) < len(LARGE):
            data += buffer[: await b.receive_into(buffer)]
        assert data == LARGE

    return partial(a.send_all, LARGE), receive


async def receives_the_end(a: Conn, b: Conn) -> tuple[Step, Step]:
    async def step() -> None:
        await a.send_all(LARGE)
        await a.send_eof()

    async def receive() -> None:
        assert await read_all(b) == LARGE

    return step, receive


async def is_relayed_from(a: Conn, b: Conn) -> tuple[Step, Step]:
    after, other = adopted(a.engine)

    async def step() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, b, after)
            nursery.start_soon(a.send_all, LARGE)
            await expect(other, LARGE)
            await a.send_eof()
            assert await other.receive_some() == b""
            await other.send_eof()
            assert await a.receive_some() == b""
        other.abort()
        after.abort()

    return step, trio.lowlevel.checkpoint


def adopted(engine: Engine) -> Pair:
    ours, theirs = (engine.adopt(end) for end in socket.socketpair())
    assert isinstance(ours, Conn)
    assert isinstance(theirs, Conn)
    return ours, theirs


WRITING = (
    *(sends_all, sends_vectored, sends_a_file, sends_what_is_read, leaves_it_to_the_reactor),
    *(sends_behind, ends_behind, detaches_behind, waits_to_send, sends_a_frame, broadcasts),
    *(speaks_websocket, speaks_tls, is_relayed_to),
)
READING = (
    *(receives_some, receives_exactly, receives_into, receives_the_end),
    *(sends_a_frame, speaks_websocket, speaks_tls, is_relayed_from),
)


@asynccontextmanager
async def many_pairs(
    engine: Engine, kind: str, count: int, limits: Limits
) -> AsyncIterator[list[Pair]]:
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(two_conns(engine, kind, limits=limits))
            for _ in range(count)
        ]


async def is_held_back_and_let_go(
    way: Any, a: Conn, b: Conn, rated: Conn, direction: str, tell: Callable[[str], None]
) -> None:
    def moved() -> int:
        statistics = rated.statistics()
        return statistics.bytes_sent if direction == "write" else statistics.bytes_received

    steps = await way(a, b)
    before = moved()
    bound = Bound()
    unlimited = {"read": None, "write": None}
    assert rated.rate(**{direction: SLOW}) == Rates(**{**unlimited, direction: SLOW})
    async with trio.open_nursery() as nursery:
        for step in steps:
            nursery.start_soon(step)
        # The first second's worth, and what the wheel has let through after that.
        await until(lambda: moved() - before > SLOW, f"{way.__name__}: going on")
        assert bound.holds(moved() - before), way.__name__
        assert rated.rate(**{direction: None}) == Rates(None, None)
    tell(way.__name__)


@pytest.mark.parametrize("direction", ["read", "write", "read little"])
async def test_what_waits_goes_on_when_the_rate_is_lifted(
    engine: Engine, kind: str, direction: str
) -> None:
    """Every way, each on a connection of its own. With little room for what is read, reading
    pauses at its mark, too, and this side would go on at the socket."""
    ways = WRITING if direction == "write" else READING
    limits = Limits(inbound=512) if "little" in direction else DEFAULT
    direction = direction.split()[0]
    done: list[str] = []
    async with (
        many_pairs(engine, kind, len(ways), limits) as pairs,
        trio.open_nursery() as nursery,
    ):
        for way, (a, b) in zip(ways, pairs, strict=True):
            rated = b if direction == "read" else a
            nursery.start_soon(is_held_back_and_let_go, way, a, b, rated, direction, done.append)
    assert sorted(done) == sorted(way.__name__ for way in ways)


# -- what a rate allows ---------------------------------------------------------------------------


async def test_both_rates_at_once(pair: Pair) -> None:
    """Neither is passed at any time, and all arrives."""
    fast, size = 400_000, 440_000
    a, b = pair
    out, back = content("out", size), content("back", size)
    bound = Bound(fast)
    a.rate(read=fast, write=fast)

    async def receiving(conn: Conn, data: bytes) -> None:
        received = bytearray()
        while len(received) < size:
            received += await conn.receive_some()
            assert bound.holds(a.statistics().bytes_received)
            assert bound.holds(a.statistics().bytes_sent)
        assert received == data

    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.send_all, out)
        nursery.start_soon(b.send_all, back)
        nursery.start_soon(receiving, b, out)
        nursery.start_soon(receiving, a, back)
    # That it took as long as it must: otherwise the bound has not held.
    assert bound.holds(size)


async def test_exactly_by_virtual_time(autojump_clock: MockClock) -> None:
    async with virtual_pair() as (conn, peer):
        conn.rate(read=SLOW, write=SLOW)
        begun = trio.current_time()
        await conn.send_all(bytes(5 * SLOW))
        assert 3.9 <= trio.current_time() - begun <= 4.1
        assert conn.statistics().send_calls <= 100
        assert len(peer.recv(10 * SLOW)) == 5 * SLOW
        # Its bucket is empty, and the other one is full again.
        peer.sendall(bytes(3 * SLOW))
        begun = trio.current_time()
        assert await conn.receive_exactly(3 * SLOW) == bytes(3 * SLOW)
        assert 1.9 <= trio.current_time() - begun <= 2.1
        # No more than a second's worth is saved up.
        await trio.sleep(60)
        begun = trio.current_time()
        await conn.send_all(bytes(2 * SLOW))
        assert 0.9 <= trio.current_time() - begun <= 1.1
        # The lowest rate there is: a byte at a time.
        conn.rate(write=1)
        begun = trio.current_time()
        await conn.send_all(bytes(4))
        assert 2.9 <= trio.current_time() - begun <= 4.1


async def test_a_rate_is_changed_midway(autojump_clock: MockClock) -> None:
    """Also while a task waits."""
    async with virtual_pair() as (conn, _), trio.open_nursery() as nursery:
        conn.rate(write=SLOW)
        nursery.start_soon(conn.send_all, bytes(11 * SLOW))
        await trio.sleep(2.01)
        assert 2.9 * SLOW <= conn.statistics().bytes_sent <= 3.1 * SLOW
        conn.rate(write=SLOW / 10)
        await trio.sleep(10)
        assert 3.8 * SLOW <= conn.statistics().bytes_sent <= 4.2 * SLOW
        conn.rate(write=5 * SLOW)
        await trio.sleep(1)
        assert 8.5 * SLOW <= conn.statistics().bytes_sent <= 9.7 * SLOW
        assert conn.rate(read=7) == Rates(7, 5 * SLOW)
        assert conn.rate() == Rates(7, 5 * SLOW)
        conn.rate(write=1)
        sent = conn.statistics().bytes_sent
        await trio.sleep(1)
        assert conn.statistics().bytes_sent - sent <= 2
        conn.rate(write=None)
    assert conn.statistics().bytes_sent == 11 * SLOW


async def test_no_timer_is_left(autojump_clock: MockClock) -> None:
    async with virtual_pair() as (conn, peer):
        conn.rate(read=SLOW, write=SLOW)
        peer.sendall(bytes(2 * SLOW))
        await conn.send_all(bytes(2 * SLOW))
        assert await conn.receive_exactly(2 * SLOW) == bytes(2 * SLOW)
        await trio.sleep(1)
        turns = conn.engine.statistics().reactors[0].turns
        await trio.sleep(1000)
        assert conn.engine.statistics().reactors[0].turns - turns <= 2


async def test_hundreds_of_connections(reactors: int) -> None:
    """On one wheel: all of them get through, in time for their rates."""
    count, fast, size = 200, 20_000, 22_000
    received = 0

    async def one(a: Conn, b: Conn) -> None:
        nonlocal received
        bound = Bound(fast)
        a.rate(write=fast)
        b.rate(read=fast)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.send_all, DATA[:size])
            await expect(b, DATA[:size])
        assert bound.holds(size)
        received += 1
        a.abort()
        b.abort()

    with trio.fail_after(20):
        async with open_engine(reactors) as engine, trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(one, *adopted(engine))
    assert received == count


# -- the end --------------------------------------------------------------------------------------


async def held_back(conn: Conn) -> None:
    """Until a task that sends has used up the rate."""
    await until(lambda: conn.statistics().bytes_sent >= SLOW)


async def fails_to_send(conn: Conn, error: type[Exception]) -> None:
    with pytest.raises(error):
        await conn.send_all(DATA)


async def test_a_sender_that_is_cancelled(pair: Pair) -> None:
    """What was sent is known; the next message follows on it."""
    a, b = pair
    a.rate(write=SLOW)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.send_all, DATA)
        await held_back(a)
        nursery.cancel_scope.cancel()
    sent = a.statistics().bytes_sent
    a.rate(write=None)
    await a.send_all(b"next")
    assert await read(b, sent + 4) == DATA[:sent] + b"next"


@pytest.mark.parametrize("way", ["aclose", "abort"])
async def test_closed_under_a_sender(pair: Pair, way: str) -> None:
    a, b = pair
    a.rate(write=SLOW)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fails_to_send, a, trio.ClosedResourceError)
        await held_back(a)
        if way == "abort":
            a.abort()
        else:
            await a.aclose()
    if way == "aclose":
        assert await read_all(b) == DATA[: a.statistics().bytes_sent]


async def test_what_is_left_when_it_is_closed(pair: Pair) -> None:
    """Is sent at once: it has no rate any more."""
    a, b = pair
    a.rate(write=SLOW)
    a.send_nowait(DATA)
    assert a.statistics().buffered_outbound > 0
    await a.aclose()
    assert await read_all(b) == DATA


async def test_closed_while_its_peer_is_held_back(pair: Pair) -> None:
    a, b = pair
    b.rate(read=SLOW)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def receiving() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await b.receive_exactly(SIZE)

        await a.send_all(DATA)
        await until(lambda: b.statistics().bytes_received >= SLOW)
        await b.aclose()


async def test_the_end_is_behind_what_the_rate_holds_back(pair: Pair) -> None:
    """But that the peer has finished is known at once."""
    a, b = pair
    b.rate(read=SLOW)
    await a.send_all(DATA)
    await a.aclose()
    with trio.fail_after(20):
        await b.wait_closed()
    assert b.statistics().bytes_received < SIZE
    b.rate(read=None)
    assert await read_all(b) == DATA


async def test_a_peer_that_resets(engine: Engine) -> None:
    """Wakes those who wait for the rate."""
    async with two_conns(engine) as (a, b), trio.open_nursery() as nursery:
        a.rate(read=SLOW, write=SLOW)
        nursery.start_soon(b.send_all, DATA)
        await until(lambda: a.statistics().bytes_received >= SLOW)
        nursery.start_soon(fails_to_send, a, trio.BrokenResourceError)
        await held_back(a)
        b.abort()


async def test_the_engine_closes(reactors: int) -> None:
    async with trio.open_nursery() as nursery:
        async with open_engine(reactors) as engine:
            a, b = adopted(engine)
            a.rate(read=SLOW, write=SLOW)
            nursery.start_soon(fails_to_send, a, trio.ClosedResourceError)
            await b.send_all(DATA)
            await held_back(a)


# -- event mode -----------------------------------------------------------------------------------


async def test_callbacks(engine: Engine) -> None:
    conns: list[Conn] = []
    data = bytearray()

    def on_connect(conn: Conn) -> None:
        conn.rate(read=SLOW, write=SLOW)
        conns.append(conn)

    def on_data(conn: Conn) -> None:
        new = conn.receive_nowait()
        data.extend(new)
        conn.send_nowait(new)

    bound = Bound()
    async with served(engine, on_data, on_connect=on_connect) as listener:
        with caller(listener) as peer:
            await until(lambda: conns)  # what comes before that has no rate
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, peer, DATA)
                await until(lambda: conns[0].statistics().bytes_sent > SLOW)
                assert bound.holds(conns[0].statistics().bytes_received)
                assert bound.holds(conns[0].statistics().bytes_sent)
                conns[0].rate(read=None)
                conns[0].rate(write=None)
                await expect(peer, DATA)
    assert data == DATA


async def test_frames_for_callbacks(engine: Engine) -> None:
    got: list[bytes] = []
    conns: list[Conn] = []

    def on_connect(channel: FrameChannel) -> None:
        channel.conn.rate(read=SLOW)
        conns.append(channel.conn)

    message = len(DATA).to_bytes(4, "big") + DATA
    async with served_frames(
        engine, PREFIXED, lambda _, frames: got.extend(frames), on_connect=on_connect
    ) as listener:
        with caller(listener) as peer:
            await until(lambda: conns)
            await send(peer, message * 3)
            await until(lambda: conns[0].statistics().bytes_received > SLOW)
            assert got == []
            conns[0].rate(read=None)
            await until(lambda: len(got) == 3)
    assert got == [DATA] * 3


# -- who does not judge it ------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["timeout", "scope"])
async def test_it_is_not_idle_while_it_waits(autojump_clock: MockClock, way: str) -> None:
    """A byte moves each second, which is less often than the idle timeout asks for."""
    async with virtual_pair() as (conn, peer), trio.open_nursery() as nursery:
        conn.rate(read=1, write=1)
        peer.sendall(bytes(5))
        nursery.start_soon(conn.send_all, bytes(5))
        if way == "timeout":
            conn.idle_timeout = Idle(read=0.2, write=0.2)
            assert await conn.receive_exactly(5) == bytes(5)
        else:
            with conn.idle_scope(read=0.2, write=0.2) as scope:
                assert await conn.receive_exactly(5) == bytes(5)
            assert not scope.cancel_called
        await until(lambda: conn.statistics().bytes_sent == 5)
        if way == "timeout":  # and then it is
            await conn.wait_closed()
            assert conn.close_reason in ("read idle", "write idle")


@pytest.mark.parametrize("direction", ["read", "write"])
async def test_its_pace_is_not_judged(
    autojump_clock: MockClock, tmp_path: Path, direction: str
) -> None:
    """By a rate of the listener's that its own is far below."""
    data = bytes(6 * SLOW)
    admission = Admission(min_rate=1_000_000, rate_window=1)
    async with open_engine() as engine:
        listener = await engine.listen(f"unix://{tmp_path}/socket", admission=admission)
        with dial(listener) as peer:
            conn = await listener.accept()
            conn.rate(read=SLOW, write=SLOW)
            if direction == "read":
                peer.sendall(data)
                assert await conn.receive_exactly(len(data)) == data
            else:
                conn.send_nowait(data)
                await conn.flush()
            assert trio.current_time() > 4.5
            assert conn.close_reason is None
            conn.abort()
        await listener.aclose()


async def test_its_pings_are_answered_in_time(autojump_clock: MockClock) -> None:
    """A peer is not gone because our ping is behind what the rate holds back."""
    async with virtual_pair() as (conn, peer):
        peer.setblocking(False)
        ws = WebSocket._over(conn, "server", ping_interval=1, ping_timeout=1)
        conn.rate(write=SLOW)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ws.receive)
            nursery.start_soon(ws.send, bytes(20 * SLOW))
            for _ in range(50):  # so that its wheel's times and the pings' come together
                await trio.sleep(0.1)
            conn.rate(write=None)
            received = b""
            while PING_FRAME not in received:
                await trio.sleep(0.1)
                with suppress(BlockingIOError):
                    received += peer.recv(100_000)
            peer.sendall(frame(PONG, b"trio-wknet", key=KEY))
            await trio.sleep(0.95)
            assert ws.close_code is None
            nursery.cancel_scope.cancel()


async def test_the_budget_counts_what_it_holds(reactors: int) -> None:
    """Above it the largest is ended, though only its own rate has made it so."""
    limits = Limits(outbound=1 << 20)
    async with (
        open_engine(reactors, max_buffered=1 << 20) as engine,
        two_conns(engine, limits=limits) as (a, _),
        two_conns(engine, limits=limits) as (c, d),
    ):
        a.rate(write=SLOW)
        c.rate(write=SLOW)
        a.send_nowait(bytes(800_000))
        c.send_nowait(bytes(300_000))
        await until(lambda: a.close_reason == "budget")
        c.rate(write=None)
        await expect(d, bytes(300_000))


async def test_a_peer_that_is_slower_than_the_rate(engine: Engine, kind: str) -> None:
    """The kernel is full before the rate is used up: then that is waited for."""
    async with conn_and_peer(engine, kind, options=SMALL) as (conn, peer):
        conn.rate(read=10**9, write=10**9)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conn.send_all, LARGE * 8)
            await until(lambda: conn.statistics().bytes_sent > 0)
            await expect(peer, LARGE * 8)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, peer, LARGE * 8)
            await expect(conn, LARGE * 8)


# -- what is asked for ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["read", "write"])
async def test_bad_values_are_named(engine: Engine, name: str) -> None:
    async with two_conns(engine) as (a, _):
        for value in ("1", True, False, b"1", 1j, [1]):
            wrong: Any = {name: value}
            with pytest.raises(TypeError, match=f"^{name} must be a number of bytes a second, not"):
                a.rate(**wrong)
        for number in (0, 0.5, -1, float("inf"), float("-inf"), float("nan")):
            with pytest.raises(ValueError, match=f"^{name} must be at least 1 byte a second and"):
                a.rate(**{name: number})
        with pytest.raises(TypeError):
            a.rate(1)  # type: ignore[call-arg]
        assert a.rate() == Rates(None, None)
        assert a.rate(read=1.9, write=1) == Rates(1, 1)
        a.rate(**{name: 1e300})
        assert a.rate(**{name: 10**400})._asdict()[name] > 10**12
        with pytest.raises(ValueError, match=name):
            a.rate(**{name: 0})
        assert a.rate(read=None, write=None) == Rates(None, None)


async def test_a_connection_that_is_closed(pair: Pair) -> None:
    a, _ = pair
    a.rate(read=5)
    a.abort()
    with pytest.raises(trio.ClosedResourceError, match="aborted"):
        a.rate()
    with pytest.raises(trio.ClosedResourceError):
        a.rate(read=5)


async def test_the_next_connection_has_none(engine: Engine) -> None:
    """Though it is given the same slot."""
    for _ in range(3):
        async with two_conns(engine, "unix") as (a, b):
            assert a.rate() == b.rate() == Rates(None, None)
            a.rate(read=1, write=1)
            b.rate(read=1, write=1)
            a.rate(read=None)
            b.rate(write=None)
            a.send_nowait(bytes(5))


async def test_by_a_tls_stream(engine: Engine, kind: str) -> None:
    async with two_conns(engine, kind) as conns:
        client, server = over(*conns, "tls13")
        await shake_hands(client, server)
        assert client.rate(write=5) == Rates(None, 5)
        assert client.rate() == conns[0].rate() == Rates(None, 5)
        assert client.rate(write=None) == Rates(None, None)
