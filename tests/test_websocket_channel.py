"""WebSocket as a channel: receiving, sending, pings and closing, against a peer that is played
frame by frame, and against itself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
from helpers import (
    PATIENCE,
    SMALL,
    clog,
    conn_and_peer,
    content,
    read,
    read_all,
    send,
    two_conns,
    until,
)
from trio.testing import wait_all_tasks_blocked
from websocket_model import (
    BINARY,
    CLOSE,
    CONTINUATION,
    KEY,
    PING,
    PONG,
    TEXT,
    close_payload,
    decode,
    frame,
)

from trio_wknet import Conn, Engine, LengthPrefixed, Limits
from trio_wknet._errors import ConnectionClosed
from trio_wknet._websocket.channel import WebSocket

Made = tuple[WebSocket, Any]
Message = str | bytes


@asynccontextmanager
async def ws_and_peer(
    engine: Engine, kind: str = "tcp", role: Any = "server", **options: Any
) -> AsyncIterator[Made]:
    limits = options.pop("limits", Limits())
    small = options.pop("small", None)
    async with conn_and_peer(engine, kind, limits=limits, options=small) as (conn, peer):
        yield WebSocket._over(conn, role, **options), peer


@asynccontextmanager
async def two_ends(
    engine: Engine, kind: str = "tcp", **options: Any
) -> AsyncIterator[tuple[WebSocket, WebSocket]]:
    async with two_conns(engine, kind) as (client, server):
        yield (
            WebSocket._over(client, "client", **options),
            WebSocket._over(server, "server", **options),
        )


@pytest.fixture
async def made(engine: Engine, kind: str) -> AsyncIterator[Made]:
    async with ws_and_peer(engine, kind) as pair:
        yield pair


@pytest.fixture
async def ends(engine: Engine, kind: str) -> AsyncIterator[tuple[WebSocket, WebSocket]]:
    async with two_ends(engine, kind) as pair:
        yield pair


def text(value: str, **options: Any) -> bytes:
    return frame(TEXT, value.encode(), key=KEY, **options)


def binary(value: bytes, **options: Any) -> bytes:
    return frame(BINARY, value, key=KEY, **options)


def goodbye(code: int = 1000, reason: str = "", key: bytes | None = KEY) -> bytes:
    return frame(CLOSE, close_payload(code, reason), key=key)


MESSAGES: list[Message] = ["", "a", b"", b"b", "ü" * 100, b"x" * 125, b"x" * 126, "€" * 3000]
MESSAGES += [b"y" * 16_384, "z" * 16_385, b"w" * 65_535, b"w" * 65_536, "€" * 50_000]


# --- receiving ------------------------------------------------------------------------------


async def test_messages_come_as_they_were_sent(ends: tuple[WebSocket, WebSocket]) -> None:
    """Both roles, both ways, in every form of both."""
    for one, other in (ends, ends[::-1]):
        for message in MESSAGES:
            await one.send(message)
            assert await other.receive() == message
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.send_many, MESSAGES)
            got: list[Message] = []
            while len(got) < len(MESSAGES):
                got += await other.receive_many()
            assert got == MESSAGES
        small = [message for message in MESSAGES if len(message) < 1000]
        one.send_many_nowait(small)
        for message in small:
            one.send_nowait(message)
        got = []
        while len(got) < 2 * len(small):
            got += await other.receive_many(3)
        assert got == 2 * small


async def test_a_receive_takes_all_that_are_whole(made: Made) -> None:
    ws, peer = made
    await send(peer, text("a") + binary(b"b") + text("c", fin=False) + b"\x80")
    await until(lambda: ws.statistics().messages_waiting == 2)
    assert ws.receive_many_nowait(1) == ["a"]
    assert ws.receive_nowait() == b"b"
    for call in (ws.receive_nowait, ws.receive_many_nowait):
        with pytest.raises(trio.WouldBlock):
            call()
    assert ws.statistics().bytes_received == 2


async def test_fragments_are_joined_with_control_frames_between(made: Made) -> None:
    ws, peer = made
    whole = "größer €".encode()
    for at in range(len(whole) + 1):
        await send(peer, frame(TEXT, whole[:at], fin=False, key=KEY))
        await send(peer, frame(PING, b"p%d" % at, key=KEY) + frame(PONG, key=KEY))
        assert await read(peer, 4 + (at > 9)) == frame(PONG, b"p%d" % at)
        await send(peer, frame(CONTINUATION, whole[at:], key=KEY))
        assert await ws.receive() == "größer €"


async def test_a_message_is_whole_before_anybody_is_woken(made: Made) -> None:
    ws, peer = made
    data = content("message", 3000)
    got = []

    async def receive() -> None:
        got.append(await ws.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        for byte in range(0, 3000, 100):
            head = binary(data)[: byte + 100]
            await send(peer, head[byte:])
            await wait_all_tasks_blocked()
            assert got == []
        await send(peer, binary(data)[3000:])
    assert got == [data]


@pytest.mark.parametrize("role", ["server", "client"])
async def test_bytes_behind_the_handshake(engine: Engine, role: Any) -> None:
    """In what was read with it, in the ring, divided between both, and on their way."""
    key = KEY if role == "server" else None
    stream = frame(TEXT, b"one", key=key) + frame(PING, b"p", key=key)
    stream += frame(BINARY, bytes(200), key=key) + frame(TEXT, b"three", key=key)
    for at in (0, 1, 4, len(stream) // 2, len(stream)):
        async with conn_and_peer(engine) as (conn, peer):
            await send(peer, b"handshake" + stream[:-3])
            await until(lambda: conn.statistics().buffered_inbound == 6 + len(stream))
            unread = (await conn.receive_exactly(9 + min(at, len(stream) - 3)))[9:]
            ws = WebSocket._over(conn, role, unread=unread)
            await send(peer, stream[-3:])
            assert [await ws.receive() for _ in range(3)] == ["one", bytes(200), "three"]
            pong = await read(peer, 3 if role == "server" else 7)
            assert decode(pong, client=role == "server").pongs == [b"p"]


async def test_a_paused_connection_is_taken_over(engine: Engine) -> None:
    """The ring is full of bytes when it becomes a WebSocket: they are a part of a message."""
    data = content("large", 300_000)
    async with conn_and_peer(engine, limits=Limits(inbound=4096)) as (conn, peer):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, peer, binary(data) + text("after"))
            await until(lambda: conn.statistics().buffered_inbound >= 4096)
            ws = WebSocket._over(conn, "server")
            assert await ws.receive() == data
            assert await ws.receive() == "after"


async def test_what_is_not_taken_holds_the_peer_back(engine: Engine) -> None:
    limits = Limits(inbound=8192)
    async with ws_and_peer(engine, limits=limits, small=SMALL) as (ws, peer):
        message = content("one", 1000)
        count = 2000
        async with trio.open_nursery() as nursery:

            async def send_all() -> None:
                for _ in range(count):
                    await send(peer, binary(message))

            nursery.start_soon(send_all)
            await until(lambda: ws.conn.statistics().buffered_inbound >= 8192)
            await wait_all_tasks_blocked(0.02)
            assert ws.conn.statistics().buffered_inbound < 8192 + 2 * 65536
            got = 0
            while got < count:
                for one in await ws.receive_many():
                    assert one == message
                    got += 1


async def test_tiny_messages_take_at_most_what_is_said(engine: Engine) -> None:
    """A frame of 2 bytes is a record of 8."""
    async with ws_and_peer(engine, role="client", limits=Limits(inbound=65536)) as (ws, peer):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, peer, frame(BINARY) * 300_000)
            await until(lambda: ws.conn.statistics().buffered_inbound >= 65536)
            got = 0
            while got < 300_000:
                assert ws.conn.statistics().buffered_inbound <= 65536 + 4 * 65536
                got += len(await ws.receive_many())
    assert got == 300_000


async def test_a_message_larger_than_the_bound(engine: Engine, kind: str) -> None:
    async with ws_and_peer(engine, kind, limits=Limits(inbound=1000)) as (ws, peer):
        data = content("large", 800_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, peer, text("a") + binary(data) + text("b"))
            assert await ws.receive() == "a"
            assert await ws.receive() == data
            assert await ws.receive() == "b"


async def test_a_second_receiver_is_refused(made: Made) -> None:
    ws, _ = made
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ws.receive)
        await wait_all_tasks_blocked()
        for wait in (ws.receive, ws.receive_many):
            with pytest.raises(trio.BusyResourceError):
                await wait()
        for call in (ws.receive_nowait, ws.receive_many_nowait):
            with pytest.raises(trio.BusyResourceError):
                call()
        nursery.cancel_scope.cancel()


async def test_bytes_are_refused(made: Made) -> None:
    ws, _ = made
    conn = ws.conn
    calls: list[Callable[[], Any]] = [
        conn.receive_nowait,
        lambda: conn.framed(LengthPrefixed(4, max_frame=100)),
        lambda: WebSocket._over(conn, "server"),
    ]
    for call in calls:
        with pytest.raises(trio.BusyResourceError, match="received by its WebSocket"):
            call()
    for wait in (conn.receive_some, conn.detach):
        with pytest.raises(trio.BusyResourceError, match="received by its WebSocket"):
            await wait()
    del ws
    with pytest.raises(trio.BusyResourceError, match="received by its WebSocket"):
        conn.framed(LengthPrefixed(4, max_frame=100))


async def test_a_cancelled_receive_has_taken_nothing(made: Made) -> None:
    ws, peer = made
    for n in range(20):
        with trio.CancelScope() as scope:
            if n % 2:
                scope.cancel()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, peer, text(str(n)))
                if not n % 2:
                    nursery.start_soon(wait_and_cancel, scope)
                await ws.receive_many(1)
        if scope.cancelled_caught:
            if n % 2:
                await send(peer, text(str(n)))
            assert await ws.receive() == str(n)


async def wait_and_cancel(scope: trio.CancelScope) -> None:
    await trio.lowlevel.checkpoint()
    scope.cancel()


async def test_bad_input(made: Made) -> None:
    ws, _ = made
    for value in (0, -1):
        with pytest.raises(ValueError, match="max_messages must be at least 1"):
            ws.receive_many_nowait(value)
    with pytest.raises(TypeError, match="max_messages must be an integer"):
        await ws.receive_many("5")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="message must be a str, or contiguous and bytes-like"):
        await ws.send(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"messages\[1\] must be a str, or contiguous.*not int"):
        ws.send_many_nowait(["a", 5])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"messages\[0\] must be a str, or contiguous"):
        await ws.send_many([memoryview(b"abcd")[::2]])
    with pytest.raises(ValueError, match="message cannot be sent as text"):
        await ws.send("\ud800")
    for many in ("abc", b"abc", 5):
        with pytest.raises(TypeError, match="messages must be an iterable of messages"):
            await ws.send_many(many)  # type: ignore[arg-type]
    for payload, kind in ((bytes(126), ValueError), ("a", TypeError)):
        with pytest.raises(kind, match="payload must"):
            await ws.ping(payload)  # type: ignore[arg-type]
    for code in (0, 999, 1004, 1005, 1006, 1015, 2999, 5000):
        with pytest.raises(ValueError, match="code must be"):
            await ws.aclose(code)
    with pytest.raises(TypeError, match="code must be an integer"):
        await ws.aclose("1000")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reason must have at most 123 bytes, not 124"):
        await ws.aclose(1000, "ü" * 62)
    with pytest.raises(TypeError, match="reason must be a str"):
        await ws.aclose(1000, b"a")  # type: ignore[arg-type]
    assert ws.conn.statistics().bytes_sent == 0
    with pytest.raises(TypeError, match="cannot be constructed"):
        WebSocket()


# --- sending --------------------------------------------------------------------------------


SIZES = [0, 1, 125, 126, 127, 178, 179, 2048, 2049, 65_535, 65_536, 100_000]


@pytest.mark.parametrize("role", ["server", "client"])
async def test_on_the_wire(engine: Engine, role: Any) -> None:
    async with ws_and_peer(engine, role=role) as (ws, peer):
        client = role == "client"
        for size in SIZES:
            data = content(size, size)
            await ws.send(data)
            ws.send_nowait(bytearray(data))
            await ws.send_many([memoryview(data), data])
            wire = await read(
                peer, 4 * (size + 2 + 4 * client + 2 * (size > 125) + 6 * (size > 65535))
            )
            seen = decode(wire, client=not client)
            assert seen.messages == 4 * [(BINARY, False, data)]
            assert seen.over is None
        await ws.send("€")
        assert decode(await read(peer, 5 + 4 * client), client=not client).messages == [
            (TEXT, False, "€".encode())
        ]
        assert ws.statistics().messages_sent == 4 * len(SIZES) + 1


async def test_a_client_never_uses_a_mask_twice(engine: Engine) -> None:
    async with ws_and_peer(engine, role="client") as (ws, peer):
        await ws.send_many([b"x"] * 3000)
        wire = await read(peer, 3000 * 7)
        assert len({wire[at + 2 : at + 6] for at in range(0, len(wire), 7)}) > 2990


async def test_a_client_masks_each_pong_anew(engine: Engine) -> None:
    async with ws_and_peer(engine, role="client") as (_, peer):
        keys = set()
        for _ in range(50):
            await send(peer, frame(PING, b"hello"))
            pong = await read(peer, 11)
            assert decode(pong).pongs == [b"hello"]
            keys.add(pong[2:6])
        assert len(keys) == 50


async def test_many_in_one_call(made: Made) -> None:
    ws, _ = made
    await ws.send_many([content(n, n * 311 % 6000) for n in range(40)])
    await ws.send_many([])
    ws.send_many_nowait([])
    assert ws.conn.statistics().send_calls == 1
    assert ws.statistics().messages_sent == 40


async def test_a_cancelled_send_is_whole_or_not_at_all(engine: Engine, kind: str) -> None:
    async with ws_and_peer(engine, kind, small=SMALL) as (ws, peer):
        large = content("large", 3_000_000)
        messages: list[Message] = ["first", large, "never"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ws.send_many, messages)
            await wait_all_tasks_blocked(0.02)
            nursery.cancel_scope.cancel()
        with trio.CancelScope() as scope:
            scope.cancel()
            await ws.send("not this")
        got = []
        async with trio.open_nursery() as nursery:

            async def listen() -> None:
                got.append(await read(peer, 7 + 10 + len(large) + 8))

            nursery.start_soon(ws.send, "behind")
            nursery.start_soon(listen)
        seen = decode(got[0], client=True, max_message=1 << 24)
        assert seen.messages == [
            (TEXT, False, b"first"),
            (BINARY, False, large),
            (TEXT, False, b"behind"),
        ]


async def test_what_would_block_is_not_sent(engine: Engine) -> None:
    async with ws_and_peer(engine, small=SMALL, limits=Limits(outbound=50_000)) as (ws, peer):
        with pytest.raises(ValueError, match=r"more than limits.outbound \(50000\)"):
            ws.send_nowait(bytes(50_000))
        count = 0
        with pytest.raises(trio.WouldBlock):
            while True:
                ws.send_nowait(bytes(9000))
                count += 1
        assert await read(peer, count * 9004) == frame(BINARY, bytes(9000)) * count
        await ws.send("after")
        assert await read(peer, 7) == frame(TEXT, b"after")


# --- control frames --------------------------------------------------------------------------


async def test_pings_are_answered_though_nobody_receives(made: Made) -> None:
    ws, peer = made
    for n in range(50):
        await send(peer, text("unread") + frame(PING, b"%d" % n, key=KEY))
        assert await read(peer, 2 + len(b"%d" % n)) == frame(PONG, b"%d" % n)
    assert ws.statistics().pings_answered == 50
    assert len(await ws.receive_many()) == 50


async def test_a_ping_is_answered_though_nobody_receives(made: Made) -> None:
    ws, peer = made
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ws.ping, b"hello")
        assert await read(peer, 7) == frame(PING, b"hello")
        await send(peer, frame(PONG, b"other", key=KEY))
        await wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1
        await send(peer, frame(PONG, b"hello", key=KEY))


async def test_a_pong_confirms_earlier_pings(made: Made) -> None:
    ws, peer = made
    done: list[int] = []

    async def ping(n: int) -> None:
        assert await ws.ping(b"%d" % n) > 0
        done.append(n)

    async with trio.open_nursery() as nursery:
        for n in (1, 2, 3):
            nursery.start_soon(ping, n)
            assert await read(peer, 3) == frame(PING, b"%d" % n)
        with pytest.raises(ValueError, match="of a ping that is not answered yet"):
            await ws.ping(b"2")
        # Not the last word: what nobody asked for comes behind it in the same packet.
        await send(peer, frame(PONG, b"2", key=KEY) + frame(PONG, b"no", key=KEY))
        await until(lambda: len(done) == 2)
        assert sorted(done) == [1, 2]
        await send(peer, frame(PONG, b"3", key=KEY))
    assert done[-1] == 3


async def test_pings_of_ones_own_and_a_cancelled_one(ends: tuple[WebSocket, WebSocket]) -> None:
    one, other = ends
    for _ in range(3):
        await one.ping()
        await other.ping(b"")
    with trio.CancelScope() as scope:
        scope.cancel()
        await one.ping(b"cancelled")
    await one.ping(b"cancelled")
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(one.ping)
            nursery.start_soon(other.ping)


@pytest.mark.parametrize("reads", [True, False], ids=["reads", "stalls"])
async def test_pongs_in_the_middle_of_a_large_message(
    engine: Engine, kind: str, reads: bool
) -> None:
    """A message is half sent: pongs go before or behind it, never into it. There are no more
    than one for those pings that came while it was stuck."""
    async with ws_and_peer(engine, kind, small=SMALL, limits=Limits(outbound=4096)) as (ws, peer):
        large = content("large", 2_000_000)
        wire = bytearray()

        async def listen() -> None:
            while data := await peer.recv(65536):
                wire.extend(data)

        async with trio.open_nursery() as nursery:
            messages: list[Message] = [large, "after"]
            nursery.start_soon(ws.send_many, messages)
            if reads:
                nursery.start_soon(listen)
            else:
                await wait_all_tasks_blocked(0.01)
            for n in range(300):
                await send(peer, frame(PING, content(n, 125), key=KEY))
            await wait_all_tasks_blocked(0.01)
            if not reads:
                assert ws.conn.statistics().buffered_outbound <= 4096 + 256
                nursery.start_soon(listen)
            await until(
                lambda: (
                    len(wire) > len(large)
                    and decode(bytes(wire), client=True, max_message=1 << 24).pongs[-1:]
                    == [content(299, 125)]
                )
            )
            nursery.cancel_scope.cancel()
        seen = decode(bytes(wire), client=True, max_message=1 << 24)
        assert seen.over is None
        assert seen.messages[:1] == [(BINARY, False, large)]
        numbers = [content(n, 125) for n in range(300)]
        order = [numbers.index(pong) for pong in seen.pongs]
        assert order == sorted(set(order))


async def test_a_pong_waits_behind_what_the_peer_does_not_read(engine: Engine, kind: str) -> None:
    """More is unsent than may be: the pong waits in the decoder, alone, and is sent by whoever
    makes room."""
    limits = Limits(outbound=20_000)
    async with ws_and_peer(engine, kind, small=SMALL, limits=limits) as (ws, peer):
        count = 0
        with pytest.raises(trio.WouldBlock):
            while True:
                ws.send_nowait(bytes(1000))
                count += 1
        for n in range(200):
            await send(peer, frame(PING, b"%3d" % n + bytes(120), key=KEY))
        await wait_all_tasks_blocked(0.01)
        assert ws.conn.statistics().buffered_outbound <= 20_000 + 131
        wire = b""
        while b"199" not in wire:
            wire += await peer.recv(65536)
        seen = decode(wire, client=True)
        assert len(seen.messages) == count
        assert seen.pongs[-1] == b"199" + bytes(120)


# --- the end -----------------------------------------------------------------------------------


async def closed_with(call: Callable[..., Any], *args: Any) -> ConnectionClosed:
    with pytest.raises(ConnectionClosed) as caught:
        result = call(*args)
        if hasattr(result, "__await__"):
            await result
    return caught.value


@pytest.mark.parametrize("code", [1000, 1001, 1005, 1002, 1011, 3000, 4999])
async def test_the_peer_closes(engine: Engine, code: int) -> None:
    async with ws_and_peer(engine) as (ws, peer):
        payload = b"" if code == 1005 else close_payload(code, "só")
        await send(peer, text("last") + text("half", fin=False) + frame(CLOSE, payload, key=KEY))
        echo = frame(CLOSE, payload[:2])
        assert await read(peer, len(echo)) == echo
        assert await ws.receive() == "last"
        for call in (ws.receive, ws.receive_many, ws.receive_nowait, ws.receive_many_nowait):
            closed = await closed_with(call)
            assert (closed.code, closed.by) == (code, "peer")
            assert closed.reason == ("" if code == 1005 else "só")
            normal = code in (1000, 1001, 1005)
            assert isinstance(closed, trio.EndOfChannel if normal else trio.BrokenResourceError)
        if normal:
            assert [message async for message in ws] == []
        else:
            with pytest.raises(ConnectionClosed):
                [message async for message in ws]
        calls: list[tuple[Any, ...]] = [(ws.send, "a"), (ws.send_many, ["a"]), (ws.ping,)]
        calls += [(ws.send_nowait, "a"), (ws.send_many_nowait, ["a"])]
        for send_call in calls:
            closed = await closed_with(*send_call)
            assert (closed.code, closed.by) == (code, "peer")
            assert isinstance(closed, trio.BrokenResourceError)
        assert ws.close_code == code
        await ws.aclose()
        assert await read_all(peer) == b""
        assert ws.close_code == code
        for call in (ws.receive, ws.receive_nowait):
            assert isinstance(await closed_with(call), trio.ClosedResourceError)


async def test_waiting_tasks_hear_of_the_end(engine: Engine, kind: str) -> None:
    async with ws_and_peer(engine, kind, small=SMALL) as (ws, peer):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(closed_with, ws.receive)
            nursery.start_soon(closed_with, ws.ping)
            await wait_all_tasks_blocked()
            await send(peer, goodbye(4000))
    async with ws_and_peer(engine, kind, small=SMALL) as (ws, peer):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(closed_with, ws.receive)
            nursery.start_soon(closed_with, ws.ping)
            await wait_all_tasks_blocked()
            peer.close()
        assert (ws.close_code, ws.close_reason) == (1006, "")


async def test_an_end_without_a_close_frame(engine: Engine, kind: str) -> None:
    for last in (b"", text("half", fin=False), text("whole") + text("cut")[:5]):
        whole = last.startswith(text("whole"))
        async with ws_and_peer(engine, kind) as (ws, peer):
            await send(peer, last)
            peer.shutdown(trio.socket.SHUT_WR)
            if whole:
                assert await ws.receive() == "whole"
            closed = await closed_with(ws.receive)
            assert (closed.code, closed.reason, closed.by) == (1006, "", "network")
            assert isinstance(closed, trio.BrokenResourceError)
            await ws.aclose()


async def test_a_reset(engine: Engine) -> None:
    async with ws_and_peer(engine) as (ws, peer):
        await send(peer, text("before"))
        peer.setsockopt(
            trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, bytes([1, 0, 0, 0] + 4 * [0])
        )
        await until(lambda: ws.statistics().messages_waiting)
        peer.close()
        assert await ws.receive() == "before"
        closed = await closed_with(ws.receive)
        assert closed.code == 1006
        assert isinstance(closed.__cause__, ConnectionResetError)
        closed = await closed_with(ws.send, "a")
        assert isinstance(closed, trio.BrokenResourceError)
        await ws.aclose()


@pytest.mark.parametrize("role", ["server", "client"])
async def test_closing_here(engine: Engine, kind: str, role: Any) -> None:
    async with ws_and_peer(engine, kind, role) as (ws, peer):
        key = KEY if role == "server" else None
        await send(peer, frame(TEXT, b"dropped", key=key))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ws.aclose, 4001, "why")
            mine = await read(peer, 7 + 4 * (role == "client"))
            assert decode(mine, client=role == "server").over == (1, 4001)
            await send(peer, frame(TEXT, bytes(70_000), key=key) + frame(PING, key=key))
            await wait_all_tasks_blocked()
            for call in (ws.receive, ws.receive_nowait, ws.ping):
                closed = await closed_with(call)
                assert (closed.code, closed.reason, closed.by) == (4001, "why", "local")
                assert isinstance(closed, trio.ClosedResourceError)
            assert isinstance(await closed_with(ws.send, "a"), trio.ClosedResourceError)
            assert isinstance(await closed_with(ws.send_nowait, "a"), trio.ClosedResourceError)
            await send(peer, goodbye(4001, key=key))
            if role == "client":
                peer.shutdown(trio.socket.SHUT_WR)
        assert await read_all(peer) == b""
        assert (ws.close_code, ws.close_reason) == (4001, "why")
        await ws.aclose()
        await ws.conn.aclose()


async def test_a_receiver_is_woken_by_closing_here(made: Made) -> None:
    ws, peer = made
    async with trio.open_nursery() as nursery:
        nursery.start_soon(closed_with, ws.receive)
        nursery.start_soon(closed_with, ws.ping)
        await wait_all_tasks_blocked()
        nursery.start_soon(ws.aclose)
        nursery.start_soon(ws.aclose)
        await read(peer, 4)
        await send(peer, goodbye())


@pytest.mark.parametrize("how", ["silent", "floods", "does not read"])
async def test_a_peer_that_stalls_in_the_close(engine: Engine, how: str) -> None:
    async with ws_and_peer(engine, "unix", small=SMALL, close_timeout=0.05) as (ws, peer):
        async with trio.open_nursery() as nursery:
            if how == "floods":

                async def flood() -> None:
                    with suppress(OSError):
                        while True:
                            await send(peer, binary(bytes(10_000)))

                nursery.start_soon(flood)
            if how == "does not read":
                await clog(ws.conn)
            await ws.aclose()
            assert ws.conn.close_reason == "closed"
            nursery.cancel_scope.cancel()


async def test_a_cancelled_close_closes_at_once(made: Made) -> None:
    ws, peer = made
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ws.aclose)
        await read(peer, 4)
        nursery.cancel_scope.cancel()
    assert await read_all(peer) == b""
    with trio.CancelScope() as scope:
        scope.cancel()
        await ws.aclose()
    assert scope.cancelled_caught


async def test_the_sending_side_is_shut_under_it(engine: Engine) -> None:
    """What comes is received, and nothing can be sent."""
    async with ws_and_peer(engine) as (ws, peer):
        await ws.conn.send_eof()
        assert isinstance(await closed_with(ws.send, "a"), trio.ClosedResourceError)
        assert isinstance(await closed_with(ws.send_many, ["a"]), trio.ClosedResourceError)
        assert isinstance(await closed_with(ws.send_nowait, "a"), trio.ClosedResourceError)
        await send(peer, frame(TEXT, b"hello", key=KEY))
        assert await ws.receive() == "hello"


async def test_the_connection_is_closed_under_it(engine: Engine) -> None:
    async with ws_and_peer(engine) as (ws, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(closed_with, ws.receive)
            nursery.start_soon(closed_with, ws.ping)
            await wait_all_tasks_blocked()
            await ws.conn.aclose()
        closed = await closed_with(ws.receive)
        assert isinstance(closed, trio.ClosedResourceError)
        assert isinstance(await closed_with(ws.send, "a"), trio.ClosedResourceError)
        assert isinstance(await closed_with(ws.send_nowait, "a"), trio.ClosedResourceError)
        assert isinstance(await closed_with(ws.ping), trio.ClosedResourceError)
        await ws.aclose()
        assert ws.statistics().messages_received == 0
        with pytest.raises(trio.ClosedResourceError):
            WebSocket._over(ws.conn, "server")


async def test_each_end_of_the_other(ends: tuple[WebSocket, WebSocket]) -> None:
    one, other = ends
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.aclose, 1001, "going")
            assert [message async for message in other] == []
            await other.aclose()
    assert (other.close_code, other.close_reason) == (1001, "going")
    assert one.conn.close_reason in ("eof", "closed")


async def test_both_close_at_once(ends: tuple[WebSocket, WebSocket]) -> None:
    async with trio.open_nursery() as nursery:
        for end in ends:
            nursery.start_soon(end.aclose)


async def test_thrown_away(engine: Engine) -> None:
    """With pings under way, and the connection after it."""
    async with conn_and_peer(engine) as (conn, peer):
        ws = WebSocket._over(conn, "server")
        with trio.CancelScope() as scope:
            scope.cancel()
            await ws.ping()
        ws._send_ping(b"left")
        wire = b""
        while b"left" not in wire:
            wire += await peer.recv(1000)
        del ws
        await send(peer, frame(PONG, b"left", key=KEY) + text("to nobody"))
        await until(lambda: conn.statistics().buffered_inbound)


async def test_conn_type(made: Made) -> None:
    ws, _ = made
    assert isinstance(ws.conn, Conn)
    assert isinstance(ws, trio.abc.Channel)
    assert ws.remote_address == ws.conn.remote_address
    assert (ws.subprotocol, ws.close_code, ws.close_reason) == (None, None, None)
    assert "open" in repr(ws)
