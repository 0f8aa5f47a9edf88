"""A WebSocket on which tasks send, and its reactor: pongs, pings and close frames go between
messages, and nothing follows a close frame."""

from __future__ import annotations

import random
from contextlib import suppress
from errno import ENOMEM
from typing import Any

import pytest
import trio
from helpers import SMALL, conn_and_peer, content, refusing, send, until
from websocket_model import BINARY, CLOSE, KEY, PING, TEXT, close_payload, decode, frame

from trio_wknet import Engine, Limits
from trio_wknet._errors import ConnectionClosed
from trio_wknet._websocket.channel import WebSocket

ROUNDS = 2
PINGS = 60


def message(sender: int, number: int, size: int) -> bytes:
    return b"%d %d %d " % (sender, number, size) + content((sender, number), size)


def split(data: bytes) -> tuple[int, int]:
    sender, number, size, rest = data.split(b" ", 3)
    assert rest == content((int(sender), int(number)), int(size)), "a message is torn"
    return int(sender), int(number)


class Talk:
    """Two senders, a peer that pings and then closes, and all that it hears."""

    def __init__(self, ws: WebSocket, peer: Any, rng: random.Random) -> None:
        self.ws = ws
        self.peer = peer
        self.rng = rng
        self.wire = bytearray()
        self.sent = {0: 0, 1: 0}

    async def wait_and_send(self) -> None:
        with suppress(ConnectionClosed):
            while True:
                sizes = [self.rng.choice([1, 200, 3000, 30_000]) for _ in range(3)]
                many = [message(0, self.sent[0] + i, size) for i, size in enumerate(sizes)]
                if self.rng.random() < 0.5:
                    await self.ws.send(many[0])
                    self.sent[0] += 1
                else:
                    await self.ws.send_many(many)
                    self.sent[0] += 3

    async def send_at_once(self) -> None:
        with suppress(ConnectionClosed):
            while True:
                for _ in range(self.rng.randrange(1, 4)):
                    with suppress(trio.WouldBlock):
                        size = self.rng.choice([1, 100, 2000])
                        self.ws.send_nowait(message(1, self.sent[1], size))
                        self.sent[1] += 1
                await trio.sleep(0)

    async def ping(self) -> None:
        with suppress(ConnectionClosed):
            while True:
                await self.ws.ping()

    async def listen(self) -> None:
        """As fast as it likes, and answering pings."""
        answered = 0
        while data := await self.peer.recv(self.rng.choice([500, 5000, 50_000])):
            self.wire += data
            if len(self.wire) - answered > 100_000:
                answered = len(self.wire)
                await trio.sleep(0)

    async def write(self, rng: random.Random) -> None:
        for n in range(PINGS):
            await send(self.peer, frame(PING, b"%d" % n, key=KEY))
            if rng.random() < 0.3:
                await trio.sleep(0)
        await send(self.peer, frame(CLOSE, close_payload(3000 + PINGS), key=KEY))
        await self.closed()
        await self.ws.aclose()

    async def closed(self) -> None:
        with pytest.raises(ConnectionClosed) as caught:
            await self.ws.receive()
        assert caught.value.code == 3000 + PINGS

    def check(self) -> None:
        seen = decode(bytes(self.wire), client=True)
        assert seen.over == (1, 3000 + PINGS)
        assert bytes(self.wire).endswith(frame(CLOSE, close_payload(3000 + PINGS)))
        order = [int(pong) for pong in seen.pongs]
        assert order == sorted(set(order))
        numbers: dict[int, list[int]] = {0: [], 1: []}
        for kind, _, data in seen.messages:
            assert kind == BINARY
            sender, number = split(data)
            numbers[sender].append(number)
        for sent in numbers.values():
            assert sent == list(range(len(sent)))


@pytest.mark.parametrize("outbound", [3000, 100_000])
async def test_all_send_until_the_peer_closes(
    engine: Engine, kind: str, outbound: int, long: bool
) -> None:
    for seed in range(ROUNDS * 50 if long else ROUNDS):
        rng = random.Random(seed)
        limits = Limits(outbound=outbound)
        async with conn_and_peer(engine, kind, limits=limits, options=SMALL) as (conn, peer):
            talk = Talk(WebSocket._over(conn, "server"), peer, rng)
            async with trio.open_nursery() as nursery:
                for task in (talk.wait_and_send, talk.send_at_once, talk.ping, talk.listen):
                    nursery.start_soon(task)
                nursery.start_soon(talk.write, random.Random(seed))
            talk.check()


async def test_a_peer_that_stalls_in_a_frame(engine: Engine) -> None:
    """It holds what it has sent, and nobody else up."""
    stalled = []
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            pair = conn_and_peer(engine, "unix")
            conn, peer = await pair.__aenter__()
            ws = WebSocket._over(conn, "server", max_message=1 << 29)
            await send(peer, frame(BINARY, bytes(1000), key=KEY, length=1 << 29))
            nursery.start_soon(receive_nothing, ws)
            stalled.append((pair, ws))
        async with conn_and_peer(engine, "unix") as (conn, peer):
            ws = WebSocket._over(conn, "server")
            for n in range(100):
                await send(peer, frame(TEXT, b"%d" % n, key=KEY))
                assert await ws.receive() == str(n)
        for _, ws in stalled:
            await until(lambda ws=ws: ws.conn.statistics().buffered_inbound == 1008)  # type: ignore[misc]
        statistics = engine.statistics()
        assert statistics.pool_in_use < 20 * 32_768 + 4 * 65_536
        nursery.cancel_scope.cancel()
    for pair, _ in stalled:
        await pair.__aexit__(None, None, None)


async def receive_nothing(ws: WebSocket) -> None:
    await ws.receive()
    raise AssertionError("a message that is not whole was delivered")


async def test_without_memory_the_stream_ends_behind_what_came(engine: Engine, kind: str) -> None:
    async with conn_and_peer(engine, kind) as (conn, peer):
        ws = WebSocket._over(conn, "server")
        await send(peer, frame(TEXT, b"before", key=KEY))
        await until(lambda: ws.statistics().messages_waiting)
        with refusing("blocks"):
            await send(peer, frame(BINARY, bytes(30_000), key=KEY))
            await until(lambda: ws.close_code)
        assert await ws.receive() == "before"
        with pytest.raises(ConnectionClosed) as caught:
            await ws.receive()
        assert caught.value.code == 1006
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == ENOMEM


async def test_there_was_no_memory_to_become_one(engine: Engine) -> None:
    async with conn_and_peer(engine) as (conn, peer):
        await send(peer, frame(BINARY, bytes(3000), key=KEY))
        await until(lambda: conn.statistics().buffered_inbound)
        with refusing("blocks"):
            ws = WebSocket._over(conn, "server")
        with pytest.raises(ConnectionClosed) as caught:
            await ws.receive()
        assert isinstance(caught.value.__cause__, OSError)
