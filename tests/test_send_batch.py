"""Sends that wait until the tasks of a turn have run, and are done in one go.

Most tests have every small send deferred (``SendBatch.threshold``); one shows that many tasks do.
"""

from __future__ import annotations

import os
import types
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, cast

import pytest
import trio
from helpers import SMALL, conn_and_peer, content, read, until
from test_send import reset
from trio.testing import wait_all_tasks_blocked

from trio_wknet import Conn, ConnOptions, Engine, FixedLength

AT_MOST = 128
"""Sends that are deferred before they are all done, although tasks are left to run."""
LARGE = 16_385
"""Bytes of a message that is sent at once."""

Pair = tuple[Conn, Any]
Form = Callable[[Conn, Any], Any]


def send_vectored(conn: Conn, data: Any) -> Any:
    return conn.send_vectored([data])


def send_frame(conn: Conn, data: Any) -> Any:
    """A framing whose frames are their bytes, and nothing else."""
    return conn.framed(FixedLength(len(data))).send(data)


def send_frames(conn: Conn, data: Any) -> Any:
    return conn.framed(FixedLength(len(data))).send_many([data])


@pytest.fixture(params=[Conn.send_all, send_vectored, send_frame, send_frames])
def form(request: pytest.FixtureRequest) -> Form:
    """All that wait for the kernel to own their bytes are deferred alike."""
    return cast("Form", request.param)


@pytest.fixture
def deferring(engine: Engine) -> Engine:
    """An engine to which every turn is crowded."""
    engine._core.send_batch.threshold = 0
    return engine


@asynccontextmanager
async def pairs(
    engine: Engine, count: int, options: ConnOptions | None = None
) -> AsyncIterator[list[Pair]]:
    async with AsyncExitStack() as stack:
        opened = [conn_and_peer(engine, options=options) for _ in range(count)]
        yield [await stack.enter_async_context(pair) for pair in opened]


@types.coroutine
def watched(awaitable: Any, started: Callable[[], object]) -> Generator[Any, Any, Any]:
    """Await it, and call when its first step is done."""
    steps = awaitable.__await__()
    try:
        trap = steps.send(None)
        started()
        while True:
            try:
                outcome = yield trap
            except BaseException as exception:
                trap = steps.throw(exception)
            else:
                trap = steps.send(outcome)
    except StopIteration as stop:
        return stop.value


async def send_watched(form: Form, conn: Conn, data: Any, sent_at_once: list[int]) -> None:
    before = conn.statistics().bytes_sent

    def note() -> None:
        sent_at_once.append(conn.statistics().bytes_sent - before)

    await watched(form(conn, data), note)


async def test_it_is_sent_when_the_tasks_have_run(deferring: Engine, form: Form) -> None:
    async with pairs(deferring, 20) as crowd:
        at_once: list[int] = []
        async with trio.open_nursery() as nursery:
            for n, (conn, _) in enumerate(crowd):
                nursery.start_soon(send_watched, form, conn, b"%03d" % n, at_once)
        assert at_once == [0] * 20
        for n, (conn, peer) in enumerate(crowd):
            assert conn.statistics().bytes_sent == 3
            assert await read(peer, 3) == b"%03d" % n


async def test_send_all_returns_once_the_kernel_owns_the_bytes(deferring: Engine) -> None:
    async with conn_and_peer(deferring) as (conn, peer):
        await conn.send_all(b"bye")
        conn._drop()
        assert await read(peer, 3) == b"bye"


async def test_few_tasks_and_large_messages_are_sent_at_once(engine: Engine, form: Form) -> None:
    async with conn_and_peer(engine) as (conn, _):
        at_once: list[int] = []
        await send_watched(form, conn, b"alone", at_once)
        engine._core.send_batch.threshold = 0
        await send_watched(form, conn, bytes(LARGE), at_once)
        assert at_once == [5, LARGE]


