"""The engine's budget: what counts, what pauses near it, and who is ended above it."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from helpers import PATIENCE, SMALL, conn_and_peer, content, dialled, read, send, two_conns, until
from tls_helpers import two_tls
from websocket_model import BINARY, frame

import trio_wknet
from trio_wknet import (
    Conn,
    Engine,
    FrameChannel,
    LengthPrefixed,
    Limits,
    WebSocketOptions,
    open_engine,
    open_wknet_listener,
)
from trio_wknet._drop_in.classes import _engine

MIB = 1 << 20
KIB = 1 << 10
LARGE = LengthPrefixed(4, max_frame=64 * MIB)
Pair = tuple[Conn, Any]


@asynccontextmanager
async def pairs(engine: Engine, count: int, kind: str, **how: Any) -> AsyncIterator[list[Pair]]:
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(conn_and_peer(engine, kind, **how))
            for _ in range(count)
        ]


def ended(engine: Engine) -> int:
    return engine.statistics().ended_by["budget"]


def buffered(engine: Engine) -> int:
    return engine.statistics().buffered


async def goes_on(engine: Engine, kind: str) -> None:
    """Somebody who takes what comes is served."""
    async with two_conns(engine, kind) as (client, server):
        with trio.fail_after(PATIENCE):
            for _ in range(3):
                await client.send_all(b"hello")
                assert await read(server, 5) == b"hello"
                await server.send_all(b"there")
                assert await read(client, 5) == b"there"


# --- what counts ----------------------------------------------------------------------------


async def test_what_was_received_counts(engine: Engine, kind: str) -> None:
    async with conn_and_peer(engine, kind) as (conn, peer):
        assert buffered(engine) == 0
        await send(peer, bytes(1000))
        await until(lambda: buffered(engine) == 1024)
        await conn.receive_exactly(1000)
        assert buffered(engine) == 0


async def test_what_is_to_be_sent_counts(engine: Engine, kind: str) -> None:
    async with conn_and_peer(engine, kind, options=SMALL) as (conn, _):
        conn.send_nowait(bytes(500 * KIB))
        assert buffered(engine) == 512 * KIB
        conn.abort()
        await until(lambda: buffered(engine) == 0)


async def test_what_is_collected_of_a_frame_counts(engine: Engine, kind: str) -> None:
    async with conn_and_peer(engine, kind) as (conn, peer):
        frames = conn.framed(LARGE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(frames.receive)
            await send(peer, (4 * MIB).to_bytes(4, "big") + bytes(MIB))
            await until(lambda: buffered(engine) >= MIB)
            nursery.cancel_scope.cancel()
        assert buffered(engine) >= MIB
        frames.unframe()
        conn.abort()
        await until(lambda: buffered(engine) == 0)


# --- near it ----------------------------------------------------------------------------------


async def test_where_nobody_waits_reading_pauses(reactors: int, kind: str) -> None:
    """Nobody is ended, and nothing is lost."""
    data = content("part", 60 * KIB)
    async with open_engine(reactors, max_buffered=2 * MIB) as engine:
        async with pairs(engine, 40, kind) as members:
            async with trio.open_nursery() as nursery:
                for _, peer in members:
                    nursery.start_soon(send, peer, data)
                await until(lambda: engine.statistics().paused_by_budget > 0)
            await goes_on(engine, kind)
            assert 1.4 * MIB < buffered(engine) <= 1.75 * MIB
            for conn, _ in members:
                assert await read(conn, len(data)) == data
            await until(lambda: buffered(engine) == 0)
        assert ended(engine) == 0


async def test_a_poll_of_what_is_paused(reactors: int, kind: str) -> None:
    """It finds bytes, or WouldBlock; and one that waits does so for good."""
    async with open_engine(reactors, max_buffered=MIB) as engine:
        async with pairs(engine, 20, kind) as members:
            for _, peer in members[1:]:
                await send(peer, bytes(60 * KIB))
            await until(lambda: engine.statistics().paused_by_budget > 0)
            conn, peer = members[0]
            await send(peer, b"a")
            with trio.fail_after(PATIENCE):
                assert await conn.receive_some() == b"a"
                await send(peer, b"b")
                await until(conn.socket.is_readable)
                assert conn.receive_nowait() == b"b"
                for _ in range(3):
                    with pytest.raises(trio.WouldBlock):
                        conn.receive_nowait()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(conn.receive_exactly, 2)
                    await trio.testing.wait_all_tasks_blocked()
                    await send(peer, b"cd")


async def test_a_peer_that_does_not_read_is_not_read(reactors: int) -> None:
    """An echo by callbacks, for clients that only send, and for one that reads."""
    limits = Limits(inbound=16 * KIB, outbound=256 * KIB)

    def answer(conn: Conn) -> None:
        with suppress(trio.WouldBlock, trio.BrokenResourceError):
            conn.send_nowait(conn.receive_nowait())

    async with open_engine(reactors, max_buffered=2 * MIB) as engine:
        address = "tcp://127.0.0.1:0"
        async with (
            await engine.listen(address, limits=limits) as listener,
            trio.open_nursery() as nursery,
        ):
            await nursery.start(listener.serve_events, answer)
            with dialled(listener, 30) as socks:
                for sock in socks:
                    sock.setblocking(False)
                peers = [trio.socket.from_stdlib_socket(sock) for sock in socks]
                for peer in peers[1:]:
                    nursery.start_soon(flood, peer)
                await until(lambda: engine.statistics().paused_by_budget > 0)
                await peers[0].send(b"hello")
                assert await read(peers[0], 5) == b"hello"
                await until(lambda: buffered(engine) <= 2 * MIB)
                nursery.cancel_scope.cancel()


async def flood(peer: Any) -> None:
    with suppress(OSError):
        while True:
            await peer.send(bytes(65536))


# --- above it -----------------------------------------------------------------------------------

Receive = Callable[[Conn, int], Any]


async def exactly(conn: Conn, size: int) -> bytes:
    return await conn.receive_exactly(size)


async def by_frames(conn: Conn, size: int) -> bytes:
    frames = conn.framed(LARGE)
    return await frames.receive()


FORMS = [
    pytest.param(exactly, lambda data: data, id="exactly"),
    pytest.param(by_frames, lambda data: len(data).to_bytes(4, "big") + data, id="frames"),
]


@pytest.mark.parametrize(("receive", "encode"), FORMS)
async def test_halves_of_frames_do_not_hang(
    reactors: int, kind: str, receive: Receive, encode: Callable[[bytes], bytes]
) -> None:
    """Half of a frame has come to each, more than the budget together, and all wait. Some are
    ended, so that the others get the rest."""
    whole = encode(content("frame", 600 * KIB))
    half = len(whole) // 2
    outcomes: list[str | None] = []

    async def serve(conn: Conn) -> None:
        try:
            assert len(await receive(conn, len(whole))) == 600 * KIB
            outcomes.append(None)
        except trio.BrokenResourceError as exc:
            assert isinstance(exc.__cause__, OSError)
            assert exc.__cause__.errno == errno.ENOBUFS
            outcomes.append(conn.close_reason)

    async def send_part(peer: Any, part: bytes) -> None:
        with suppress(OSError):
            await send(peer, part)

    async with open_engine(reactors, max_buffered=4 * MIB) as engine:
        async with pairs(engine, 16, kind) as members:
            with trio.fail_after(PATIENCE):
                async with trio.open_nursery() as nursery:
                    for conn, _ in members:
                        nursery.start_soon(serve, conn)
                    async with trio.open_nursery() as senders:
                        for _, peer in members:
                            senders.start_soon(send_part, peer, whole[:half])
                    await until(lambda: ended(engine) > 0)
                    for _, peer in members:
                        nursery.start_soon(send_part, peer, whole[half:])
            assert set(outcomes) == {None, "budget"}
            assert outcomes.count("budget") == ended(engine)
        await until(lambda: buffered(engine) == 0)


async def test_the_largest_is_ended(reactors: int, kind: str) -> None:
    async with open_engine(reactors, max_buffered=2 * MIB) as engine:
        async with pairs(engine, 8, kind) as members:
            for _, peer in members[1:]:
                await send(peer, bytes(60 * KIB))
            conn, peer = members[0]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(flood, peer)
                with pytest.raises(trio.BrokenResourceError):
                    await conn.receive_exactly(16 * MIB)
                nursery.cancel_scope.cancel()
            assert conn.close_reason == "budget"
            assert "budget" in repr(conn)
            assert [member.close_reason for member, _ in members[1:]] == [None] * 7
            assert ended(engine) == 1
            await conn.aclose()
            assert conn.close_reason == "budget"
            for member, _ in members[1:]:
                assert await read(member, 60 * KIB) == bytes(60 * KIB)


async def test_many_are_ended_and_none_of_them_is_small(reactors: int) -> None:
    """Down to 15/16, which takes more than any of them holds."""
    async with open_engine(reactors, max_buffered=4 * MIB) as engine:
        async with pairs(engine, 80, "unix") as members, trio.open_nursery() as nursery:
            small, large = members[::8], [pair for at, pair in enumerate(members) if at % 8]
            for conn, peer in small:
                await send(peer, bytes(10 * KIB))
                nursery.start_soon(conn.receive_exactly, 20 * KIB)
            for conn, peer in large:
                nursery.start_soon(unless_broken, conn.receive_exactly, MIB)
                await send(peer, bytes(50 * KIB))
            await until(lambda: ended(engine) > 1)
            for _, peer in small:
                await send(peer, bytes(10 * KIB))
            await until(lambda: buffered(engine) <= 4 * MIB)
            assert [conn.close_reason for conn, _ in small] == [None] * len(small)
            reasons = [conn.close_reason for conn, _ in large]
            assert reasons.count("budget") == ended(engine) < 20
            nursery.cancel_scope.cancel()


async def test_frames_for_callbacks(reactors: int) -> None:
    """Half of a frame has come from each, as above; the callbacks are told of those that are
    ended, and get the others' frames."""
    whole = (600 * KIB).to_bytes(4, "big") + content("frame", 600 * KIB)
    half = len(whole) // 2
    frames: list[bytes] = []
    reasons: list[str] = []

    async def send_part(peer: Any, part: bytes) -> None:
        with suppress(OSError):
            await send(peer, part)

    def on_close(_: FrameChannel, reason: str) -> None:
        reasons.append(reason)

    async with (
        open_engine(reactors, max_buffered=4 * MIB) as engine,
        await engine.listen("tcp://127.0.0.1:0") as listener,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(
            partial(
                listener.serve_frames, LARGE, lambda _, got: frames.extend(got), on_close=on_close
            )
        )
        with dialled(listener, 16) as socks, trio.fail_after(PATIENCE):
            for sock in socks:
                sock.setblocking(False)
            peers = [trio.socket.from_stdlib_socket(sock) for sock in socks]
            for part in (whole[:half], whole[half:]):
                async with trio.open_nursery() as senders:
                    for peer in peers:
                        senders.start_soon(send_part, peer, part)
                await until(lambda: ended(engine) > 0)
            await until(lambda: len(frames) + len(reasons) == 16)
            assert set(frames) == {whole[4:]}
            assert set(reasons) == {"budget"}
            assert ended(engine) == len(reasons)
            await until(lambda: buffered(engine) == 0)
        nursery.cancel_scope.cancel()


async def test_over_tls(reactors: int) -> None:
    """What waits to be decrypted counts, and pauses; who holds most is ended, and its stream
    says so."""
    limits = Limits(inbound=MIB)
    async with open_engine(reactors, max_buffered=2 * MIB) as engine, AsyncExitStack() as stack:
        client, server = await stack.enter_async_context(two_tls(engine, limits=limits))
        near, far = await stack.enter_async_context(two_tls(engine))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(unless_broken, client.send_all, bytes(900 * KIB))
            await until(lambda: buffered(engine) > 800 * KIB)
            others = await stack.enter_async_context(pairs(engine, 12, "unix"))
            for conn, peer in others:
                nursery.start_soon(send, peer, bytes(120 * KIB))
                nursery.start_soon(unless_broken, conn.receive_exactly, MIB)
            with trio.fail_after(PATIENCE):
                await until(lambda: ended(engine) > 0)
                with pytest.raises(trio.BrokenResourceError) as caught:
                    await server.receive_exactly(900 * KIB)
                assert isinstance(caught.value.__cause__, trio.BrokenResourceError | OSError)
                assert server.transport_stream.close_reason == "budget"
                await near.send_all(b"hello")
                assert await far.receive_exactly(5) == b"hello"
            nursery.cancel_scope.cancel()


async def unless_broken(call: Callable[[Any], Any], argument: object) -> None:
    with suppress(trio.BrokenResourceError):
        await call(argument)


async def test_a_message_of_a_websocket(reactors: int) -> None:
    """One that never ends is ended, and its neighbour is not."""
    options = WebSocketOptions(max_message=64 * MIB)
    async with open_engine(reactors, max_buffered=2 * MIB) as engine:
        async with await engine.listen("tcp://127.0.0.1:0", websocket=options) as listener:
            reasons: list[str | None] = []

            async def handler(websocket: Any) -> None:
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    async for message in websocket:
                        await websocket.send(message)
                reasons.append(websocket.conn.close_reason)

            async with trio.open_nursery() as nursery:
                await nursery.start(listener.serve, handler)
                with dialled(listener, 2) as socks:
                    good, bad = [await upgraded(sock) for sock in socks]
                    with suppress(OSError):
                        await send(bad, frame(BINARY, bytes(16 * MIB), key=b"1234"))
                    await until(lambda: reasons == ["budget"])
                    await send(good, frame(BINARY, b"hello", key=b"1234"))
                    assert await read(good, 7) == frame(BINARY, b"hello")
                    nursery.cancel_scope.cancel()


async def upgraded(sock: Any) -> Any:
    sock.setblocking(False)
    peer = trio.socket.from_stdlib_socket(sock)
    await peer.send(
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += await peer.recv(1)
    return peer


async def test_sending_to_those_that_do_not_read(reactors: int, kind: str) -> None:
    """In one go, before any other task runs."""
    async with open_engine(reactors, max_buffered=4 * MIB) as engine:
        async with pairs(engine, 24, kind, options=SMALL) as members:
            broken = 0
            for conn, _ in members[:-1]:
                for _ in range(4):
                    try:
                        conn.send_nowait(bytes(200 * KIB))
                    except trio.BrokenResourceError:
                        broken += 1
            await until(lambda: buffered(engine) <= 4 * MIB and ended(engine) > 0)
            assert ended(engine) < 23
            conn, peer = members[-1]
            await conn.send_all(b"hello")
            assert await read(peer, 5) == b"hello"


@pytest.mark.parametrize("slow", ["skip", "close"])
async def test_a_broadcast_to_those_that_do_not_read(reactors: int, kind: str, slow: Any) -> None:
    async with open_engine(reactors, max_buffered=4 * MIB) as engine:
        async with (
            pairs(engine, 40, kind, options=SMALL) as members,
            two_conns(engine, kind) as (good, client),
        ):
            group = engine.group()
            for conn, _ in members:
                group.add(conn)
            group.add(good)
            received = 0
            with trio.fail_after(PATIENCE):
                for _ in range(6):
                    await group.broadcast(bytes(512 * KIB), when_slow=slow)
                    received += len(await read(client, 512 * KIB))
            assert received == 6 * 512 * KIB
            assert good.close_reason is None
            await until(lambda: buffered(engine) <= 4 * MIB)
            assert ended(engine) > 0
            reasons = {conn.close_reason for conn, _ in members}
            assert "budget" in reasons
            assert reasons <= {"budget", "slow", None}


async def test_what_was_closed_goes_first(reactors: int, kind: str) -> None:
    """Connections that only send their rest hold memory, too, and nobody waits for them."""
    async with open_engine(reactors, max_buffered=4 * MIB) as engine:
        async with pairs(engine, 30, kind, options=SMALL) as members:
            for conn, _ in members[:6]:
                conn.send_nowait(bytes(500 * KIB))
                conn.close_nowait()
            for conn, _ in members[6:]:
                conn.send_nowait(bytes(62 * KIB))
                if buffered(engine) > 4 * MIB + 100 * KIB:  # more than it is off by
                    break
            await until(lambda: ended(engine) > 0)
            await until(lambda: buffered(engine) <= 4 * MIB)
            assert ended(engine) <= 6
            assert [conn.close_reason for conn, _ in members[6:]] == [None] * 24


async def test_views_that_hold_all_of_it(reactors: int, kind: str) -> None:
    """Nobody can be ended for it, and others go on."""
    async with open_engine(reactors, max_buffered=MIB) as engine:
        async with pairs(engine, 1, kind, limits=Limits(inbound=4 * MIB)) as ((conn, peer),):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(flood, peer)
                await until(lambda: buffered(engine) >= MIB)
                view = conn.peek()
                conn.abort()
                nursery.cancel_scope.cancel()
        assert buffered(engine) >= MIB
        await goes_on(engine, kind)
        assert ended(engine) == 0
        view.release()
        await until(lambda: buffered(engine) == 0)


async def test_an_engine_that_is_closed_above_it(reactors: int, kind: str) -> None:
    with trio.fail_after(PATIENCE):
        async with open_engine(reactors, max_buffered=MIB) as engine:
            async with pairs(engine, 8, kind, options=SMALL) as members:
                group = engine.group()
                for conn, _ in members:
                    group.add(conn)
                async with trio.open_nursery() as nursery:
                    for _ in range(4):
                        nursery.start_soon(group.broadcast, bytes(400 * KIB))
                    await trio.lowlevel.checkpoint()
                    nursery.cancel_scope.cancel()


async def test_a_server_goes_on(reactors: int) -> None:
    """A handler whose connection was ended may let the exception through."""
    async with open_engine(reactors, max_buffered=MIB) as engine:
        async with await engine.listen("tcp://127.0.0.1:0") as listener:

            async def handler(conn: Conn) -> None:
                await conn.receive_exactly(8 * MIB)

            async with trio.open_nursery() as nursery:
                await nursery.start(listener.serve, handler)
                with dialled(listener, 1) as (sock,):
                    sock.setblocking(False)
                    await flood(trio.socket.from_stdlib_socket(sock))
                    await until(lambda: listener.statistics().handlers == 0)
                    assert ended(engine) == 1
                    nursery.cancel_scope.cancel()


# --- where it is set -----------------------------------------------------------------------------


def test_of_a_run() -> None:
    async def main() -> None:
        async with pairs(_engine(), 30, "unix") as members:
            for _, peer in members:
                await send(peer, bytes(60 * KIB))
            await until(lambda: _engine().statistics().paused_by_budget > 0)

    trio_wknet.run(main, max_buffered=MIB)
    trio_wknet.install(max_buffered=MIB)
    try:
        trio.run(main)
        with pytest.raises(ValueError, match="max_buffered is 1048576 since an earlier install"):
            trio_wknet.install(max_buffered=2 * MIB)
    finally:
        trio_wknet.uninstall()


async def test_of_a_listeners_own_engine() -> None:
    address = "tcp://127.0.0.1:0"
    async with open_wknet_listener(address, reactors=0, max_buffered=MIB) as listener:
        with dialled(listener, 30) as socks:
            for sock in socks:
                sock.send(bytes(60 * KIB))
            conns = [await listener.accept() for _ in socks]
            await until(
                lambda: sum(conn.statistics().buffered_inbound for conn in conns) > 0.7 * MIB
            )
            await trio.testing.wait_all_tasks_blocked()
            assert sum(conn.statistics().buffered_inbound for conn in conns) < MIB
            for conn in conns:
                conn.abort()
