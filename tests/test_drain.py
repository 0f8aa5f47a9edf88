"""Draining a listener that is served by `accept`: by a loop of the application's, by
`trio.serve_listeners`, and through `trio.SSLListener`, Trio's own and ours."""

from __future__ import annotations

import gc
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme
from helpers import dial, dialled, echo, installed, read, until
from trio.testing import wait_all_tasks_blocked

from trio_wknet import Conn, Engine, Listener, TLSListener

LOCAL = "tcp://127.0.0.1:0"
NAME = "server.test"
AUTHORITY = trustme.CA()
OURS = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
THEIRS = ssl.create_default_context()
AUTHORITY.issue_cert(NAME).configure_cert(OURS)
AUTHORITY.configure_trust(THEIRS)

FORMS = ["loop", "serve_listeners", "tls", "compiled tls"]
Handler = Callable[[Any], Awaitable[object]]


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def listener(engine: Engine, kind: str, tmp_path: Path) -> AsyncIterator[Listener]:
    address = LOCAL if kind == "tcp" else f"unix://{tmp_path}/socket"
    async with await engine.listen(address) as opened:
        yield opened


async def close_and_echo(stream: Any) -> None:
    async with stream:
        await echo(stream)


async def accept_in_a_loop(handler: Handler, listener: Listener) -> None:
    async with trio.open_nursery() as nursery:
        while True:
            nursery.start_soon(handler, await listener.accept())


async def serve(form: str, listener: Listener, handler: Handler) -> None:
    """Ends as `accept` says that the listener has: with ClosedResourceError alone."""
    served: Any = listener
    if "tls" in form:
        with installed() if form == "compiled tls" else nullcontext():
            served = trio.SSLListener(listener, OURS)
        assert isinstance(served, TLSListener) == (form == "compiled tls")
    with pytest.raises(Exception) as raised:  # noqa: PT011
        if form == "loop":
            await accept_in_a_loop(handler, listener)
        else:
            await trio.serve_listeners(handler, [served])
    failure: Any = raised.value
    while isinstance(getattr(failure, "exceptions", None), tuple):
        (failure,) = failure.exceptions
    assert isinstance(failure, trio.ClosedResourceError)


@asynccontextmanager
async def client(form: str, listener: Listener) -> AsyncIterator[Any]:
    sock = dial(listener)
    sock.setblocking(False)
    plain = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
    stream = trio.SSLStream(plain, THEIRS, server_hostname=NAME) if "tls" in form else plain
    async with stream:
        yield stream


async def says(stream: Any, data: bytes) -> None:
    await stream.send_all(data)
    assert await read(stream, len(data)) == data


# -- what is waited for ------------------------------------------------------------------


async def test_handlers_get_to_finish(form: str, listener: Listener) -> None:
    order: list[str] = []

    async def handler(stream: Any) -> None:
        try:
            await close_and_echo(stream)
            order.append("finished")
        except trio.Cancelled:
            order.append("cancelled")
            raise

    async def server() -> None:
        await serve(form, listener, handler)
        order.append("served")

    async def drain() -> None:
        await listener.drain()
        order.append("drained")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(server)
        async with client(form, listener) as one, client(form, listener) as other:
            await says(one, b"one")
            await says(other, b"other")
            nursery.start_soon(drain)
            await until(lambda: listener.socket.fileno() == -1)
            await wait_all_tasks_blocked()
            await says(one, b"one more")
            await says(other, b"another")
            assert order == []
    assert order[:2] == ["finished"] * 2
    assert sorted(order[2:]) == ["drained", "served"]


async def test_what_the_kernel_has_queued_is_served(form: str, listener: Listener) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, form, listener, close_and_echo)
        await wait_all_tasks_blocked()
        with dialled(listener, 5) as socks:
            # They are in the kernel's queue still, or in the listener's.
            nursery.start_soon(listener.drain)
            for n, sock in enumerate(socks):
                stream: Any = trio.SocketStream(trio.socket.from_stdlib_socket(sock.dup()))
                if "tls" in form:
                    stream = trio.SSLStream(stream, THEIRS, server_hostname=NAME)
                async with stream:
                    await says(stream, b"%d" % n)


async def test_accept_ends_with_what_it_gave(listener: Listener) -> None:
    accepting = trio.Event()

    async def accept() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()
        accepting.set()

    async with trio.open_nursery() as nursery:
        with dialled(listener, 2):
            one = await listener.accept()
            nursery.start_soon(listener.drain)
            await wait_all_tasks_blocked()
            other = await listener.accept()
            nursery.start_soon(accept)
            await until(lambda: listener.socket.fileno() == -1)
            await one.aclose()
            await wait_all_tasks_blocked()
            assert not accepting.is_set()
            await other.aclose()
    assert accepting.is_set()


