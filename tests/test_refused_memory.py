"""No native memory, at any moment: each scenario is repeated with its first request for memory
refused, its second, and so on, until one runs through; and likewise with all requests refused
from there on, until the scenario is over.

Each time what fails says that memory was missing, others go on, and nothing is kept: no
memory, no slot, no descriptor.
"""

from __future__ import annotations

import errno
import gc
import logging
import socket
import tempfile
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from itertools import count
from typing import Any

import pytest
import trio
from helpers import (
    PATIENCE,
    SMALL,
    conn_and_peer,
    content,
    dial,
    plain_pair,
    read,
    refusing,
    send,
    two_conns,
    until,
    url,
)
from tls_helpers import over
from websocket_model import KEY, PONG, TEXT, decode, frame

from trio_wknet import (
    Admission,
    Conn,
    ConnectionClosed,
    ConnOptions,
    Engine,
    LengthPrefixed,
    Limits,
    Listener,
    PerMessageDeflate,
    Rates,
    RingBuffer,
    TimingWheel,
    TLSStream,
    WebSocket,
    open_engine,
    relay,
)
from trio_wknet._engine import default_top
from trio_wknet._native.testing import (
    fill_slabs,
    memory_counts,
    memory_in_use,
    return_slots,
    watch_memory,
)
from trio_wknet._websocket.deflate import Agreed, coders

pytestmark = pytest.mark.usefixtures("nothing_left")

LOCAL = "tcp://127.0.0.1:0"
AT_ONCE = Limits(linger_time=0)
FRAMES = LengthPrefixed(4, max_frame=1 << 20)
PIPED = ConnOptions(send_buffer=100_000, receive_buffer=100_000)
ALL = 0xFFFFFFFF  # requests: from the first that is refused on


class Refusal:
    """What a scenario enters where memory may be refused."""

    def __init__(self, first: int, number: int) -> None:
        self.first, self.number = first, number
        self.refused = 0
        self.is_sure = True  # that memory is asked for

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with refusing(first=self.first, count=self.number):
            try:
                yield
            finally:
                self.refused += memory_counts()[1]


Scenario = Callable[[Engine, Refusal, str], Awaitable[None]]


async def is_well(conn: Conn, peer: Any) -> None:
    """It was there all the time, and is served."""
    for size in (10, 3000):
        await send(peer, bytes(size))
        assert await conn.receive_exactly(size) == bytes(size)
        await conn.send_all(bytes(size))
        assert await read(peer, size) == bytes(size)


@asynccontextmanager
async def bystander(engine: Engine, kind: str) -> AsyncIterator[None]:
    async with conn_and_peer(engine, kind) as pair:
        await is_well(*pair)
        yield
        await is_well(*pair)


def in_use() -> dict[str, int]:
    return {site: number for site, number in memory_in_use().items() if number}


async def nothing_is_kept() -> None:
    """By tasks that end soon, at most, and garbage."""
    for tries in count():
        if not in_use():
            return
        gc.collect()
        await trio.lowlevel.checkpoint()
        assert tries < 10, in_use()


async def once(reactors: int, kind: str, scenario: Scenario, refusal: Refusal) -> None:
    async with open_engine(reactors) as engine:
        async with bystander(engine, kind):
            await scenario(engine, refusal, kind)
        await until(lambda: engine.statistics().connections == 0)


async def sweep(reactors: int, kind: str, number: int, scenario: Scenario) -> None:
    with trio.fail_after(PATIENCE):
        for first in count(1):
            refusal = Refusal(first, number)
            watch_memory(True)
            await once(reactors, kind, scenario, refusal)
            await nothing_is_kept()
            if refusal.refused == 0:
                break
    assert first > 1 or not refusal.is_sure, "it asks for no memory at all"


@pytest.fixture(autouse=True)
def _unwatched() -> Iterator[None]:
    gc.collect()
    logging.disable()  # pytest would keep what is logged about
    yield
    logging.disable(logging.NOTSET)
    watch_memory(False)


