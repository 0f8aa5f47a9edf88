"""Serving: handlers, their exceptions, draining, and the listener as a context."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import trio
from helpers import content, dialled, echo, is_served, read, read_all, tcp_address, until, url
from trio.testing import wait_all_tasks_blocked

from trio_wknet import Conn, Engine, Limits, open_wknet_listener

LOCAL = "tcp://127.0.0.1:0"


# -- serve ---------------------------------------------------------------------------------------


async def test_serve_echoes(engine: Engine, kind: str, tmp_path: Path) -> None:
    address = LOCAL if kind == "tcp" else f"unix://{tmp_path}/socket"
    async with await engine.listen(address) as listener, trio.open_nursery() as nursery:
        assert await nursery.start(listener.serve, echo) is listener
        async with trio.open_nursery() as clients:
            for n in range(50):
                clients.start_soon(is_served, engine, listener, content(n, n * 1000))
        await until(lambda: listener.statistics().handlers == 0)
        nursery.cancel_scope.cancel()


async def test_serve_closes_gracefully_after_the_handler(engine: Engine) -> None:
    async def respond(conn: Conn) -> None:
        conn.send_nowait(b"x" * 1_000_000)

    async with await engine.listen(LOCAL) as listener, trio.open_nursery() as nursery:
        nursery.start_soon(listener.serve, respond)
        conn = await engine.connect(url(listener))
        await conn.send_all(b"unread")
        assert await read_all(conn) == b"x" * 1_000_000
        await conn.aclose()
        nursery.cancel_scope.cancel()


async def test_a_handlers_exception_ends_serve_and_the_others(engine: Engine) -> None:
    """As in trio.serve_listeners."""
    listener = await engine.listen(LOCAL)
    ended = []

    async def handler(conn: Conn) -> None:
        try:
            if await conn.receive_some(1) == b"!":
                raise KeyError("handler")
            await trio.sleep_forever()
        finally:
            ended.append(conn)

    with dialled(listener, 3) as socks:
        with pytest.raises(Exception) as raised:  # noqa: PT011
            async with trio.open_nursery() as nursery:
                await nursery.start(listener.serve, handler)
                await until(lambda: listener.statistics().handlers == 3)
                socks[1].send(b"!")
        assert raised.group_contains(KeyError, match="handler")
        assert len(ended) == 3
        assert {conn.close_reason for conn in ended} <= {"closed", "eof"}
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()


async def test_a_handler_nursery_deals_with_exceptions(engine: Engine) -> None:
    listener = await engine.listen(LOCAL)
    seen: list[str] = []

    class Tolerant:
        def __init__(self, nursery: trio.Nursery) -> None:
            self.nursery = nursery

        def start_soon(self, function: Any, *args: Any, name: Any = None) -> None:
            async def run() -> None:
                try:
                    await function(*args)
                except KeyError:
                    seen.append("caught")

            self.nursery.start_soon(run, name=name)

    async def handler(conn: Conn) -> None:
        await conn.receive_some()
        raise KeyError

    async with trio.open_nursery() as nursery, trio.open_nursery() as handlers:
        tolerant: Any = Tolerant(handlers)
        server = trio.CancelScope()

        async def serve(task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
            with server:
                await listener.serve(handler, handler_nursery=tolerant, task_status=task_status)

        await nursery.start(serve)
        with dialled(listener, 3) as socks:
            await until(lambda: listener.statistics().handlers == 3)
            socks[0].send(b"x")
            await until(lambda: seen)
            server.cancel()
            await until(lambda: listener.socket.fileno() == -1)
            assert listener.statistics().handlers == 2, "they live on in their nursery"
            for sock in socks[1:]:
                sock.send(b"x")
            await until(lambda: len(seen) == 3)
    assert listener.statistics().handlers == 0


async def test_cancelling_serve_closes_all(engine: Engine) -> None:
    listener = await engine.listen(LOCAL)
    with dialled(listener, 5) as socks:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.serve, echo)
            await until(lambda: listener.statistics().handlers == 5)
            nursery.cancel_scope.cancel()
        for sock in socks:
            sock.settimeout(10)
            assert sock.recv(1) == b""
    await until(lambda: engine.statistics().connections == 0)


async def test_trio_serves_it(engine: Engine) -> None:
    listener = await engine.listen(LOCAL)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, echo, [listener])
        await is_served(engine, listener)
        nursery.cancel_scope.cancel()


# -- drain -----------------------------------------------------------------------------------------


async def test_drain_handles_what_the_kernel_had_queued(engine: Engine) -> None:
    """Pitfall 14: granian #567, pingora #427 reset queued connections."""
    go = trio.Event()

    async def handler(conn: Conn) -> None:
        await go.wait()
        await echo(conn)

    limits = Limits(accept_queue=2)
    listener = await engine.listen(LOCAL, reuse_port=True, limits=limits)
    drained = []

    async def drain() -> None:
        await listener.drain()
        drained.append(listener.statistics().handlers)

    def refuses() -> bool:
        try:
            socket.create_connection(tcp_address(listener)).close()
        except ConnectionRefusedError:
            return True
        return False

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.serve, handler)
        await wait_all_tasks_blocked()
        with dialled(listener, 30) as socks:
            nursery.start_soon(drain)
            await until(lambda: listener.statistics().handlers >= 30)
            await until(refuses)
            assert not drained
            go.set()
            for n, sock in enumerate(socks):
                sock.settimeout(10)
                sock.send(b"%d" % n)
                sock.shutdown(socket.SHUT_WR)
            # Both return by themselves.
            await until(lambda: drained)
            for n, sock in enumerate(socks):
                assert sock.recv(100) == b"%d" % n
    assert drained == [0]


async def test_drain_without_serve_closes(engine: Engine) -> None:
    listener = await engine.listen(LOCAL)
    await listener.drain()
    await listener.drain()
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()


# -- open_wknet_listener ---------------------------------------------------------------------------


async def test_open_wknet_listener(nothing_left: None, reactors: int) -> None:
    with trio.fail_after(30):
        async with open_wknet_listener(LOCAL, reactors=reactors) as listener:
            with dialled(listener, 1):
                conn = await listener.accept()
                await conn.send_all(b"x")
                conn.abort()
        with pytest.raises(KeyError):
            async with open_wknet_listener(LOCAL, reactors=reactors):
                raise KeyError


async def test_open_wknet_listener_on_an_engine(engine: Engine) -> None:
    async with open_wknet_listener(LOCAL, engine=engine) as listener:
        with dialled(listener, 1) as socks:
            conn = await listener.accept()
            async with open_wknet_listener(LOCAL, engine=engine):
                pass
            socks[0].send(b"x")
            assert await read(conn, 1) == b"x"
            conn.abort()
    with pytest.raises(ValueError, match="reactors"):
        async with open_wknet_listener(LOCAL, engine=engine, reactors=1):
            pass
    with pytest.raises(TypeError, match="engine"):
        async with open_wknet_listener(LOCAL, engine="x"):  # type: ignore[call-overload]
            pass
