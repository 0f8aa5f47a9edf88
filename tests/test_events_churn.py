"""Churn in event mode: connections that come, talk, misbehave and go at random, under
callbacks that do the same. A model of each connection holds them to the contract, and
every byte is checked. Short here; ``--long`` runs for minutes for each form.
``CHURN_SEED`` in the environment repeats a run. Also what to run under a sanitizer."""

from __future__ import annotations

import functools
import gc
import os
import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import trio
import trio.lowlevel
from event_servers import address_of
from helpers import SMALL, dial, until

from trio_wknet import Conn, Engine, Limits, open_engine

FORMS = [(0, "tcp"), (0, "unix"), (1, "tcp"), (2, "tcp"), (2, "unix")]
LIMITS = Limits(inbound=20_000, outbound=60_000, linger_time=0.5, accept_queue=8)
AT_A_TIME = 24
ENDED = (trio.BrokenResourceError, trio.ClosedResourceError)


class Refused(Exception):
    """What a callback raises on purpose."""


class Session:
    """The model of one connection, and its context. A client begins with its number, in
    eight bytes; all that follows is known by it."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = random.Random(dice.random())
        self.state = "connecting"
        self.calling = False
        self.number: int | None = None
        self.taken = 0
        self.told = 0  # how many bytes had come when on_data was called last
        self.repeated = False
        self.expected = b""
        self.incoming = random.Random()
        self.untouched = True  # closed by nobody here
        self.meddled_with = self.dice.random() < 0.3

    def begin(self, conn: Conn) -> None:
        assert self.state == "open"
        assert not self.calling
        self.calling = True
        arrived = self.arrived(conn)
        # What comes while a callback begins may be news to the server once more.
        assert arrived > self.told or not self.repeated, "on_data without news"
        self.repeated = arrived == self.told
        self.told = arrived

    def end(self) -> None:
        assert self.calling
        self.calling = False

    def arrived(self, conn: Conn) -> int:
        return self.taken + conn.statistics().buffered_inbound

    def check(self, data: bytes) -> None:
        self.taken += len(data)
        while len(self.expected) < len(data):
            self.expected += self.incoming.randbytes(4096)
        assert data == self.expected[: len(data)]
        self.expected = self.expected[len(data) :]

    def take(self, conn: Conn) -> None:
        """Some of what is there, and now and then nothing; but all where reading has
        paused, and would not go on, nor come to the end, before somebody takes some."""
        unread = conn.statistics().buffered_inbound
        if self.number is None:
            if unread < 8:
                return
            number = conn.receive_nowait(8)
            self.number = int.from_bytes(number, "big")
            self.incoming = stream(self.number)
            self.taken = 8
            unread -= 8
        if unread > LIMITS.inbound // 2:
            self.check(conn.receive_nowait())
        elif unread and self.dice.random() < 0.9:
            size = self.dice.choice([unread, self.dice.randint(1, unread)])
            self.check(conn.receive_nowait(size))

    async def take_and_wait(self, conn: Conn) -> None:
        await trio.lowlevel.checkpoint()
        self.take(conn)
        way = self.dice.randrange(4)
        if way == 0 and self.number is not None:
            with trio.move_on_after(self.dice.random() * 0.002):
                self.check(await conn.receive_some(self.dice.randint(1, 9000)))
        elif way == 1:
            with trio.move_on_after(self.dice.random() * 0.002):
                await conn.send_all(bytes(self.dice.randint(1, 30_000)))
        elif way == 2:
            await trio.sleep(self.dice.random() * 0.001)


def stream(number: int) -> random.Random:
    return random.Random(f"{number} up")


class Server:
    """The callbacks."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.sessions: list[Session] = []
        self.refused = 0
        self.errors = 0
        self.sent: dict[int, int] = {}  # by clients that ended well

    @contextmanager
    def within(self, session: Session) -> Iterator[None]:
        try:
            with suppress(*ENDED):
                yield
        finally:
            session.end()

    def misbehave(self, conn: Conn, session: Session) -> None:
        way = session.dice.random()
        if way < 0.06:
            session.untouched = False
        if way < 0.02:
            conn.abort()
        elif way < 0.04:
            conn.close_nowait()
        elif way < 0.06:
            self.refused += 1
            raise Refused
        elif way < 0.2:
            with suppress(trio.WouldBlock, trio.BusyResourceError):
                conn.send_nowait(bytes(session.dice.randint(1, 40_000)))
        elif way < 0.3:
            cycle: list[Any] = [conn]
            cycle.append(cycle)  # for the collector, which runs in another thread

    def on_connect(self, conn: Conn) -> Any:
        assert conn.context is None
        conn.context = session = Session(self.dice)
        self.sessions.append(session)
        session.calling = True
        if session.dice.random() < 0.5:
            session.state = "open"
            session.end()
            return None
        return self.connect_slowly(session)

    async def connect_slowly(self, session: Session) -> None:
        try:
            await trio.sleep(session.dice.random() * 0.001)
        finally:
            session.state = "open"
            session.end()

    def on_data(self, conn: Conn) -> Any:
        session: Session = conn.context
        session.begin(conn)
        if session.dice.random() < 0.5:
            with self.within(session):
                session.take(conn)
                self.misbehave(conn, session)
            return None
        return self.work(conn, session)

    async def work(self, conn: Conn, session: Session) -> None:
        with self.within(session):
            await session.take_and_wait(conn)
            self.misbehave(conn, session)

    def on_close(self, conn: Conn, reason: str) -> Any:
        session: Session = conn.context
        assert session.state == "open"
        assert not session.calling
        session.state = "closed"
        if reason == "eof" and session.untouched and session.number is not None:
            # Nothing that came was kept from on_data.
            assert max(session.told, session.taken) == self.sent[session.number]
        if session.dice.random() < 0.1:
            self.refused += 1
            raise Refused
        return self.pause() if session.dice.random() < 0.3 else None

    async def pause(self) -> None:
        await trio.lowlevel.checkpoint()

    def on_error(self, conn: Conn, exc: Exception) -> None:
        if not isinstance(exc, Refused):
            raise exc
        self.errors += 1

    async def meddle(self, engine: Engine) -> None:
        """Another task, which uses some connections between their callbacks. With the
        others nothing but a callback gets on."""
        while True:
            await trio.sleep(0.002)
            conns = list(engine.connections.values())
            for conn in self.dice.sample(conns, min(3, len(conns))):
                session = conn.context
                if session is None or session.state != "open" or session.calling:
                    continue
                if not session.meddled_with:
                    continue
                with suppress(trio.WouldBlock, trio.BusyResourceError, *ENDED):
                    if self.dice.random() < 0.1:
                        session.untouched = False
                        conn.abort()
                    elif self.dice.random() < 0.5:
                        session.take(conn)
                    else:
                        conn.send_nowait(b"from elsewhere")