@pytest.mark.parametrize("how", ["aclose", "abort", "detach", "forget"])
async def test_however_a_connection_is_closed(listener: Listener, how: str) -> None:
    async with trio.open_nursery() as nursery:
        with dialled(listener, 1):
            conn = await listener.accept()
            nursery.start_soon(listener.drain)
            await wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == 1
            if how == "aclose":
                await conn.aclose()
            elif how == "abort":
                conn.abort()
            elif how == "detach":
                (await conn.detach())[0].close()
            else:
                with pytest.warns(ResourceWarning, match="unclosed"):  # noqa: PT031
                    del conn
                    gc.collect()


async def test_a_drain_that_is_cancelled_goes_on(form: str, listener: Listener) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, form, listener, close_and_echo)
        async with client(form, listener) as stream:
            await says(stream, b"hello")
            with trio.CancelScope() as scope:
                nursery.start_soon(_cancel_when_blocked, scope)
                await listener.drain()
            assert scope.cancelled_caught
            await says(stream, b"still there")
        # serve ends by itself.


async def _cancel_when_blocked(scope: trio.CancelScope) -> None:
    await wait_all_tasks_blocked()
    scope.cancel()


async def test_closing_ends_a_drains_accept_at_once(listener: Listener) -> None:
    async with trio.open_nursery() as nursery:
        with dialled(listener, 1):
            conn = await listener.accept()
            nursery.start_soon(listener.drain)
            await wait_all_tasks_blocked()
            await listener.aclose()
            with pytest.raises(trio.ClosedResourceError):
                await listener.accept()
            assert len(nursery.child_tasks) == 1, "the drain still waits for it"
            await conn.aclose()


# -- by a handler ------------------------------------------------------------------------


async def drain_is_refused(listener: Listener) -> None:
    with pytest.raises(RuntimeError, match="would wait for itself"):
        await listener.drain()
    assert listener.socket.fileno() >= 0, "and nothing was done"


@pytest.mark.parametrize("form", ["serve", "serve_listeners", "tls"])
@pytest.mark.parametrize("where", ["handler", "child"])
async def test_a_handler_may_not_wait_for_itself(
    form: str, where: str, listener: Listener, kind: str
) -> None:
    async def handler(stream: Any) -> None:
        await read(stream, 1)
        if where == "handler":
            await drain_is_refused(listener)
        else:
            async with trio.open_nursery() as children:
                children.start_soon(drain_is_refused, listener)
        await stream.send_all(b"x")
        await stream.receive_some()
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        if form == "serve":
            nursery.start_soon(listener.serve, handler)
        else:
            nursery.start_soon(serve, form, listener, handler)
        async with client(form, listener) as stream:
            await says(stream, b"x")
            nursery.start_soon(listener.drain)


async def test_a_callback_may_not_wait_for_itself(listener: Listener) -> None:
    told: list[str] = []

    async def connected(conn: Conn) -> None:
        await drain_is_refused(listener)
        told.append("connected")

    async def data(conn: Conn) -> None:
        conn.receive_nowait()
        await drain_is_refused(listener)
        told.append("data")

    async def closed(conn: Conn, reason: str) -> None:
        await drain_is_refused(listener)
        told.append(reason)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            lambda: listener.serve_events(data, on_connect=connected, on_close=closed)
        )
        with dialled(listener, 1) as socks:
            socks[0].send(b"x")
            await until(lambda: len(told) == 2)
        await until(lambda: len(told) == 3)
        nursery.start_soon(listener.drain)
    assert told == ["connected", "data", "eof"]


async def test_a_handler_may_have_another_task_do_it(listener: Listener) -> None:
    """One that it starts outside descends from no handler, though it has its context."""
    async with trio.open_nursery() as nursery:

        async def handler(conn: Conn) -> None:
            await conn.receive_some()
            nursery.start_soon(listener.drain)
            await conn.send_all(b"x")

        nursery.start_soon(listener.serve, handler)
        async with client("serve", listener) as stream:
            await says(stream, b"x")


async def test_a_handler_may_drain_another_listener(engine: Engine, listener: Listener) -> None:
    other = await engine.listen(LOCAL)

    async def handler(conn: Conn) -> None:
        await conn.receive_some()
        await other.drain()
        await conn.send_all(b"x")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.serve, handler)
        async with client("serve", listener) as stream:
            await says(stream, b"x")
        nursery.start_soon(listener.drain)