@contextmanager
def may_starve() -> Iterator[None]:
    """All that may be wrong is that there was no memory."""
    try:
        yield
    except MemoryError:
        pass
    except (trio.BrokenResourceError, ConnectionClosed) as broken:
        assert is_starved(broken)


def is_starved(exc: BaseException) -> bool:
    cause = exc.__cause__
    return isinstance(cause, OSError) and cause.errno == errno.ENOMEM


async def all_that_comes(peer: Any, data: bytearray) -> None:
    with suppress(ConnectionResetError):
        while more := await peer.recv(65536):
            data += more


SCENARIOS: dict[str, Scenario] = {}


def scenario(function: Scenario) -> Scenario:
    SCENARIOS[function.__name__] = function
    return function


# -- receiving -------------------------------------------------------------------------------


@scenario
async def receiving(engine: Engine, refusal: Refusal, kind: str) -> None:
    """What came before the hole is delivered, and nothing that came behind it."""
    data = content("received", 51_300)
    async with conn_and_peer(engine, kind) as (conn, peer):
        at = 0

        def is_there() -> bool:
            return conn.statistics().buffered_inbound == at or conn.close_reason is not None

        with refusal():
            for size in (300, 1000, 30_000, 20_000):
                await send(peer, data[at : at + size])
                at += size
                await until(is_there)
        waiting = conn.statistics().buffered_inbound
        assert (await conn.receive_exactly(waiting) if waiting else b"") == data[:waiting]
        if waiting < len(data):
            assert conn.close_reason == "Cannot allocate memory"
            with pytest.raises(trio.BrokenResourceError) as caught:
                await conn.receive_some()
            assert is_starved(caught.value)


@scenario
async def receiving_while_it_comes(engine: Engine, refusal: Refusal, kind: str) -> None:
    """Who waits is woken, whatever for."""
    data = b"x" * 40_000 + b"y" * 39_999 + b"|" + b"z" * 30_000
    async with conn_and_peer(engine, kind) as (conn, peer), trio.open_nursery() as nursery:
        with refusal(), may_starve():
            nursery.start_soon(send, peer, data)
            assert await conn.receive_exactly(40_000) == data[:40_000]
            assert await conn.receive_until(b"|") == data[40_000:79_999]
            rest, buffer = data[80_000:], bytearray(20_000)
            while rest:
                size = await conn.receive_into(buffer)
                assert rest.startswith(buffer[:size])
                rest = rest[size:]
        nursery.cancel_scope.cancel()


# -- sending ---------------------------------------------------------------------------------

Send = Callable[[bytes], Awaitable[None]]


def wait_free(call: Callable[[bytes], None]) -> Send:
    async def called(data: bytes) -> None:
        call(data)

    return called


def by_vectored(conn: Conn) -> Send:
    return lambda data: conn.send_vectored([data[:3], data[3:700], data[700:]])


def by_file(conn: Conn) -> Send:
    async def sent(data: bytes) -> None:
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.flush()
            await conn.send_file(file, 0, len(data))

    return sent


def plain(wire: bytes) -> list[bytes]:
    return [wire]


def in_frames(wire: bytes) -> list[bytes]:
    frames = []
    while len(wire) >= 4 and len(wire) >= 4 + int.from_bytes(wire[:4], "big"):
        size = int.from_bytes(wire[:4], "big")
        frames.append(wire[4 : 4 + size])
        wire = wire[4 + size :]
    return frames


def in_messages(wire: bytes) -> list[bytes]:
    """Of a WebSocket server, inflated where they are compressed."""
    state = zlib.decompressobj(-15)
    return [
        state.decompress(data + b"\x00\x00\xff\xff") if compressed else data
        for _, compressed, data in decode(wire, client=True, may_compress=True).messages
    ]


