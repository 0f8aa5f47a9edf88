"""Without memory: whatever closes closes, whoever waits is told, nothing is lost or hangs.

Python's allocator is made to fail once, in each test at the first request, the second, and
so on: where `_testcapi` can do that, which comes with CPython's own tests; and up to 3.11,
as later interpreters (3.12.1 and 3.13.0 were tried) crash by themselves where a request fails
in Python code: so does `trio.open_tcp_listeners` on Trio's own transport there.
"""

from __future__ import annotations

import socket
import sys
import types
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import pytest
import trio
from helpers import PATIENCE, dial, plain_pair, until
from trio.testing import wait_all_tasks_blocked

from trio_wknet import Conn, Engine, FrameChannel, LengthPrefixed, Limits, Listener

_testcapi = pytest.importorskip("_testcapi", reason="this interpreter comes without its tests")
pytestmark = [
    pytest.mark.usefixtures("unraisable"),
    pytest.mark.skipif(
        sys.version_info >= (3, 12), reason="the interpreter itself crashes without memory"
    ),
]

REQUESTS = 40  # more than any of this makes
LOCAL = "tcp://127.0.0.1:0"
# The second is what some of CPython's own C makes of the first.
STARVED = (MemoryError, SystemError)


@contextmanager
def failing(request: int) -> Iterator[None]:
    """Have one request for memory fail: the first is 1."""
    _testcapi.set_nomemory(request, request + 1)
    try:
        yield
    finally:
        _testcapi.remove_mem_hooks()


@types.coroutine
def starved(call: Any, request: int) -> Generator[Any, Any, Any]:
    """Await, with one request of each step failing."""
    step, value = call.send, None
    while True:
        try:
            with failing(request):
                trap = step(value)
        except StopIteration as stop:
            return stop.value
        try:
            value = yield trap
            step = call.send
        except BaseException as exc:
            step, value = call.throw, exc


class FailingDrains(trio.abc.Instrument):
    """In place of an engine's hooks: one request fails in every other drain, unless it
    is 0."""

    def __init__(self, engine: Engine) -> None:
        self.request = 0
        self._fails = False
        self._hooks = engine._bridge._hooks

    def __enter__(self) -> FailingDrains:
        trio.lowlevel.remove_instrument(self._hooks)
        trio.lowlevel.add_instrument(self)
        return self

    def __exit__(self, *_: object) -> None:
        trio.lowlevel.remove_instrument(self)
        trio.lowlevel.add_instrument(self._hooks)

    def before_io_wait(self, timeout: float) -> None:
        self._hooks.before_io_wait(timeout)

    def after_io_wait(self, timeout: float) -> None:
        self._fails = not self._fails and self.request > 0
        with suppress(*STARVED), failing(self.request) if self._fails else nullcontext():
            self._hooks.after_io_wait(timeout)


def kinds(exc: BaseException) -> list[type[BaseException]]:
    """What an exception is, or those of a group are."""
    return [kind for it in getattr(exc, "exceptions", ()) for kind in kinds(it)] or [type(exc)]


def plain(call: Callable[[], object]) -> Callable[[], Awaitable[None]]:
    async def called() -> None:
        call()

    return called


# -- connections -----------------------------------------------------------------------------

Way = Callable[[Engine, Conn], Callable[[], Awaitable[object]]]
WAYS: dict[str, Way] = {
    "abort": lambda _, conn: plain(conn.abort),
    "close_nowait": lambda _, conn: plain(conn.close_nowait),
    "drop": lambda _, conn: plain(conn._drop),
    "socket": lambda _, conn: plain(conn.socket.close),
    "aclose": lambda _, conn: conn.aclose,
    "engine": lambda engine, _: plain(engine._core.let_go_of_all),
}


class Waiters:
    """Everybody who can wait on a connection."""

    def __init__(self, conn: Conn, nursery: trio.Nursery) -> None:
        self.told: set[str] = set()
        for name in ("receive", "send", "closed", "disconnect"):
            nursery.start_soon(getattr(self, name), conn)

    async def receive(self, conn: Conn) -> None:
        with suppress(trio.ClosedResourceError):
            await conn.receive_some()
        self.told.add("receive")

    async def send(self, conn: Conn) -> None:
        with suppress(trio.ClosedResourceError):
            await conn.send_all(bytes(10_000_000))
        self.told.add("send")

    async def closed(self, conn: Conn) -> None:
        await conn.wait_closed()
        self.told.add("closed")

    async def disconnect(self, conn: Conn) -> None:
        with conn.cancel_on_disconnect():
            await trio.sleep_forever()
        self.told.add("disconnect")


