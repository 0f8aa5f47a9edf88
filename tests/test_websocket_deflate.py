"""Compressed messages over connections: order, what is not sent, and what a peer may send."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from helpers import SMALL, conn_and_peer, content, two_conns
from trio.testing import wait_all_tasks_blocked
from websocket_model import BINARY, CONTINUATION, KEY, TEXT, frame

from trio_wknet import (
    ConnectionClosed,
    Engine,
    Limits,
    PerMessageDeflate,
    StreamWebSocket,
    WebSocket,
)
from trio_wknet._websocket.deflate import Agreed, coders

TAIL = b"\x00\x00\xff\xff"
OWN = PerMessageDeflate(threshold=10)
LIMIT = 100_000


@asynccontextmanager
async def two_ends(
    engine: Engine, kind: str = "tcp", *, takeover: bool = True, **options: Any
) -> AsyncIterator[tuple[WebSocket, WebSocket]]:
    """A server and a client."""
    agreed = Agreed(15, 15, takeover, takeover)
    async with two_conns(engine, kind, **options) as (ours, theirs):
        yield (
            WebSocket._over(
                ours, "server", compression=coders(agreed, OWN, server=True, max_message=LIMIT)
            ),
            WebSocket._over(
                theirs, "client", compression=coders(agreed, OWN, server=False, max_message=LIMIT)
            ),
        )


@asynccontextmanager
async def server_and_peer(engine: Engine) -> AsyncIterator[tuple[WebSocket, Any]]:
    async with conn_and_peer(engine) as (conn, peer):
        compression = coders(Agreed(15, 15, True, True), OWN, server=True, max_message=LIMIT)
        yield WebSocket._over(conn, "server", compression=compression), peer


def packed(data: bytes) -> bytes:
    state = zlib.compressobj(6, zlib.DEFLATED, -15)
    return (state.compress(data) + state.flush(zlib.Z_SYNC_FLUSH)).removesuffix(TAIL)


def compressed(opcode: int, payload: bytes, **options: Any) -> bytes:
    data = bytearray(frame(opcode, payload, key=KEY, **options))
    data[0] |= 0x40
    return bytes(data)


MESSAGES: list[Any] = [
    "",
    "short",
    b"0123456789" * 5,
    "ü" * 3000,
    b"x" * 90_000,
    content("z", 5000),
]


@pytest.mark.parametrize("takeover", [True, False])
async def test_messages_both_ways(engine: Engine, kind: str, takeover: bool) -> None:
    async with two_ends(engine, kind, takeover=takeover) as ends:
        for one, other in (ends, ends[::-1]):
            for _ in range(3):
                for message in MESSAGES:
                    await one.send(message)
                    assert await other.receive() == message
                one.send_many_nowait(MESSAGES)
                await one.send_many(MESSAGES)
                got: list[Any] = []
                while len(got) < 2 * len(MESSAGES):
                    got += await other.receive_many()
                assert got == 2 * MESSAGES
            sent = one.conn.statistics().bytes_sent
            await one.send(b"x" * 90_000)
            assert await other.receive() == b"x" * 90_000
            assert one.conn.statistics().bytes_sent - sent < 500


async def test_compressed_and_plain_ones_keep_their_order(engine: Engine) -> None:
    messages: list[Any] = [b"%d" % n * (1 if n % 3 else 9) for n in range(1000)]
    async with two_ends(engine) as (server, client), trio.open_nursery() as nursery:
        nursery.start_soon(server.send_many, messages)
        got: list[Any] = []
        while len(got) < len(messages):
            got += await client.receive_many(7)
        assert got == messages


async def test_sends_beside_a_send_that_waits(engine: Engine) -> None:
    """What is queued while an operation waits goes behind it, and what the operation was not
    behind when it compressed it does not refer to."""
    same = content("same", 3000)
    large = content("large", LIMIT)
    async with two_ends(engine, options=SMALL) as (server, client):
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                server.send_nowait(same)
                nursery.start_soon(server.send, large)
                await wait_all_tasks_blocked()
                server.send_nowait(same)
                server.send_nowait(same)
                got = [await client.receive() for _ in range(4)]
            assert got == [same, large, same, same]


async def test_a_task_that_waits_for_its_turn(engine: Engine) -> None:
    """The reactor is sending what was queued, a task is next, and more is queued behind it,
    which is compressed before what the task sends."""
    first, second = content("first", 4000), content("second", 4000)
    ahead = [*(content(n, 4000) for n in range(30)), first]
    async with two_ends(engine, options=SMALL) as (server, client):
        async with trio.open_nursery() as nursery:
            for message in ahead:
                server.send_nowait(message)
            nursery.start_soon(server.send, second)
            await wait_all_tasks_blocked()
            behind = [first, second]
            for message in behind:
                server.send_nowait(message)
            got: list[Any] = []
            while len(got) < len(ahead) + 3:
                got += await client.receive_many()
        assert got == [*ahead, second, *behind]


async def test_what_is_cancelled_is_not_referred_to(engine: Engine) -> None:
    same = content("same", 3000)
    async with two_ends(engine, options=SMALL) as (server, client):
        await server.send(same)
        with trio.CancelScope() as scope:
            scope.cancel()
            await server.send(same + b"never sent")
        assert scope.cancelled_caught
        # One that waits behind what is queued, and has not begun.
        for _ in range(30):
            server.send_nowait(content("queued", 20_000))
        with trio.move_on_after(0):
            await server.send(same + b"not sent either")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.send, same + b"never sent")
            got = [await client.receive() for _ in range(32)]
        assert got == [same, *[content("queued", 20_000)] * 30, same + b"never sent"]


async def test_what_would_block_is_not_referred_to(engine: Engine) -> None:
    limits = Limits(outbound=20_000)
    same = content("same", 5000)
    accepted: list[Any] = []
    refused = 0
    async with two_ends(engine, options=SMALL, limits=limits) as (server, client):
        for n in range(40):
            message = same + content(n, 10_000 if n % 2 else 3000)
            try:
                server.send_nowait(message)
                accepted.append(message)
            except trio.WouldBlock:
                refused += 1
        assert refused
        for message in accepted:
            assert await client.receive() == message
        await server.send_many([same, same])
        assert [await client.receive(), await client.receive()] == [same, same]


async def test_a_fragmented_message(engine: Engine) -> None:
    async with server_and_peer(engine) as (server, peer):
        data = packed(b"fragments " * 20)
        await peer.send(
            compressed(TEXT, data[:5], fin=False)
            + frame(CONTINUATION, data[5:8], key=KEY, fin=False)
            + frame(CONTINUATION, data[8:], key=KEY)
            + compressed(BINARY, packed(b""))
            + compressed(BINARY, b"")
        )
        assert await server.receive() == "fragments " * 20
        assert await server.receive() == b""
        assert await server.receive() == b""


MUST_NOT: Any = [
    (compressed(BINARY, b"\xff\xff\xff"), 1002),
    (compressed(BINARY, packed(bytes(LIMIT + 1))), 1009),
    (compressed(BINARY, packed(bytes(LIMIT * 500))), 1009),
    (compressed(TEXT, packed(b"\xff not UTF-8")), 1007),
    (frame(CONTINUATION, b"", key=KEY), 1002),
]


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize(("bad", "code"), MUST_NOT)
async def test_what_a_peer_must_not_send(engine: Engine, bad: bytes, code: int, many: bool) -> None:
    """What came before is received first, and nothing behind it."""
    async with server_and_peer(engine) as (server, peer):
        good = compressed(BINARY, packed(b"good"))
        await peer.send(good + frame(TEXT, b"plain", key=KEY) + bad + good)
        got: list[Any] = []
        with pytest.raises(ConnectionClosed) as caught:
            while True:
                got += await server.receive_many() if many else [await server.receive()]
        assert got == [b"good", "plain"]
        assert (caught.value.code, caught.value.by) == (code, "local")
        answer = await peer.recv(100)
        assert answer[:1] == b"\x88"
        assert int.from_bytes(answer[2:4], "big") == code
        with pytest.raises(ConnectionClosed):
            await server.send("too late")


@pytest.mark.parametrize(("bad", "code"), MUST_NOT)
async def test_what_a_peer_must_not_send_on_any_stream(bad: bytes, code: int) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    compression = coders(Agreed(15, 15, True, True), OWN, server=True, max_message=LIMIT)
    server = StreamWebSocket._over(ours, "server", compression=compression)
    good = compressed(BINARY, packed(b"good"))
    await theirs.send_all(good + bad + good)
    assert await server.receive() == b"good"
    with pytest.raises(ConnectionClosed) as caught:
        await server.receive()
    assert (caught.value.code, caught.value.by) == (code, "local")
    answer = await theirs.receive_some()
    assert int.from_bytes(answer[2:4], "big") == code


async def test_it_must_have_been_agreed_on(engine: Engine) -> None:
    async with conn_and_peer(engine) as (conn, peer):
        server = WebSocket._over(conn, "server")
        await peer.send(compressed(BINARY, packed(b"good")))
        with pytest.raises(ConnectionClosed) as caught:
            await server.receive()
        assert caught.value.code == 1002


async def test_bad_messages_do_not_disturb_the_order(engine: Engine) -> None:
    """What was compressed before the bad one was found is not sent, and not referred to."""
    anything: Any = 5
    same, unsent = content("same", 1000), content("unsent", 1000)
    async with two_ends(engine) as (server, client):
        await server.send(same)
        wrong: list[Any] = [[unsent, anything], [unsent, "\ud800"]]
        for bad in wrong:
            with pytest.raises((TypeError, ValueError), match=r"messages\[1\]"):
                await server.send_many(bad)
            await server.send(unsent)
            with pytest.raises((TypeError, ValueError), match=r"messages\[1\]"):
                server.send_many_nowait([same, *bad[1:]])
            await server.send(same)
        with pytest.raises(TypeError, match="message must be"):
            await server.send(anything)
        await server.send_many(bytearray(same) for _ in range(2))
        assert [await client.receive() for _ in range(7)] == [
            same,
            *([unsent, same] * 2),
            same,
            same,
        ]