def server(conn: Conn, *, deflate: bool = False) -> WebSocket:
    own = PerMessageDeflate(threshold=10)
    agreed = Agreed(15, 15, True, True)
    compression = coders(agreed, own, server=True, max_message=1 << 20) if deflate else (None, None)
    return WebSocket._over(conn, "server", compression=compression)


SENDS: dict[str, tuple[Callable[[Conn], Send], Callable[[bytes], list[bytes]]]] = {
    "send_all": (lambda conn: conn.send_all, plain),
    "send_nowait": (lambda conn: wait_free(conn.send_nowait), plain),
    "send_vectored": (by_vectored, plain),
    "send_file": (by_file, plain),
    "frames": (lambda conn: conn.framed(FRAMES).send, in_frames),
    "frames_nowait": (lambda conn: wait_free(conn.framed(FRAMES).send_nowait), in_frames),
    "websocket": (lambda conn: server(conn).send, in_messages),
    "websocket_nowait": (lambda conn: wait_free(server(conn).send_nowait), in_messages),
    "deflate": (lambda conn: server(conn, deflate=True).send, in_messages),
    "deflate_nowait": (
        lambda conn: wait_free(server(conn, deflate=True).send_nowait),
        in_messages,
    ),
}


def some_of(messages: list[bytes]) -> list[bytes]:
    """The streams that remain of messages of which any may be missing."""
    streams = [b""]
    for message in messages:
        streams += [stream + message for stream in streams]
    return streams


class Attempts:
    """Messages that were sent, or were not."""

    def __init__(self) -> None:
        self.accepted: list[bytes] = []
        self.tried: list[bytes] = []
        self.broken = False

    async def send(self, send_one: Send, message: bytes) -> None:
        self.tried.append(message)
        try:
            await send_one(message)
        except MemoryError:
            pass
        except (trio.BrokenResourceError, ConnectionClosed) as exc:
            assert is_starved(exc)
            self.broken = True
        else:
            assert not self.broken
            self.accepted.append(message)

    def check(self, got: list[bytes]) -> None:
        if not self.broken:
            assert b"".join(got) == b"".join(self.accepted)
        elif len(got) == 1:
            assert any(stream.startswith(got[0]) for stream in some_of(self.tried))
        else:
            assert got == self.accepted[: len(got)]


