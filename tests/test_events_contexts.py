"""Context variables in event mode: each connection has a context of its own, as a
handler's task has, and one that sets nothing costs nothing."""

from __future__ import annotations

import contextvars
import gc
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from event_servers import LOCAL, STYLES, served_frames, styled, take
from helpers import dial, dialled, until

from trio_wknet import Conn, Engine, FixedLength, FrameChannel

var: contextvars.ContextVar[Any] = contextvars.ContextVar("var", default="nothing")


@asynccontextmanager
async def talkers(
    engine: Engine, count: int, on_data: Callable[..., Any], **callbacks: Any
) -> AsyncIterator[list[Any]]:
    """Connections, in the order in which they were accepted."""
    listener = await engine.listen(LOCAL)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(listener.serve_events, on_data, **callbacks))
        with dialled(listener, count) as socks:
            await until(lambda: listener.statistics().handlers == count)
            yield socks
        await until(lambda: listener.statistics().handlers == 0)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("style", STYLES)
async def test_what_is_set_stays_with_its_connection(engine: Engine, style: str) -> None:
    """From one callback to the next of the same connection, to its last, and to none of
    another one."""
    seen: dict[str, list[object]] = {}

    def on_data(conn: Conn) -> None:
        data = take(conn).decode()
        if data:
            seen.setdefault(data[0], []).append(var.get())
            var.set(data)
            conn.context = data[0]

    def on_close(conn: Conn, reason: str) -> None:
        seen[conn.context].append(var.get())

    callbacks = {"on_close": styled(on_close, style)}
    async with talkers(engine, 3, styled(on_data, style), **callbacks) as socks:
        for turn in range(3):
            for sock, name in zip(socks, "abc", strict=True):
                sock.send(f"{name}{turn}".encode())
                await until(lambda: len(seen.get(name, [])) == turn + 1)  # noqa: B023
    assert seen == {name: ["nothing", f"{name}0", f"{name}1", f"{name}2"] for name in "abc"}
    assert var.get() == "nothing"


@pytest.mark.parametrize("style", STYLES)
async def test_equal_is_not_the_same(engine: Engine, style: str) -> None:
    """A list that one has set is not seen by another, be it like the one before."""
    var.set([])
    seen: list[list[str]] = []

    def on_data(conn: Conn) -> None:
        if data := take(conn):
            var.set([])
            var.get().append(data.decode())
            seen.append(var.get())

    def on_close(conn: Conn, reason: str) -> None:
        seen.append(var.get())

    on_close_too = {"on_close": styled(on_close, style)}
    async with talkers(engine, 2, styled(on_data, style), **on_close_too) as socks:
        for n, sock in enumerate(socks):
            sock.send(b"ab"[n : n + 1])
            await until(lambda: len(seen) == n + 1)  # noqa: B023
    assert sorted(map(str, seen)) == ["['a']", "['a']", "['b']", "['b']"]
    assert len({id(it) for it in seen}) == 2
    assert var.get() == []


async def test_an_equal_value_that_is_another(engine: Engine) -> None:
    var.set([])
    seen: list[object] = []

    def on_data(conn: Conn) -> None:
        if data := take(conn):
            seen.append(var.get())
            if data == b"set":
                var.set([])

    async with talkers(engine, 2, on_data) as socks:
        for sock, data in ((socks[0], b"set"), (socks[1], b"look"), (socks[0], b"look")):
            sock.send(data)
            before = len(seen)
            await until(lambda: len(seen) > before)  # noqa: B023
    assert seen[0] is seen[1] is var.get()
    assert seen[2] is not seen[0]


@pytest.mark.parametrize("style", STYLES)
async def test_callbacks_see_what_serving_began_with(engine: Engine, style: str) -> None:
    seen: list[object] = []

    def note(conn: Conn, *args: object) -> None:
        seen.append(var.get())

    def on_data(conn: Conn) -> None:
        take(conn)
        note(conn)

    token = var.set("the server's")
    callbacks = {name: styled(note, style) for name in ("on_connect", "on_close")}
    async with talkers(engine, 1, styled(on_data, style), **callbacks) as [sock]:
        var.reset(token)
        sock.send(b"x")
        await until(lambda: len(seen) == 2)
    assert seen == ["the server's"] * 3


async def test_a_task_starts_from_its_connections(engine: Engine) -> None:
    """Plain callbacks and async ones, those of an earlier one and of a later one."""
    log: list[object] = []

    def on_connect(conn: Conn) -> None:
        var.set("connected")

    async def on_data(conn: Conn) -> None:
        await trio.lowlevel.checkpoint()
        if data := take(conn):
            log.append(var.get())
            if data == b"x":
                var.set("data")
            else:
                conn.close_nowait()
                var.set("last")

    async def on_close(conn: Conn, reason: str) -> None:
        await trio.lowlevel.checkpoint()
        log.append(var.get())

    async with talkers(engine, 1, on_data, on_connect=on_connect, on_close=on_close) as [sock]:
        sock.send(b"x")
        await until(lambda: log)
        sock.send(b"y")
        await until(lambda: len(log) == 3)
    assert log == ["connected", "data", "last"]