def reads_to_the_end(peer: socket.socket) -> bool:
    peer.settimeout(PATIENCE)
    with peer, suppress(ConnectionResetError):
        while peer.recv(1 << 20):
            pass
    return True


@pytest.mark.parametrize("way", WAYS)
async def test_closing_a_connection(engine: Engine, way: str) -> None:
    for request in range(1, REQUESTS):
        ours, theirs = plain_pair("unix")
        async with trio.open_nursery() as nursery:
            conn = engine.adopt(ours, limits=Limits(linger_time=0.01))
            assert isinstance(conn, Conn)
            waiters = Waiters(conn, nursery)
            await wait_all_tasks_blocked()
            try:
                await starved(WAYS[way](engine, conn)(), request)
            except STARVED:
                # Python itself had none, to call or to return.
                conn.close_nowait()
        assert waiters.told == {"receive", "send", "closed", "disconnect"}
        assert conn.close_reason is not None
        assert conn.statistics().bytes_sent > 0
        assert await trio.to_thread.run_sync(reads_to_the_end, theirs)
    await until(lambda: engine.statistics().connections == 0)


async def test_closing_on_a_drain(engine: Engine) -> None:
    """What reactors tell is delivered, at the latest by the next drain."""
    with FailingDrains(engine) as drains:
        for request in range(1, REQUESTS):
            ours, theirs = plain_pair("unix")
            conn = engine.adopt(ours)
            assert isinstance(conn, Conn)
            async with trio.open_nursery() as nursery:
                waiters = Waiters(conn, nursery)
                await wait_all_tasks_blocked()
                drains.request = request
                theirs.shutdown(socket.SHUT_WR)
                await until(lambda: {"receive", "closed", "disconnect"} <= waiters.told)  # noqa: B023
                drains.request = 0
                conn.abort()
            theirs.close()


async def test_an_idle_scope(engine: Engine) -> None:
    """What is due is cancelled, at the latest a moment later."""
    with FailingDrains(engine) as drains:
        for request in range(1, REQUESTS):
            ours, theirs = plain_pair("unix")
            conn = engine.adopt(ours)
            assert isinstance(conn, Conn)
            with trio.fail_after(PATIENCE), conn.idle_scope(0.001) as scope:
                drains.request = request
                await trio.sleep_forever()
            drains.request = 0
            assert scope.cancelled_caught
            conn.abort()
            theirs.close()


# -- listeners -------------------------------------------------------------------------------


LISTENER_WAYS: dict[str, Callable[[Engine, Listener], Callable[[], Awaitable[object]]]] = {
    "aclose": lambda _, listener: listener.aclose,
    "drain": lambda _, listener: listener.drain,
    "socket": lambda _, listener: plain(listener.socket.close),
    "engine": lambda engine, _: plain(engine._core.let_go_of_all),
}


@pytest.mark.parametrize("way", LISTENER_WAYS)
@pytest.mark.parametrize("trusted", [None, ["127.0.0.1"]], ids=["plain", "proxy_protocol"])
async def test_closing_a_listener(engine: Engine, way: str, trusted: list[str] | None) -> None:
    for request in range(1, REQUESTS):
        listener = await engine.listen(LOCAL, proxy_protocol=trusted)
        with dial(listener) as first, dial(listener) as second:
            await until(lambda: listener.statistics().waiting == 2)  # noqa: B023
            try:
                await starved(LISTENER_WAYS[way](engine, listener)(), request)
            except STARVED:
                await listener.aclose()
            for client in (first, second):
                client.settimeout(PATIENCE)
                with suppress(ConnectionResetError):
                    assert client.recv(1) == b""
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()
        assert listener.statistics().accepted == 2
        assert listener.socket.fileno() == -1
    await until(lambda: engine.statistics().connections == 0)
    # The beacon, and what each reactor has ready for the next accept.
    await until(lambda: engine.statistics().slots_in_use <= 1 + max(engine.reactors, 1))


@pytest.mark.parametrize("way", LISTENER_WAYS)
async def test_closing_a_listener_that_somebody_accepts_on(engine: Engine, way: str) -> None:
    told = 0

    async def accept(listener: Listener) -> None:
        nonlocal told
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()
        told += 1

    for request in range(1, REQUESTS):
        listener = await engine.listen(LOCAL)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept, listener)
            await wait_all_tasks_blocked()
            try:
                await starved(LISTENER_WAYS[way](engine, listener)(), request)
            except STARVED:
                await listener.aclose()
        assert told == request


