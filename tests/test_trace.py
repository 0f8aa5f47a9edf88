"""Traces: by virtual time exactly, by real time in order, and free when off."""

from __future__ import annotations

import gc
import json
import socket
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from event_servers import served_frames
from helpers import conn_and_peer, dial, echo, read, send, until
from trio.testing import MockClock, wait_all_tasks_blocked

import trio_wknet
from trio_wknet import (
    Conn,
    Engine,
    FrameChannel,
    LengthPrefixed,
    Limits,
    Trace,
    open_engine,
    open_wknet_listener,
)

STAGES = ["kernel to ring", "ring to drain", "drain to handler", "handler to socket"]


class Delay(trio.abc.Instrument):
    """Passes virtual time before each step of one task."""

    def __init__(self, clock: MockClock, seconds: float, task: trio.lowlevel.Task) -> None:
        self.clock, self.seconds, self.task = clock, seconds, task

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            self.clock.jump(self.seconds)


def messages(trace: Trace) -> list[dict[str, Any]]:
    """The stages of each message, with their seconds, and what belongs to all of it;
    that events are nested as the format wants."""
    found: list[dict[str, Any]] = []
    stack: list[dict[str, Any]] = []
    for event in trace.to_json()["traceEvents"]:
        if event["ph"] == "b":
            if not stack:
                found.append({**event["args"], "name": event["name"], "stages": {}})
            stack.append(event)
        else:
            begin = stack.pop()
            assert event["ph"] == "e"
            assert (begin["name"], begin["id"]) == (event["name"], event["id"])
            assert begin["ts"] <= event["ts"]
            if stack:
                seconds = round((event["ts"] - begin["ts"]) / 1e6, 9)
                found[-1]["stages"][event["name"]] = seconds
                assert stack[0]["ts"] <= begin["ts"]
    assert stack == []
    return found


def spent(trace: Trace) -> list[dict[str, float]]:
    """What messages spent in stages by virtual time, to the microsecond."""
    return [{k: round(v, 6) for k, v in it["stages"].items()} for it in messages(trace)]


# -- by virtual time -------------------------------------------------------------------


@asynccontextmanager
async def virtual_pair() -> AsyncIterator[tuple[Conn, Any]]:
    """A connection and its peer, in a run with a mock clock. A unix socket has what is
    sent to it at once."""
    async with open_engine() as engine, conn_and_peer(engine, "unix") as pair:
        yield pair


async def test_an_answer(mock_clock: MockClock, nursery: trio.Nursery) -> None:
    async def serve(conn: Conn) -> None:
        trio.lowlevel.add_instrument(Delay(mock_clock, 2.0, trio.lowlevel.current_task()))
        async for data in conn:
            mock_clock.jump(3.0)
            await conn.send_all(data)

    async with virtual_pair() as (conn, peer):
        nursery.start_soon(serve, conn)
        await wait_all_tasks_blocked()
        with Trace() as trace:
            await send(peer, b"hello")
            await wait_all_tasks_blocked()
        assert spent(trace) == [
            {"ring to drain": 0.0, "drain to handler": 2.0, "handler to socket": 3.0}
        ]
        (message,) = messages(trace)
        assert (message["bytes"], message["answered"]) == (5, True)
        assert message["name"] == f"connection {conn.id}"
        nursery.cancel_scope.cancel()


