"""A connection to which both sides send: Trio's thread, and its reactor messages of its own.

Every message tells who sent it, which one it is and how long; so the peer sees one that was
torn, doubled, lost, or overtaken by a later one of the same sender.
"""

from __future__ import annotations

import random
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from helpers import PATIENCE, SMALL, clog, conn_and_peer, content, read, read_all, until
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from trio_wknet import Conn, Engine, Limits, open_engine
from trio_wknet._native.testing import ReactorSender

HEADER = struct.Struct("!BIH")


def message(sender: int, number: int, size: int) -> bytes:
    """`size` is that of what comes behind the header."""
    return HEADER.pack(sender, number, size) + content((sender, number), size)


def split(data: bytes) -> dict[int, list[int]]:
    """Whole messages: their numbers, by sender."""
    found: dict[int, list[int]] = {}
    at = 0
    while at < len(data):
        sender, number, size = HEADER.unpack_from(data, at)
        whole = message(sender, number, size)
        assert data[at : at + len(whole)] == whole, f"message {number} of {sender} is torn"
        found.setdefault(sender, []).append(number)
        at += len(whole)
    return found


class Talk:
    """A connection whose two sides send numbered messages, which the peer reads."""

    def __init__(self, conn: Conn, peer: Any) -> None:
        self.conn = conn
        self.peer = peer
        self.reactor = ReactorSender(conn)
        self.sent = {0: 0, 1: 0}

    def next(self, sender: int, size: int) -> bytes:
        self.sent[sender] += 1
        return message(sender, self.sent[sender], size)

    def have_reactor_send(self, size: int) -> None:
        self.reactor.send(self.next(1, size))

    async def reactor_is_done(self) -> None:
        await until(lambda: self.reactor.counts()[3] == 0)

    async def end(self) -> None:
        """See that everything has come, once, whole and in order."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.finish)
            data = await read_all(self.peer)
        expected = {sender: list(range(1, n + 1)) for sender, n in self.sent.items() if n}
        assert split(data) == expected

    async def finish(self) -> None:
        await self.reactor_is_done()
        await self.conn.send_eof()


@asynccontextmanager
async def talking(engine: Engine, kind: str, **options: Any) -> AsyncIterator[Talk]:
    async with conn_and_peer(engine, kind, **options) as (conn, peer):
        yield Talk(conn, peer)


async def test_between_two_messages(engine: Engine, kind: str) -> None:
    async with talking(engine, kind) as talk:
        for _ in range(20):
            talk.conn.send_nowait(talk.next(0, 50))
            talk.have_reactor_send(60)
            await talk.conn.send_all(talk.next(0, 70))
            await talk.reactor_is_done()
        await talk.end()


async def test_the_reactor_waits_for_a_message_that_was_begun(engine: Engine, kind: str) -> None:
    """A `send_all` of which the kernel has taken a part."""
    async with talking(engine, kind, options=SMALL) as talk:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk.conn.send_all, bytes(1_000_000))
            await wait_all_tasks_blocked()
            talk.have_reactor_send(100)
            await talk.reactor_is_done()
            assert talk.reactor.counts() == (1, 0, 0, 0)
            assert not any(await read(talk.peer, 1_000_000))
        await talk.end()


async def test_the_reactor_goes_on_once_it_was_cancelled(engine: Engine, kind: str) -> None:
    async with talking(engine, kind, options=SMALL) as talk:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk.conn.send_all, bytes(1_000_000))
            await wait_all_tasks_blocked()
            talk.have_reactor_send(100)
            await talk.reactor_is_done()
            nursery.cancel_scope.cancel()
        sent = talk.conn.statistics().bytes_sent
        assert not any(await read(talk.peer, sent))
        with trio.fail_after(PATIENCE):
            await talk.conn.flush()
        assert await read(talk.peer, HEADER.size + 100) == message(1, 1, 100)


async def test_a_task_gets_its_turn_though_others_go_on(engine: Engine, kind: str) -> None:
    """Messages from elsewhere go behind who waits, and cannot starve it."""
    async with talking(engine, kind, options=SMALL) as talk:
        talk.have_reactor_send(60_000)
        await talk.reactor_is_done()
        while not talk.conn.statistics().buffered_outbound:
            talk.have_reactor_send(60_000)
            await talk.reactor_is_done()
        before = talk.sent[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk.conn.send_all, talk.next(0, 100))
            await wait_all_tasks_blocked()
            talk.have_reactor_send(60_000)
            await talk.reactor_is_done()
            talk.conn.send_nowait(talk.next(0, 200))
            data = await read(talk.peer, (before + 1) * (HEADER.size + 60_000))
        seen = data.index(message(0, 1, 100))
        assert seen == before * (HEADER.size + 60_000)
        rest = data[:seen] + data[seen + HEADER.size + 100 :]
        data = rest + await read(talk.peer, HEADER.size + 100 + HEADER.size + 200)
        assert data.index(message(0, 2, 200)) == (before + 1) * (HEADER.size + 60_000)


async def test_behind_what_is_corked(engine: Engine, kind: str) -> None:
    async with talking(engine, kind) as talk:
        for _ in range(5):
            talk.conn.send_nowait(talk.next(0, 100))
        talk.have_reactor_send(100)
        for _ in range(5):
            talk.conn.send_nowait(talk.next(0, 100))
        await talk.end()


async def test_it_is_refused_past_its_limit(engine: Engine, kind: str) -> None:
    async with talking(engine, kind, options=SMALL) as talk:
        while True:
            talk.reactor.send(talk.next(1, 10_000), 100_000)
            await talk.reactor_is_done()
            if talk.reactor.counts()[1]:
                talk.sent[1] -= 1
                break
        assert 90_000 < talk.conn.statistics().buffered_outbound <= 100_000
        talk.conn.send_nowait(talk.next(0, 10_000))  # has a limit of its own
        await talk.end()


@pytest.mark.parametrize("end", ["send_eof", "aclose", "abort", "reset"])
async def test_nothing_is_added_behind_the_end(engine: Engine, kind: str, end: str) -> None:
    async with talking(engine, kind) as talk:
        if end == "reset":
            talk.peer.close()
            await talk.conn.wait_closed()
            with pytest.raises(trio.BrokenResourceError):
                while True:
                    await talk.conn.send_all(bytes(100_000))
        else:
            ended = getattr(talk.conn, end)()
            if ended is not None:
                await ended
        talk.reactor.send(b"too late")
        await talk.reactor_is_done()
        assert talk.reactor.counts() == (0, 0, 1, 0)
        if end in ("send_eof", "aclose"):
            assert await read_all(talk.peer) == b""


async def test_detaching_hands_over_a_socket_between_messages(engine: Engine, kind: str) -> None:
    async with talking(engine, kind, options=SMALL) as talk:
        for _ in range(10):
            talk.have_reactor_send(30_000)
            talk.conn.send_nowait(talk.next(0, 20_000))
        await talk.reactor_is_done()
        received = bytearray()

        async def read_on() -> None:
            received.extend(await read_all(talk.peer))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_on)
            with trio.fail_after(PATIENCE):
                sock, _ = await talk.conn.detach()
            talk.reactor.send(b"too late")
            await talk.reactor_is_done()
            sock.close()
        assert talk.reactor.counts() == (10, 0, 1, 0)
        assert {sender: len(found) for sender, found in split(bytes(received)).items()} == {
            0: 10,
            1: 10,
        }


# -- by chance --------------------------------------------------------------------------


SIZES = st.one_of(st.integers(1, 300), st.integers(1000, 40_000))
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["send_all", "nowait", "nowait", "reactor", "reactor", "flush", "cancel", "checkpoint"]
        ),
        SIZES,
    ),
    max_size=40,
)


async def take_step(talk: Talk, step: str, size: int) -> None:
    conn = talk.conn
    if step == "send_all":
        await conn.send_all(talk.next(0, size))
    elif step == "nowait":
        conn.send_nowait(talk.next(0, size))
    elif step == "reactor":
        talk.have_reactor_send(size)
    elif step == "flush":
        await conn.flush()
    elif step == "cancel":
        with trio.CancelScope() as scope:
            scope.cancel()
            await conn.flush()
    else:
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("reactors", [0, 1])
@pytest.mark.parametrize("kind", ["tcp", "unix"])
@given(steps=STEPS)
def test_any_steps(reactors: int, kind: str, steps: list[tuple[str, int]]) -> None:
    async def main() -> None:
        limits = Limits(outbound=4_000_000)
        async with (
            open_engine(reactors) as engine,
            talking(engine, kind, options=SMALL, limits=limits) as talk,
            trio.open_nursery() as nursery,
        ):

            async def act() -> None:
                for step, size in steps:
                    await take_step(talk, step, size)
                await talk.finish()

            nursery.start_soon(act)
            data = await read_all(talk.peer)
            expected = {sender: list(range(1, n + 1)) for sender, n in talk.sent.items() if n}
            assert split(data) == expected

    trio.run(main)


async def test_a_stress(engine: Engine, kind: str, long: bool) -> None:
    """Kernels and rings are full most of the time, and each side sends when it can: two
    tasks, of which one awaits, and the reactor. Nobody may be left waiting."""
    dice = random.Random(kind)
    rounds = 3000 if long else 60
    async with talking(engine, kind, options=SMALL, limits=Limits(outbound=100_000)) as talk:
        conn = talk.conn
        lanes = dict.fromkeys((2, 3), 0)

        def one_more(sender: int) -> bytes:
            lanes[sender] += 1
            return message(sender, lanes[sender], dice.choice([10, 500, 5000, 30_000]))

        async def await_each() -> None:
            for _ in range(rounds):
                await conn.send_all(one_more(2))
                if dice.random() < 0.1:
                    await conn.flush()

        async def never_wait() -> None:
            for _ in range(rounds):
                data = one_more(3)
                while True:
                    try:
                        conn.send_nowait(data)
                        break
                    except trio.WouldBlock:
                        await trio.sleep(0)
                if dice.random() < 0.3:
                    await trio.lowlevel.checkpoint()

        async def have_reactor_send() -> None:
            for _ in range(rounds):
                talk.have_reactor_send(dice.choice([10, 500, 5000, 30_000]))
                if talk.reactor.counts()[3] > 5 or dice.random() < 0.3:
                    await talk.reactor_is_done()

        async def send() -> None:
            tasks: list[Callable[[], Any]] = [await_each, never_wait, have_reactor_send]
            async with trio.open_nursery() as nursery:
                for task in tasks:
                    nursery.start_soon(task)
            await talk.finish()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            data = await read_all(talk.peer)
        expected = {1: rounds, 2: rounds, 3: rounds}
        assert split(data) == {key: list(range(1, n + 1)) for key, n in expected.items()}


async def test_a_clogged_connection_goes_on(engine: Engine, kind: str) -> None:
    async with talking(engine, kind, options=SMALL) as talk:
        await clog(talk.conn)
        sent = talk.conn.statistics().bytes_sent
        talk.have_reactor_send(1000)
        await talk.reactor_is_done()
        talk.conn.send_nowait(talk.next(0, 1000))
        assert not any(await read(talk.peer, sent))
        with trio.fail_after(PATIENCE):
            await talk.conn.flush()
        assert split(await read(talk.peer, 2 * (HEADER.size + 1000))) == {1: [1], 0: [1]}