# One connection: two reactors do nothing to it that one does not.
@pytest.mark.parametrize("reactors", [0, 2], ids=["in-loop", "2-reactors"])
@pytest.mark.parametrize("number", [1, ALL], ids=["one", "all"])
@pytest.mark.parametrize("how", SENDS)
async def test_sending(reactors: int, how: str, number: int) -> None:
    """A message is sent as a whole, or not at all; or the connection is broken, and nothing
    is sent behind the part that is missing."""
    bind, parts = SENDS[how]
    # The second is corked, and so are those that follow.
    messages = [content(size, size // 2).hex().encode() for size in (40, 300, 2000, 9000)]

    async def sent(engine: Engine, refusal: Refusal, kind: str) -> None:
        wire, attempts = bytearray(), Attempts()
        async with (
            conn_and_peer(engine, kind, options=SMALL) as (conn, peer),
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(all_that_comes, peer, wire)
            with refusal(), suppress(MemoryError):
                send_one = bind(conn)
                for message in messages:
                    await attempts.send(send_one, message)
            if attempts.tried:
                await attempts.send(send_one, b"the last one")
            with refusal():
                await conn.aclose()
        attempts.check(parts(bytes(wire)))

    # On TCP, windows so small cost 40 ms each.
    await sweep(reactors, "unix", number, sent)


# -- coming and going ------------------------------------------------------------------------


@contextmanager
def full_slabs(engine: Engine) -> Iterator[None]:
    """The next connection needs another slab."""
    handles = fill_slabs(engine._core)
    try:
        yield
    finally:
        return_slots(engine._core, handles)


@asynccontextmanager
async def listening(engine: Engine, kind: str, admission: Admission) -> AsyncIterator[Listener]:
    with tempfile.TemporaryDirectory() as folder:
        address = LOCAL if kind == "tcp" else f"unix://{folder}/socket"
        async with await engine.listen(address, admission=admission, limits=AT_ONCE) as listener:
            yield listener


@scenario
async def accepting(engine: Engine, refusal: Refusal, kind: str) -> None:
    """Nobody is lost: who could not be accepted is, once there is memory. And each leaves its
    place."""
    admission = Admission(max_connections=1, max_per_address=1)
    async with listening(engine, kind, admission) as listener:
        with full_slabs(engine):
            for _ in range(2):
                with refusal():
                    client = dial(listener)
                    await until(
                        lambda: listener.statistics().waiting or listener.statistics().starved
                    )
                with client:
                    conn = await listener.accept()
                    client.send(b"x")
                    assert await conn.receive_exactly(1) == b"x"
                    conn.abort()
        assert listener.statistics().accepted == 2
        assert (listener.statistics().shortages > 0) == (refusal.refused > 0)


@scenario
async def listen_and_connect(engine: Engine, refusal: Refusal, kind: str) -> None:
    with full_slabs(engine), refusal(), may_starve():
        async with listening(engine, kind, Admission(max_per_address=5)) as listener:
            client = await engine.connect(url(listener))
            await client.aclose()


@scenario
async def adopting(engine: Engine, refusal: Refusal, kind: str) -> None:
    """What could not be adopted is still its owner's."""
    ours, theirs = plain_pair(kind)
    with full_slabs(engine), theirs:
        try:
            with refusal():
                conn = engine.adopt(ours)
        except MemoryError:
            ours.send(b"x")
            assert theirs.recv(1) == b"x"
            ours.close()
        else:
            assert isinstance(conn, Conn)
            await conn.send_all(b"x")
            assert await trio.to_thread.run_sync(theirs.recv, 1) == b"x"
            with refusal():
                conn.abort()
            repr(conn)
            with suppress(OSError):  # its addresses were not kept
                _ = conn.remote_address


# -- groups, relays, TLS, WebSocket ----------------------------------------------------------


def is_some_of(got: list[bytes], messages: list[bytes]) -> bool:
    """Whether it is these in their order, perhaps without some."""
    rest = iter(messages)
    return all(any(message == it for it in rest) for message in got)


@scenario
async def broadcasting(engine: Engine, refusal: Refusal, kind: str) -> None:
    """Who does not get a message whole gets nothing of it, or nothing behind the part."""
    messages = [content("broadcast", size).hex().encode() for size in (50, 4000, 51)]
    forms: list[Callable[[Conn], Any]] = [lambda conn: conn, lambda it: it.framed(FRAMES), server]
    wires = [bytearray() for _ in forms]
    async with AsyncExitStack() as stack:
        group = engine.group()
        pairs = [
            await stack.enter_async_context(conn_and_peer(engine, "unix", options=SMALL))
            for _ in forms
        ]
        nursery = await stack.enter_async_context(trio.open_nursery())
        for (_, peer), wire in zip(pairs, wires, strict=True):
            nursery.start_soon(all_that_comes, peer, wire)
        with refusal(), may_starve():
            for (conn, _), form in zip(pairs, forms, strict=True):
                group.add(form(conn))
            for message in messages:
                await group.broadcast_nowait(message).wait()
        await group.broadcast_nowait(b"the last").wait()
        with suppress(trio.BrokenResourceError):
            await pairs[0][0].send_all(b"behind")
        for conn, _ in pairs:
            await conn.aclose()
    plainly, framed, in_ws = map(bytes, wires)
    streams = some_of([*messages, b"the last", b"behind"])
    if plainly.endswith(b"behind"):
        assert plainly in streams
    else:
        assert any(stream.startswith(plainly) for stream in streams)
    assert is_some_of(in_frames(framed), [*messages, b"the last"])
    assert is_some_of(in_messages(in_ws), [*messages, b"the last"])


async def feed(peer: Any, data: bytes) -> None:
    with suppress(OSError):
        await send(peer, data)
        peer.shutdown(socket.SHUT_WR)


@scenario
async def relaying(engine: Engine, refusal: Refusal, kind: str) -> None:
    data, got = content("relayed", 150_000), bytearray()
    async with (
        conn_and_peer(engine, kind, options=PIPED) as (a, left),
        conn_and_peer(engine, kind, options=PIPED) as (b, right),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(feed, left, data)
        nursery.start_soon(feed, right, b"back")
        nursery.start_soon(all_that_comes, right, got)
        whole = False
        with refusal(), may_starve():
            await relay(a, b, buffer=100_000)
            whole = True
        a.abort()
        if not whole:
            b.abort()
        await b.aclose()
    assert data.startswith(got)
    assert not whole or got == data


async def until_it_stands(a: Conn, b: Conn) -> None:
    """Nothing moves, and the relay holds something."""
    before, quiet = (0, 0), 0
    while quiet < 5:
        await trio.sleep(0.001)
        now = a.statistics().bytes_received, b.statistics().bytes_sent
        quiet = quiet + 1 if now == before and now[0] > now[1] else 0
        before = now


async def left_relay(engine: Engine, refusal: Refusal, kind: str, options: ConnOptions) -> None:
    """What a relay holds is sent, or breaks the connection that it was for."""
    refusal.is_sure = False  # on a busy machine what moves may seem to stand
    data, got = content("left", 600_000), bytearray()
    async with (
        conn_and_peer(engine, kind, options=PIPED) as (a, left),
        conn_and_peer(engine, "unix", options=options) as (b, right),
        trio.open_nursery() as nursery,
    ):
        # 64 KiB wait in a ring, and as many are received at once; a pipe holds what follows.
        nursery.start_soon(feed, left, data)
        await until(lambda: a.statistics().bytes_received >= 65_536)
        async with trio.open_nursery() as relaying:
            relaying.start_soon(partial(relay, a, b, buffer=1 << 20))
            await until_it_stands(a, b)
            with refusal():
                relaying.cancel_scope.cancel()
        following = await a.receive_some(1000)
        a.abort()
        nursery.start_soon(all_that_comes, right, got)
        broken = False
        try:
            await b.send_all(b"behind")
        except trio.BrokenResourceError as exc:
            assert is_starved(exc)
            broken = True
        await b.aclose()
    if broken:
        assert data.startswith(got)
    else:
        assert data.startswith(got[:-6] + following)
        assert got[-6:] == b"behind"


@scenario
async def leaving_a_relay(engine: Engine, refusal: Refusal, kind: str) -> None:
    await left_relay(engine, refusal, kind, SMALL)


@scenario
async def leaving_a_relay_whose_bytes_are_all_in_its_pipe(
    engine: Engine, refusal: Refusal, kind: str
) -> None:
    await left_relay(engine, refusal, kind, PIPED)


@scenario
async def tls(engine: Engine, refusal: Refusal, kind: str) -> None:
    failures: list[BaseException] = []

    async def exchange(stream: TLSStream, conn: Conn) -> None:
        try:
            await stream.do_handshake()
            await stream.send_all(bytes(30_000))
            assert await stream.receive_exactly(30_000) == bytes(30_000)
            await stream.send_all(b"bye")
            assert await stream.receive_exactly(3) == b"bye"
        except (MemoryError, trio.BrokenResourceError) as exc:
            failures.append(exc)
            conn.abort()

    async with two_conns(engine, kind) as conns:
        with refusal():
            async with trio.open_nursery() as nursery:
                for stream, conn in zip(over(*conns, "tls13"), conns, strict=True):
                    nursery.start_soon(exchange, stream, conn)
    assert not failures or any(isinstance(e, MemoryError) or is_starved(e) for e in failures)


@scenario
async def rating(engine: Engine, refusal: Refusal, kind: str) -> None:
    """Without memory for its first rate a connection has none, and the next call tries again."""
    async with conn_and_peer(engine, kind) as (conn, peer):
        with refusal(), suppress(MemoryError):
            conn.rate(read=1000)
        assert conn.rate() == Rates(None if refusal.refused else 1000, None)
        conn.rate(read=2_000_000)
        await is_well(conn, peer)


@scenario
async def websocket(engine: Engine, refusal: Refusal, kind: str) -> None:
    """Texts, of which one wraps in its ring, and a ping."""
    texts = ["ü" * size for size in (12_000, 12_001, 12_002)]
    frames = [frame(TEXT, text.encode(), key=KEY) for text in texts]
    async with conn_and_peer(engine, kind) as (conn, peer), trio.open_nursery() as nursery:
        with refusal(), may_starve():
            ws = server(conn)

            def two_wait() -> bool:
                return ws.statistics().messages_waiting == 2 or ws.close_code is not None

            await send(peer, frames[0] + frames[1])
            await until(two_wait)
            assert await ws.receive() == texts[0]
            await send(peer, frames[2])
            await until(two_wait)
            assert await ws.receive() == texts[1]
            assert await ws.receive() == texts[2]
            nursery.start_soon(answer_ping, peer)
            await ws.ping(b"x")
        nursery.cancel_scope.cancel()


async def answer_ping(peer: Any) -> None:
    await read(peer, 3)
    await send(peer, frame(PONG, b"x", key=KEY))


@pytest.mark.parametrize("number", [1, ALL], ids=["one", "all"])
@pytest.mark.parametrize("name", SCENARIOS)
async def test_connections(reactors: int, name: str, number: int) -> None:
    await sweep(reactors, "tcp" if reactors == 1 else "unix", number, SCENARIOS[name])


# -- what is made ----------------------------------------------------------------------------


async def made(number: int, make: Callable[[], Awaitable[object]]) -> None:
    """The same, of what asks for memory as it is made, and needs no engine."""
    with trio.fail_after(PATIENCE):
        for first in count(1):
            refusal = Refusal(first, number)
            watch_memory(True)
            failed = False
            with refusal():
                try:
                    await make()
                except (MemoryError, OSError) as exc:
                    assert getattr(exc, "errno", errno.ENOMEM) == errno.ENOMEM
                    failed = True
            await nothing_is_kept()
            # A pool that has kept something asks twice.
            assert failed or refusal.refused <= (number == 1)
            if refusal.refused == 0:
                break
    assert first > 1


@pytest.mark.parametrize("watched", [False, True], ids=["plain", "top"])
@pytest.mark.parametrize("number", [1, ALL], ids=["one", "all"])
async def test_an_engine(reactors: int, number: int, watched: bool) -> None:
    async def opened() -> None:
        default_top.set(watched)
        async with open_engine(reactors):
            pass

    await made(number, opened)


@pytest.mark.parametrize("number", [1, ALL], ids=["one", "all"])
async def test_timers(number: int) -> None:
    """Those that were made come; the others raise."""
    failures = 0

    async def timed() -> None:
        nonlocal failures
        wheel = TimingWheel(0.001)
        fired: list[int] = []
        expected: list[int] = []
        with suppress(MemoryError):
            for which in range(300):
                wheel.call_later(0, fired.append, which)
                expected.append(which)
        await until(lambda: len(fired) == len(expected))
        assert sorted(fired) == expected
        if len(expected) < 300:
            failures += 1
            raise MemoryError

    await made(number, timed)
    assert failures


@pytest.mark.parametrize("number", [1, ALL], ids=["one", "all"])
async def test_a_ring_buffer(number: int) -> None:
    """What raises has changed nothing."""

    async def filled() -> None:
        ring, held = RingBuffer(1 << 20), b""
        for size in (100, 5000, 100_000):
            data = content("ring", size)
            try:
                ring.write(data)
            except MemoryError:
                assert ring.read() == held
                raise
            held += data
        assert ring.read() == held

    await made(number, filled)
