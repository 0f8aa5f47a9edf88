"""Churn: connections that come, talk, misbehave and go at random, with every byte
checked. Short here; ``--long`` runs for minutes for each form. ``CHURN_SEED`` in
the environment repeats a run. Also what to run under a sanitizer."""

from __future__ import annotations

import os
import random
from contextlib import suppress

import pytest
import trio
from helpers import SMALL, until, url

from trio_wknet import Conn, Engine, IncompleteRead, Limits, open_engine

FORMS = [(0, "tcp"), (0, "unix"), (1, "tcp"), (2, "tcp"), (2, "unix")]
LIMITS = Limits(inbound=20_000, outbound=60_000, linger_time=2, accept_queue=8)
AT_A_TIME = 24

ENDED = (trio.BrokenResourceError, trio.ClosedResourceError)


class Refused(Exception):
    """What a handler raises on purpose."""


def stream(seed: int, way: str) -> random.Random:
    return random.Random(f"{seed} {way}")


class Checked:
    """One end of a connection. Each direction carries the bytes of a generator that
    both ends know, so that one byte lost, doubled or from elsewhere is noticed."""

    def __init__(self, conn: Conn, seed: int, sends: str, receives: str, dice: random.Random):
        self.conn = conn
        self.outgoing = stream(seed, sends)
        self.incoming = stream(seed, receives)
        self.dice = dice
        self.unsent = b""
        self.left = b""

    async def send(self) -> None:
        piece = self.unsent or self.outgoing.randbytes(4 * self.dice.randint(1, 5000))
        self.unsent = b""
        before = self.conn.statistics()
        way = self.dice.random()
        if way < 0.3:
            try:
                self.conn.send_nowait(piece)
            except trio.WouldBlock:
                self.unsent = piece
                await self.conn.flush()
        elif way < 0.8:
            await self.conn.send_all(piece)
        else:
            with trio.move_on_after(self.dice.random() * 0.002) as scope:
                await self.conn.send_all(bytearray(piece))
            if scope.cancelled_caught:
                after = self.conn.statistics()
                sent = after.bytes_sent + after.buffered_outbound
                sent -= before.bytes_sent + before.buffered_outbound
                self.unsent = piece[sent:]

    def check(self, data: bytes) -> None:
        # randbytes gives the same bytes however they are cut, in words of four.
        while len(self.left) < len(data):
            self.left += self.incoming.randbytes(4096)
        assert data == self.left[: len(data)]
        self.left = self.left[len(data) :]

    async def receive(self) -> bool:
        """False at the end."""
        way = self.dice.randrange(4)
        if way == 0:
            buffer = bytearray(self.dice.randint(1, 9000))
            n = await self.conn.receive_into(buffer)
            self.check(bytes(buffer[:n]))
            return n > 0
        if way == 1:
            with suppress(IncompleteRead):
                self.check(await self.conn.receive_exactly(self.dice.randint(1, 30_000)))
                return True
        data = b""
        if way == 2:
            with trio.move_on_after(self.dice.random() * 0.002) as scope:
                data = await self.conn.receive_some(self.dice.randint(1, 9000))
            if scope.cancelled_caught:
                return True
        else:
            data = await self.conn.receive_some()
        self.check(data)
        return data != b""

    async def talk(self, turns: int) -> None:
        """Send and receive at once; then end in one of the ways there are."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.send_some, turns)
            with suppress(*ENDED):
                while await self.receive():
                    if self.dice.random() < 0.004:
                        nursery.cancel_scope.cancel()
        way = self.dice.randrange(4)
        if way == 0:
            self.conn.abort()
        elif way == 1:
            await trio.aclose_forcefully(self.conn)
        elif way == 2:
            await self.conn.aclose()

    async def send_some(self, turns: int) -> None:
        with suppress(*ENDED):
            for _ in range(turns):
                await self.send()
            if self.dice.random() < 0.1:
                self.conn.abort()
                return
            while self.unsent:
                await self.send()
            await self.conn.send_eof()


async def churn(engine: Engine, kind: str, seed: int, visits: int, folder: str) -> int:
    """So many clients come and go, a few dozen at a time; how many of them have
    talked to the end."""
    dice = random.Random(seed)
    address = "tcp://127.0.0.1:0" if kind == "tcp" else f"unix://{folder}/churn"
    done = 0

    async def handler(conn: Conn) -> None:
        with suppress(IncompleteRead, *ENDED):
            number = int.from_bytes(await conn.receive_exactly(8), "big")
            own = random.Random(number)
            if own.random() < 0.05:
                raise Refused
            with conn.cancel_on_disconnect() if own.random() < 0.1 else trio.CancelScope():
                await Checked(conn, number, "down", "up", own).talk(own.randint(0, 8))

    async def serve(conn: Conn) -> None:
        with suppress(Refused):
            await handler(conn)

    async def client(number: int) -> None:
        nonlocal done
        own = random.Random(-number)
        try:
            conn = await engine.connect(where, limits=LIMITS, options=SMALL)
        except OSError:
            return
        try:
            with trio.move_on_after(own.choice([0.001, 0.01, 1, 10])):
                await conn.send_all(number.to_bytes(8, "big"))
                await Checked(conn, number, "up", "down", own).talk(own.randint(0, 8))
                done += 1
        except ENDED:
            pass
        finally:
            conn.abort()

    listener = await engine.listen(address, limits=LIMITS, options=SMALL)
    where = url(listener)

    async def visit() -> None:
        for _ in range(visits // AT_A_TIME):
            await client(dice.getrandbits(60))

    async with trio.open_nursery() as server:
        server.start_soon(listener.serve, serve)
        async with trio.open_nursery() as clients:
            for _ in range(AT_A_TIME):
                clients.start_soon(visit)
        await listener.drain()
    await until(lambda: engine.statistics().connections == 0)
    return done


@pytest.mark.parametrize(("reactors", "kind"), FORMS, ids=lambda value: str(value))
def test_churn(nothing_left: None, reactors: int, kind: str, tmp_path: object, long: bool) -> None:
    seed = int(os.environ.get("CHURN_SEED") or random.SystemRandom().getrandbits(32))
    print(f"CHURN_SEED={seed}")

    async def main() -> int:
        async with open_engine(reactors) as engine:
            with trio.fail_after(900 if long else 40):
                return await churn(engine, kind, seed, 30_000 if long else 240, str(tmp_path))

    assert trio.run(main) > 10
