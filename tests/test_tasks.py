"""`Engine.tasks`: which task is behind a connection, and what it waits for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from helpers import SMALL, dial, dialled, two_conns, until, url
from tls_helpers import NAME, client_context, server_context

from trio_wknet import Conn, ConnTask, Delimited, Engine, FrameChannel, TLSStream, open_engine

LOCAL = "tcp://127.0.0.1:0"


def names(entry: ConnTask) -> list[str]:
    """The functions that it is in."""
    return [frame.name for frame in entry.stack()]


async def seen(engine: Engine, *waits_for: str, inside: str = "") -> list[ConnTask]:
    """Once the connections' tasks wait for this, in this function. A task that has yet to begin
    waits for something else, too."""

    def there() -> bool:
        found = engine.tasks()
        wait = sorted(one.waits_for for one in found) == sorted(waits_for)
        return wait and all(not inside or inside in names(one) for one in found)

    await until(there)
    return engine.tasks()


async def receives(conn: Conn) -> None:
    await conn.receive_some()


async def fills(conn: Conn) -> None:
    await conn.send_all(bytes(1 << 24))


async def sleeps(conn: Conn) -> None:
    await trio.sleep_forever()


@pytest.mark.parametrize(
    ("handler", "what", "inside"),
    [(receives, "receive", "receives"), (fills, "send", "fills"), (sleeps, "other", None)],
)  # fmt: skip
async def test_a_handler(
    engine: Engine, kind: str, tmp_path: Any, handler: Any, what: str, inside: str | None
) -> None:
    address = LOCAL if kind == "tcp" else f"unix://{tmp_path}/socket"
    async with trio.open_nursery() as nursery:
        listener = await nursery.start(
            (await engine.listen(address, options=SMALL)).serve, handler
        )  # fmt: skip
        assert engine.tasks() == []
        with dialled(listener, 2):
            found = await seen(engine, what, what, inside=handler.__name__)
            for one in found:
                assert one.name == one.task.name
                assert handler.__name__ in one.name
                assert one.conn in engine.connections.values()
                assert 0 <= one.since < 30
                assert handler.__name__ in names(one)
                assert inside is None or names(one)[-1] == inside
            ids = [one.conn.id or 0 for one in found]
            assert ids == sorted(ids)
            nursery.cancel_scope.cancel()
            await trio.sleep(0)
    assert engine.tasks() == []
    assert found[0].stack() == []


async def test_a_handler_of_trios(engine: Engine) -> None:
    async with trio.open_nursery() as nursery:
        listener = await engine.listen(LOCAL)
        nursery.start_soon(trio.serve_listeners, receives, [listener])
        with dialled(listener, 1):
            (one,) = await seen(engine, "receive")
            assert "receives" in names(one)
            nursery.cancel_scope.cancel()


async def test_a_handler_over_tls(engine: Engine) -> None:
    async def handler(stream: TLSStream) -> None:
        await stream.receive_some()

    async with trio.open_nursery() as nursery:
        listener = await engine.listen("tls://127.0.0.1:0", tls=server_context())
        nursery.start_soon(listener.serve, handler)
        address = url(listener).replace("tcp:", "tls:")
        stream = await engine.connect(address, tls=client_context(), server_hostname=NAME)
        # At first it may receive for the handshake.
        await seen(engine, "receive", inside="handler")
        stream.abort()
        nursery.cancel_scope.cancel()


async def test_a_task_that_is_no_handler(engine: Engine) -> None:
    async with two_conns(engine) as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(receives, client)
        nursery.start_soon(receives, server, name="the server's")
        found = await seen(engine, "receive", "receive")
        assert {one.conn for one in found} == {client, server}
        assert [one.name for one in found if one.conn is server] == ["the server's"]
        nursery.cancel_scope.cancel()


async def test_a_handlers_own_tasks(engine: Engine) -> None:
    """One receives, one sends, and the handler waits for them."""

    async def handler(conn: Conn) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receives, conn)
            nursery.start_soon(fills, conn)

    async with trio.open_nursery() as nursery:
        listener = await engine.listen(LOCAL, options=SMALL)
        nursery.start_soon(listener.serve, handler)
        with dialled(listener, 1):
            found = await seen(engine, "receive", "send", "other")
            assert len({one.conn for one in found}) == 1
            nursery.cancel_scope.cancel()


async def test_a_handler_that_asks(engine: Engine) -> None:
    found: list[ConnTask] = []
    stacks: list[list[str]] = []

    async def handler(conn: Conn) -> None:
        found.extend(engine.tasks())
        stacks.extend(names(one) for one in found)

    async with trio.open_nursery() as nursery:
        listener = await engine.listen(LOCAL)
        nursery.start_soon(listener.serve, handler)
        with dialled(listener, 1):
            await until(lambda: stacks)
        assert [one.waits_for for one in found] == ["nothing"]
        assert "handler" in stacks[0]
        assert "tasks_of" not in stacks[0]
        nursery.cancel_scope.cancel()


async def test_a_handler_that_accepts(engine: Engine) -> None:
    async with await engine.listen(LOCAL) as another:

        async def handler(conn: Conn) -> None:
            await another.accept()

        async with trio.open_nursery() as nursery:
            listener = await engine.listen(LOCAL)
            nursery.start_soon(listener.serve, handler)
            with dialled(listener, 1):
                (one,) = await seen(engine, "accept")
                assert names(one)[-1] == "handler"
                nursery.cancel_scope.cancel()


async def test_an_async_generator(engine: Engine) -> None:
    """What it awaits is found, too."""

    async def lines(conn: Conn) -> AsyncIterator[bytes]:
        while True:
            yield await conn.receive_some()

    async def handler(conn: Conn) -> None:
        async for _ in lines(conn):
            pass

    async with trio.open_nursery() as nursery:
        listener = await engine.listen(LOCAL)
        nursery.start_soon(listener.serve, handler)
        with dialled(listener, 1):
            (one,) = await seen(engine, "receive")
            assert names(one)[-2:] == ["handler", "lines"]
            nursery.cancel_scope.cancel()


async def test_events(engine: Engine) -> None:
    """A quiet connection has no task; an async callback is one."""

    async def on_data(conn: Conn) -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        listener = await nursery.start((await engine.listen(LOCAL)).serve_events, on_data)
        with dialled(listener, 2) as (_, talks):
            await until(lambda: len(engine.connections) == 2)
            assert engine.tasks() == []
            talks.sendall(b"x")
            await seen(engine, "other", inside="on_data")
            nursery.cancel_scope.cancel()


async def test_frames(engine: Engine) -> None:
    async def on_frames(channel: FrameChannel, frames: list[bytes]) -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        listener = await nursery.start(
            (await engine.listen(LOCAL)).serve_frames, Delimited(b"\n", max_frame=9), on_frames
        )
        with dialled(listener, 1) as (talks,):
            talks.sendall(b"x\n")
            await seen(engine, "other", inside="on_frames")
            nursery.cancel_scope.cancel()


async def test_another_engines(engine: Engine, reactors: int) -> None:
    async with open_engine(reactors) as another, await another.listen(LOCAL) as listener:
        peer = dial(listener)
        conn = await listener.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receives, conn)
            (one,) = await seen(another, "receive")
            assert one.conn is conn
            assert engine.tasks() == []
            nursery.cancel_scope.cancel()
        peer.close()
    with pytest.raises(RuntimeError, match="closed"):
        another.tasks()