async def test_a_crowd_defers(engine: Engine, reactors: int) -> None:
    """By the default: tasks that are woken in one turn."""
    at_once: list[int] = []

    async def answer(conn: Conn) -> None:
        assert await conn.receive_some() == b"?!"
        await send_watched(Conn.send_all, conn, b"yes", at_once)

    async with pairs(engine, 60) as crowd, trio.open_nursery() as nursery:
        for conn, _ in crowd:
            nursery.start_soon(answer, conn)
        await wait_all_tasks_blocked()
        # Trio does not get to look meanwhile. Once the second bytes are stored, what told
        # of the first ones was handed over.
        for size, byte in enumerate((b"?", b"!"), 1):
            for _, peer in crowd:
                os.write(peer.fileno(), byte)
            for conn, _ in crowd:
                while reactors and conn.statistics().bytes_received < size:
                    pass
    assert at_once.count(0) == 60


async def test_more_than_are_deferred_at_most(deferring: Engine) -> None:
    count = 2 * AT_MOST + 10
    async with pairs(deferring, count) as crowd, trio.open_nursery() as nursery:
        started: list[Conn] = []
        sent: list[Conn] = []

        async def send(conn: Conn) -> None:
            def look() -> None:
                started.append(conn)
                if len(started) == count:
                    sent.extend(it for it in started if it.statistics().bytes_sent)

            await watched(conn.send_all(b"abc"), look)

        for conn, _ in crowd:
            nursery.start_soon(send, conn)
        for _, peer in crowd:
            assert await read(peer, 3) == b"abc"
    assert sent == started[: 2 * AT_MOST], "sent before the last task has run"


async def test_cancelled_before_it_is_sent(deferring: Engine, form: Form) -> None:
    """Then nothing is: the stream can be gone on with. The first of a turn is sent: it
    is at a schedule point that is no cancellation point any more."""
    async with pairs(deferring, 20) as crowd:
        sent: list[Conn] = []
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                started: list[int] = []

                def one_more() -> None:
                    started.append(1)
                    if len(started) == 10:
                        scope.cancel()

                async def send(conn: Conn) -> None:
                    await watched(form(conn, b"abc"), one_more)
                    sent.append(conn)

                for conn, _ in crowd:
                    nursery.start_soon(send, conn)
        assert scope.cancelled_caught
        assert len(sent) == 1
        for conn, peer in crowd:
            assert conn.statistics().bytes_sent == 3 * (conn in sent)
            await conn.send_all(b"def")
            expected = b"abcdef" if conn in sent else b"def"
            assert await read(peer, len(expected)) == expected


async def test_closed_before_it_is_sent(deferring: Engine, form: Form) -> None:
    async with pairs(deferring, 4) as crowd:
        async with trio.open_nursery() as nursery:

            async def send(conn: Conn) -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await watched(form(conn, b"abc"), conn.close_nowait)

            for conn, _ in crowd:
                nursery.start_soon(send, conn)
        for conn, peer in crowd:
            assert conn.statistics().bytes_sent == 0
            assert await peer.recv(10) == b""


async def test_closed_between_being_sent_and_the_next_step(deferring: Engine, form: Form) -> None:
    """What the kernel owns was sent, whatever becomes of the connection then."""
    count = AT_MOST + 1
    async with pairs(deferring, count) as crowd, trio.open_nursery() as nursery:
        started: list[Conn] = []

        def close_those_sent() -> None:
            for conn in started:
                if conn.statistics().bytes_sent:
                    conn.close_nowait()

        async def send(conn: Conn) -> None:
            def look() -> None:
                started.append(conn)
                if len(started) == count:
                    close_those_sent()

            await watched(form(conn, b"abc"), look)

        for conn, _ in crowd:
            nursery.start_soon(send, conn)
        for _, peer in crowd:
            assert await read(peer, 3) == b"abc"
    assert sum(conn.close_reason == "closed" for conn, _ in crowd) == AT_MOST


async def test_a_broken_connection_is_told_to_its_sender(deferring: Engine, form: Form) -> None:
    async with pairs(deferring, 4) as crowd:
        async with trio.open_nursery() as nursery:

            async def send(conn: Conn, peer: Any) -> None:
                with pytest.raises(trio.BrokenResourceError) as caught:
                    await watched(form(conn, b"abc"), partial(reset, peer))
                assert isinstance(caught.value.__cause__, OSError)
                with pytest.raises(trio.BrokenResourceError):
                    await conn.send_all(b"abc")

            for conn, peer in crowd:
                nursery.start_soon(send, conn, peer)