async def test_an_answer_in_a_later_step(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    async def serve(conn: Conn) -> None:
        async for data in conn:
            await trio.sleep(5.0)
            await conn.send_all(data)

    async with virtual_pair() as (conn, peer):
        with Trace() as trace:
            nursery.start_soon(serve, conn)
            await wait_all_tasks_blocked()
            await send(peer, b"hello")
            await trio.sleep(6.0)
        assert spent(trace) == [
            {"ring to drain": 0.0, "drain to handler": 0.0, "handler to socket": 5.0}
        ]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("how", ["waits again", "ends", "closes"])
async def test_no_answer(mock_clock: MockClock, nursery: trio.Nursery, how: str) -> None:
    async def serve(conn: Conn) -> None:
        await conn.send_all(b"welcome")  # before the message, and so no answer to it
        await conn.receive_some()
        mock_clock.jump(4.0)
        if how == "waits again":
            await conn.receive_some()
        elif how == "closes":
            conn.close_nowait()
            await trio.lowlevel.checkpoint()

    async with virtual_pair() as (conn, peer):
        with Trace() as trace:
            nursery.start_soon(serve, conn)
            await wait_all_tasks_blocked()
            await send(peer, b"hello")
            await wait_all_tasks_blocked()
        (message,) = messages(trace)
        assert not message["answered"]
        assert spent(trace) == [{"ring to drain": 0.0, "drain to handler": 0.0, "handler": 4.0}]
        nursery.cancel_scope.cancel()


async def test_a_message_that_nobody_waits_for(
    mock_clock: MockClock, nursery: trio.Nursery
) -> None:
    async with virtual_pair() as (conn, peer):
        with Trace() as trace:
            await send(peer, b"hello")
            await wait_all_tasks_blocked()
            assert await conn.receive_some() == b"hello"
            nursery.start_soon(echo, conn)
            await wait_all_tasks_blocked()
            peer.shutdown(socket.SHUT_WR)  # the end is no message
            await wait_all_tasks_blocked()
        assert messages(trace) == []


async def test_a_message_under_way_when_the_trace_ends(
    mock_clock: MockClock, nursery: trio.Nursery
) -> None:
    async def serve(conn: Conn) -> None:
        data = await conn.receive_some()
        await trio.sleep(1.0)
        await conn.send_all(data)

    async with virtual_pair() as (conn, peer):
        nursery.start_soon(serve, conn)
        await wait_all_tasks_blocked()
        with Trace() as trace:
            await send(peer, b"hello")
            await wait_all_tasks_blocked()
        mock_clock.jump(1.0)
        await wait_all_tasks_blocked()
        assert await read(peer, 5) == b"hello"
        assert messages(trace) == []


# -- in event mode ---------------------------------------------------------------------


@asynccontextmanager
async def served(
    folder: Path, on_data: Any, deferring: bool = False
) -> AsyncIterator[socket.socket]:
    """A peer of a connection that is in event mode, in a run with a mock clock."""
    async with (
        open_engine() as engine,
        open_wknet_listener(f"unix://{folder}/socket", engine=engine) as listener,
        trio.open_nursery() as nursery,
    ):
        if deferring:
            engine._core.send_batch.threshold = 0
        nursery.start_soon(listener.serve_events, on_data)
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(f"{folder}/socket")
            await wait_all_tasks_blocked()
            yield peer
        nursery.cancel_scope.cancel()


async def test_callbacks(mock_clock: MockClock, tmp_path: Path) -> None:
    def on_data(conn: Conn) -> None:
        mock_clock.jump(3.0)
        data = conn.receive_nowait()
        if data != b"no answer":
            conn.send_nowait(data)
        mock_clock.jump(1.0)

    async with served(tmp_path, on_data) as peer:
        with Trace() as trace:
            for data in (b"hello", b"no answer"):
                peer.send(data)
                await wait_all_tasks_blocked()
        assert spent(trace) == [
            {"ring to drain": 0.0, "drain to handler": 0.0, "handler to socket": 3.0},
            {"ring to drain": 0.0, "drain to handler": 0.0, "handler": 4.0},
        ]
        assert [it["bytes"] for it in messages(trace)] == [5, 9]


async def test_a_callback_that_closes(mock_clock: MockClock, tmp_path: Path) -> None:
    def on_data(conn: Conn) -> None:
        conn.send_nowait(conn.receive_nowait())
        conn.close_nowait()

    async with served(tmp_path, on_data) as peer:
        with Trace() as trace:
            peer.send(b"hello")
            await wait_all_tasks_blocked()
            assert peer.recv(5) == b"hello"
        (message,) = messages(trace)
        assert not message["answered"]


@pytest.mark.parametrize("closing", [False, True], ids=["open", "closing"])
@pytest.mark.parametrize("deferring", [False, True], ids=["at-once", "deferring"])
async def test_a_task_that_waits_in_event_mode(
    mock_clock: MockClock, tmp_path: Path, deferring: bool, closing: bool
) -> None:
    async def converse(conn: Conn) -> None:
        conn.receive_nowait()
        data = await conn.receive_some()
        mock_clock.jump(2.0)
        await conn.send_all(data)
        if closing:
            conn.close_nowait()

    async with served(tmp_path, converse, deferring) as peer:
        peer.send(b"one")
        await wait_all_tasks_blocked()
        with Trace() as trace:
            peer.send(b"two")
            await wait_all_tasks_blocked()
        assert spent(trace) == [
            {"ring to drain": 0.0, "drain to handler": 0.0, "handler to socket": 2.0}
        ]


# -- by real time ----------------------------------------------------------------------


async def talk(peer: Any, count: int) -> None:
    for _ in range(count):
        await wait_all_tasks_blocked()  # the handler waits
        await send(peer, b"x" * 64)
        assert await read(peer, 64) == b"x" * 64
    await wait_all_tasks_blocked()


async def test_every_stage(engine: Engine, nursery: trio.Nursery) -> None:
    async with conn_and_peer(engine) as (conn, peer):
        nursery.start_soon(echo, conn)
        for _ in range(2):  # as in the first trace, so in the next
            with Trace() as trace:
                await talk(peer, 5)
            found = messages(trace)
            assert [it["bytes"] for it in found] == [64] * 5
            assert all(it["answered"] and list(it["stages"]) == STAGES for it in found)
            await talk(peer, 1)
            assert len(messages(trace)) == 5
        nursery.cancel_scope.cancel()


async def test_a_connection_that_comes_while_there_is_a_trace(
    engine: Engine, nursery: trio.Nursery
) -> None:
    with Trace() as trace:
        async with conn_and_peer(engine) as (conn, peer):
            nursery.start_soon(echo, conn)
            await talk(peer, 3)
            nursery.cancel_scope.cancel()
    assert [list(it["stages"]) for it in messages(trace)] == [STAGES[1:], STAGES, STAGES]


async def test_the_last_messages_are_kept(engine: Engine, nursery: trio.Nursery) -> None:
    async with conn_and_peer(engine) as (conn, peer):
        nursery.start_soon(echo, conn)
        with Trace(limit=2) as few:
            for size in (1, 2, 3):
                await wait_all_tasks_blocked()
                await send(peer, bytes(size))
                await read(peer, size)
            await wait_all_tasks_blocked()
        assert [it["bytes"] for it in messages(few)] == [2, 3]
        nursery.cancel_scope.cancel()


async def test_one_trace_at_a_time(engine: Engine) -> None:
    with Trace(), pytest.raises(RuntimeError, match="traced already"), Trace():
        raise AssertionError("two traces")
    with Trace():
        pass


def test_a_whole_run(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_engine(1) as engine, trio.open_nursery() as nursery:
            async with conn_and_peer(engine) as (conn, peer):
                nursery.start_soon(echo, conn)
                await talk(peer, 3)
                nursery.cancel_scope.cancel()

    trace = Trace()
    for count in (3, 6):  # a trace may see one run after the other
        trio_wknet.run(main, instruments=[trace])
        assert len(messages(trace)) == count
    trace.save(tmp_path / "trace.json")
    saved = json.loads((tmp_path / "trace.json").read_text())
    assert saved == trace.to_json()
    assert {event["cat"] for event in saved["traceEvents"]} == {"message"}


async def test_without_a_trace_nobody_looks_on(engine: Engine) -> None:
    def hooks() -> str:
        return type(engine._bridge._hooks).__name__

    plain = hooks()
    with pytest.raises(KeyError, match="left"), Trace():
        assert hooks() == f"Traced{plain}"
        raise KeyError("left")
    assert hooks() == plain
    assert not plain.startswith("Traced")


async def test_a_trace_keeps_no_connection(engine: Engine) -> None:
    with Trace():
        async with conn_and_peer(engine) as (conn, peer), trio.open_nursery() as nursery:

            async def serve(conn: Conn) -> None:
                await conn.receive_some()

            nursery.start_soon(serve, conn)
            await wait_all_tasks_blocked()
            await send(peer, b"hello")
        gone = weakref.ref(conn)
        del conn
        gc.collect()
        assert gone() is None


@pytest.mark.parametrize(
    ("limit", "error"), [(0, ValueError), (-1, ValueError), ("1", TypeError), (True, TypeError)]
)
def test_bad_limits(limit: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"limit must be .*, not {limit!r}"):
        Trace(limit)


# -- frames ----------------------------------------------------------------------------

FRAMES = LengthPrefixed(1, max_frame=255)


def counts(trace: Trace) -> list[tuple[int, int | None, int | None, bool]]:
    return [
        (it["bytes"], it.get("frames"), it.get("frame_bytes"), it["answered"])
        for it in messages(trace)
    ]


@pytest.mark.parametrize("one_by_one", [False, True])
async def test_frames_for_a_task(engine: Engine, kind: str, one_by_one: bool) -> None:
    """What one wake delivered: with `receive` also those that were found without waiting."""

    async def answer(channel: FrameChannel) -> None:
        if one_by_one:
            async for frame in channel:
                await channel.send(frame)
        else:
            while True:
                await channel.send_many(await channel.receive_many())

    async with conn_and_peer(engine, kind) as (conn, peer):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer, conn.framed(FRAMES))
            await wait_all_tasks_blocked()
            with Trace() as trace:
                for wire in (b"\1a", b"\2bc\0\3def"):
                    await send(peer, wire)
                    assert await read(peer, len(wire)) == wire
                    await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    # `send` answers a message with its first frame.
    three = (8, 1, 2, True) if one_by_one else (8, 3, 5, True)
    assert counts(trace) == [(2, 1, 1, True), three]


async def test_frames_for_a_callback(engine: Engine) -> None:
    got: list[bytes] = []

    def on_frames(channel: FrameChannel, frames: list[bytes]) -> None:
        got.extend(frames)
        if frames == [b"close"]:
            channel.conn.close_nowait()
        else:
            channel.send_many_nowait(frames)

    large = b"\xff" + bytes(255)
    limits = Limits(inbound=200)
    async with served_frames(engine, FRAMES, on_frames, limits=limits) as listener:
        with dial(listener) as sock, Trace() as trace:
            await until(lambda: listener.statistics().handlers == 1)
            sock.setblocking(False)
            peer = trio.socket.from_stdlib_socket(sock.dup())
            for wire in (b"\1a", b"\2bc\0\3def"):
                await send(peer, wire)
                assert await read(peer, len(wire)) == wire
            await send(peer, large)
            assert await read(peer, 256) == large
            await send(peer, b"\5close")
            await until(lambda: b"close" in got)
            peer.close()
    found = [it for it in counts(trace) if it[1] != 0]
    assert found[:3] == [(2, 1, 1, True), (8, 3, 5, True), (found[2][0], 1, 255, True)]
    # The counters are gone with the connection.
    assert found[3:] == [(6, None, None, False)]
    # A part of the large one has left the buffer, or it was received past it.
    assert all(size <= 200 for size, frames, *_ in counts(trace) if frames == 0)


async def test_bytes_have_no_frames(engine: Engine) -> None:
    async with conn_and_peer(engine) as (conn, peer):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo, conn)
            await wait_all_tasks_blocked()
            with Trace() as trace:
                await send(peer, b"hello")
                assert await read(peer, 5) == b"hello"
            nursery.cancel_scope.cancel()
    assert counts(trace) == [(5, None, None, True)]