@pytest.mark.parametrize("style", ["plain", "async"])
async def test_on_error_sees_it(engine: Engine, style: str) -> None:
    log: list[object] = []

    def on_data(conn: Conn) -> None:
        if take(conn):
            var.set("set")
            raise LookupError

    def on_error(conn: Conn, exc: Exception) -> None:
        log.append(var.get())
        var.set("reported")

    def on_close(conn: Conn, reason: str) -> None:
        log.append(var.get())

    callbacks = {"on_error": on_error, "on_close": styled(on_close, style)}
    async with talkers(engine, 1, styled(on_data, style), **callbacks) as [sock]:
        sock.send(b"x")
        await until(lambda: len(log) == 2)
    assert log == ["set", "reported"]


def contexts() -> int:
    return sum(type(it) is contextvars.Context for it in gc.get_objects())


@pytest.mark.parametrize("style", ["plain", "async"])
@pytest.mark.parametrize("use", ["nothing", "what it is", "set back"])
async def test_who_sets_nothing_costs_nothing(engine: Engine, style: str, use: str) -> None:
    """No context is kept. Nor for whoever sets things back, as ``with`` blocks do."""
    calls: list[None] = []
    value = object()
    var.set(value)

    def on_data(conn: Conn) -> None:
        if not take(conn):
            return
        if use == "what it is":
            var.set(value)
        elif use == "set back":
            var.reset(var.set("other"))
        calls.append(None)

    async with talkers(engine, 20, styled(on_data, style)) as socks:
        before = contexts()
        for _ in range(2):
            for sock in socks:
                sock.send(b"x")
            done = len(calls) + len(socks)
            await until(lambda: len(calls) == done)  # noqa: B023
        await trio.testing.wait_all_tasks_blocked()
        assert contexts() <= before + 3


async def test_set_back_by_a_task(engine: Engine) -> None:
    """After that all is as in the beginning."""
    seen: list[object] = []

    async def on_data(conn: Conn) -> None:
        await trio.lowlevel.checkpoint()
        if data := take(conn):
            seen.append(var.get())
            var.set({b"1": "one", b"2": "two", b"3": "base"}[data])

    var.set("base")
    async with talkers(engine, 1, on_data) as [sock]:
        for n in b"1321":
            sock.send(bytes([n]))
            before = len(seen)
            await until(lambda: len(seen) > before)  # noqa: B023
    assert seen == ["base", "one", "base", "two"]


class Value:
    pass


@pytest.mark.parametrize("style", STYLES)
async def test_it_ends_with_the_connection(engine: Engine, style: str) -> None:
    values: list[weakref.ref[Value]] = []

    def on_data(conn: Conn) -> None:
        if take(conn):
            value = Value()
            var.set(value)
            values.append(weakref.ref(value))

    async with talkers(engine, 2, styled(on_data, style)) as socks:
        for sock in socks:
            sock.send(b"x")
        await until(lambda: len(values) == 2)
        await trio.testing.wait_all_tasks_blocked()
        gc.collect()
        assert None not in [value() for value in values]
        socks[0].close()
        await until(lambda: gc.collect() >= 0 and [value() for value in values].count(None) == 1)
    await until(lambda: gc.collect() >= 0 and [value() for value in values].count(None) == 2)


async def test_on_connect_and_the_end_of_serving(engine: Engine) -> None:
    seen: list[tuple[object, object]] = []
    listener = await engine.listen(LOCAL)

    def connect(conn: Conn) -> None:
        conn.context = conn.id
        var.set(conn.id)

    def close(conn: Conn, reason: str) -> None:
        seen.append((conn.context, var.get()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            partial(listener.serve_events, lambda conn: None, on_connect=connect, on_close=close)
        )
        with dialled(listener, 3):
            await until(lambda: listener.statistics().handlers == 3)
            nursery.cancel_scope.cancel()
    assert len(seen) == 3
    assert all(known == value for known, value in seen)


async def test_frames_have_them_too(engine: Engine) -> None:
    """What a callback sets, those of the same connection see, and what a peer did wrong is
    reported there."""
    log: list[object] = []

    def on_frames(channel: FrameChannel, frames: list[bytes]) -> None:
        log.append(var.get())
        var.set(frames[0].decode())

    def on_error(channel: FrameChannel, exc: Exception) -> None:
        log.append((var.get(), type(exc)))
        var.set("reported")

    def on_close(channel: FrameChannel, reason: str) -> None:
        log.append(var.get())

    framing = FixedLength(1)
    async with served_frames(
        engine, framing, on_frames, on_error=on_error, on_close=on_close
    ) as listener:
        with dial(listener) as one, dial(listener) as other:
            before = var.get()
            for sock, data in ((one, b"a"), (other, b"b"), (one, b"c")):
                count = len(log)
                sock.send(data)
                await until(lambda: len(log) > count)  # noqa: B023
        await until(lambda: len(log) == 5)
    assert log[:3] == [before, before, "a"]
    assert set(log[3:]) == {"c", "b"}