async def test_accepting(engine: Engine) -> None:
    """An accept that fails leaves no connection that nobody knows."""
    listener = await engine.listen(LOCAL)
    for request in range(1, REQUESTS):
        with dial(listener) as client:
            await until(lambda: listener.statistics().waiting == 1)
            conn = None
            with suppress(*STARVED):
                conn = await starved(listener.accept(), request)
            if conn is None and listener.statistics().waiting == 0:
                client.settimeout(PATIENCE)
                assert client.recv(1) == b""
                continue
            conn = conn or await listener.accept()
            await conn.send_all(b"x")
            assert client.recv(1) == b"x"
            conn.abort()
    await listener.aclose()


async def test_listening(engine: Engine) -> None:
    """A listen that fails leaves nothing behind, and closes no other's descriptor."""
    for request in range(1, 3 * REQUESTS):
        try:
            listener = await starved(engine.listen(LOCAL), request)
        except STARVED:
            continue
        with dial(listener):
            conn = await listener.accept()
            conn.abort()
        await listener.aclose()
    await until(lambda: engine.statistics().slots_in_use <= 1 + max(engine.reactors, 1))


# -- event mode ------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["abort", "close_nowait", "socket"])
async def test_on_close_is_called(engine: Engine, way: str) -> None:
    closed: list[Conn] = []
    listener = await engine.listen(LOCAL)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            lambda: listener.serve_events(
                lambda conn: None, on_close=lambda conn, reason: closed.append(conn)
            )
        )
        for request in range(1, REQUESTS):
            with dial(listener):
                await until(lambda: len(engine.connections) == 1)
                (conn,) = engine.connections.values()
                try:
                    await starved(WAYS[way](engine, conn)(), request)
                except STARVED:
                    conn.abort()
                await until(lambda: closed == [conn])  # noqa: B023
                closed.clear()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kept", [False, True], ids=["without-objects", "with-objects"])
async def test_the_engines_end_in_event_mode(engine: Engine, kept: bool) -> None:
    """on_close is called, or `serve_events` says that it was not."""
    for request in range(1, REQUESTS):
        closed: list[str] = []
        failures: list[type[BaseException]] = []

        def on_close(conn: Conn, reason: str) -> None:
            closed.append(reason)  # noqa: B023

        async def serve(listener: Listener) -> None:
            try:
                await listener.serve_events(lambda conn: None, on_close=on_close)
            except BaseException as exc:
                failures.extend(kinds(exc))  # noqa: B023

        async with trio.open_nursery() as nursery:
            listener = await engine.listen(LOCAL)
            nursery.start_soon(serve, listener)
            with dial(listener) as first, dial(listener) as second:
                await until(lambda: len(engine.connections) == 2)
                objects = list(engine.connections.values()) if kept else None
                with suppress(*STARVED):
                    await starved(plain(engine._core.let_go_of_all)(), request)
                engine._core.let_go_of_all()
                for client in (first, second):
                    client.settimeout(PATIENCE)
                    assert client.recv(1) == b""
                del objects
        assert trio.ClosedResourceError in failures or MemoryError in failures
        assert len(closed) == 2 or MemoryError in failures
    assert len(engine.connections) == 0


async def test_frames_by_callbacks(engine: Engine) -> None:
    """A connection is answered, or closed with on_close, or `serve_frames` says why not."""
    framing = LengthPrefixed(1, max_frame=200)
    wire = b"\5hello" * 3 + b"\xc8" + bytes(200)

    async def serve(listener: Listener, closed: list[str], failures: list[Any]) -> None:
        def on_frames(channel: FrameChannel, frames: list[bytes]) -> None:
            channel.send_many_nowait(frames)

        def on_close(channel: FrameChannel, reason: str) -> None:
            closed.append(reason)

        try:
            await listener.serve_frames(framing, on_frames, on_close=on_close)
        except BaseException as exc:
            failures.extend(kinds(exc))

    for request in range(1, REQUESTS):
        closed: list[str] = []
        failures: list[type[BaseException]] = []
        received = bytearray()
        listener = await engine.listen(LOCAL, limits=Limits(inbound=100))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, listener, closed, failures)
            with dial(listener) as client, FailingDrains(engine) as drains:
                client.setblocking(False)
                drains.request = request
                client.send(wire)

                def is_over() -> bool:
                    with suppress(BlockingIOError):
                        data = client.recv(1000)
                        received.extend(data)  # noqa: B023
                        return data == b"" or len(received) == len(wire)  # noqa: B023
                    return False

                with suppress(ConnectionResetError):
                    await until(is_over)
                drains.request = 0
            await until(lambda: closed or failures)  # noqa: B023
            nursery.cancel_scope.cancel()
        assert received == wire[: len(received)]
        assert len(received) == len(wire) or closed or MemoryError in failures
        assert len(engine.connections) == 0