async def test_a_full_kernel(deferring: Engine, form: Form) -> None:
    """What it does not take is waited for; the order is kept."""
    async with pairs(deferring, 4, SMALL) as crowd:
        data = content("full", LARGE - 1)
        async with trio.open_nursery() as nursery:

            async def send(conn: Conn) -> None:
                for _ in range(20):
                    await form(conn, data)

            for conn, _ in crowd:
                nursery.start_soon(send, conn)
            await until(lambda: all(conn.statistics().bytes_sent for conn, _ in crowd))
            for _, peer in crowd:
                assert await read(peer, 20 * len(data)) == 20 * data


async def test_behind_what_send_nowait_left(deferring: Engine, form: Form) -> None:
    async with conn_and_peer(deferring, options=SMALL) as (conn, peer):
        data = content("left", 400_000)
        conn.send_nowait(data)
        assert conn.statistics().buffered_outbound
        async with trio.open_nursery() as nursery:
            nursery.start_soon(form, conn, b"behind")
            assert await read(peer, len(data) + 6) == data + b"behind"


async def test_the_data_is_held_until_it_is_sent(deferring: Engine, form: Form) -> None:
    async with conn_and_peer(deferring) as (conn, peer):
        data = bytearray(b"abc")

        def change() -> None:
            with pytest.raises(BufferError):
                data.append(0)

        await watched(form(conn, data), change)
        data.append(0)
        assert await read(peer, 3) == b"abc"


async def test_the_first_is_thrown_away(deferring: Engine) -> None:
    """It was to keep Trio awake for the others; somebody else does then."""
    async with pairs(deferring, 2) as ((one, _), (other, peer)):
        lost = one.send_all(b"lost")
        lost.send(None)
        lost.close()
        await other.send_all(b"abc")
        assert await read(peer, 3) == b"abc"
        assert one.statistics().bytes_sent == 0


async def test_on_a_connection_that_never_was() -> None:
    with pytest.raises(trio.ClosedResourceError):
        await Conn.__new__(Conn).send_all(b"abc")


async def test_a_send_nowait_goes_behind(deferring: Engine) -> None:
    """It does not overtake, nor wait for the turn's end."""
    async with pairs(deferring, 3) as crowd:
        async with trio.open_nursery() as nursery:

            async def send(conn: Conn) -> None:
                def send_another() -> None:
                    conn.send_nowait(b"def")
                    assert conn.statistics().bytes_sent == 6

                await watched(conn.send_all(b"abc"), send_another)

            for conn, _ in crowd:
                nursery.start_soon(send, conn)
        for conn, peer in crowd:
            assert await read(peer, 6) == b"abcdef"
            assert conn.statistics().bytes_sent == 6


async def test_a_frame_of_send_nowait_goes_behind(deferring: Engine) -> None:
    async with pairs(deferring, 3) as crowd:
        async with trio.open_nursery() as nursery:

            async def send(conn: Conn) -> None:
                channel = conn.framed(FixedLength(3))

                def send_another() -> None:
                    channel.send_nowait(b"def")
                    assert conn.statistics().bytes_sent == 6

                await watched(channel.send(b"abc"), send_another)
                assert channel.statistics().frames_sent == 2

            for conn, _ in crowd:
                nursery.start_soon(send, conn)
        for _, peer in crowd:
            assert await read(peer, 6) == b"abcdef"


async def test_frames_are_counted_once(deferring: Engine) -> None:
    """Those of a send that was cancelled before it was done are not."""
    async with pairs(deferring, 2) as ((first, _), (conn, peer)):
        channel = conn.framed(FixedLength(2))
        awake = first.send_all(b"the first of a turn cannot be cancelled")
        awake.send(None)
        with trio.CancelScope() as scope:
            await watched(channel.send_many([b"no", b"no"]), scope.cancel)
        awake.close()
        assert scope.cancelled_caught
        assert channel.statistics().frames_sent == 0
        await channel.send_many([b"ab", b"cd"])
        assert channel.statistics().frames_sent == 2
        assert conn.statistics().bytes_sent == 4
        assert await read(peer, 4) == b"abcd"