async def client(listener: Any, number: int, sent: dict[int, int]) -> None:
    dice = random.Random(-number)
    outgoing = stream(number)
    try:
        sock = dial(listener)
    except OSError:
        return
    sock.setblocking(False)
    peer = trio.socket.from_stdlib_socket(sock)
    count = 0
    with peer, suppress(OSError), trio.move_on_after(dice.choice([0.001, 0.01, 1, 10])):
        data = number.to_bytes(8, "big")
        for _ in range(dice.randint(1, 12)):
            while data:
                # The count is that before a FIN, which may come at any moment.
                sent[number] = count
                n = await peer.send(data)
                count += n
                sent[number] = count
                data = data[n:]
            if dice.random() < 0.3:
                await trio.sleep(dice.random() * 0.003)
            if dice.random() < 0.2:
                with trio.move_on_after(0.001):
                    await peer.recv(65536)
            data = outgoing.randbytes(4 * dice.randint(1, 4000))
        way = dice.randrange(3)
        if way == 0:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif way == 1:
            peer.shutdown(socket.SHUT_WR)
            while await peer.recv(65536):
                pass


@contextmanager
def collecting() -> Iterator[None]:
    """The garbage collector, at work in another thread."""
    over = threading.Event()

    def collect() -> None:
        while not over.wait(0.005):
            gc.collect(1)

    thread = threading.Thread(target=collect)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


async def churn(engine: Engine, address: str, seed: int, visits: int) -> int:
    """So many clients come and go, a few dozen at a time; how many were served."""
    dice = random.Random(seed)
    server = Server(dice)
    listener = await engine.listen(address, limits=LIMITS, options=SMALL)

    async def visit() -> None:
        for _ in range(visits // AT_A_TIME):
            await client(listener, dice.getrandbits(60), server.sent)

    async with trio.open_nursery() as nursery:
        await nursery.start(
            functools.partial(
                listener.serve_events,
                server.on_data,
                on_connect=server.on_connect,
                on_close=server.on_close,
                on_error=server.on_error,
            )
        )
        async with trio.open_nursery() as meddling:
            meddling.start_soon(server.meddle, engine)
            async with trio.open_nursery() as clients:
                for _ in range(AT_A_TIME):
                    clients.start_soon(visit)
            meddling.cancel_scope.cancel()
        # Returns only if no connection is waiting for a callback that never comes.
        await listener.drain()
        nursery.cancel_scope.cancel()
    assert [session for session in server.sessions if session.state != "closed"] == []
    assert server.errors == server.refused
    await until(lambda: engine.statistics().connections == 0)
    return len(server.sessions)


@pytest.mark.parametrize(("reactors", "kind"), FORMS, ids=lambda value: str(value))
def test_event_churn(
    nothing_left: None, reactors: int, kind: str, tmp_path: object, long: bool
) -> None:
    seed = int(os.environ.get("CHURN_SEED") or random.SystemRandom().getrandbits(32))
    print(f"CHURN_SEED={seed}")

    async def main() -> int:
        async with open_engine(reactors) as engine:
            with trio.fail_after(900 if long else 40), collecting():
                address = address_of(kind, tmp_path)
                return await churn(engine, address, seed, 30_000 if long else 240)

    assert trio.run(main) > 10
