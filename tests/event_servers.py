"""What the tests of event mode share: callbacks that keep a record and hold it to the
contract, in each form that a callback may have, and servers that run them."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any

import trio
from helpers import DEFAULT, PLAIN, dial, read

from trio_wknet import Conn, ConnOptions, Engine, FrameChannel, Limits, Listener

LOCAL = "tcp://127.0.0.1:0"
STYLES = ["plain", "async", "mixed"]


def styled(callback: Callable[..., Any], style: str) -> Callable[..., Any]:
    """The same callback as a plain function, an async one, or now this, now that."""

    async def later(*args: Any) -> None:
        await trio.lowlevel.checkpoint()
        callback(*args)
        await trio.lowlevel.checkpoint()

    turns = itertools.count()

    def mixed(*args: Any) -> Any:
        return later(*args) if next(turns) % 2 else callback(*args)

    return {"plain": callback, "async": later, "mixed": mixed}[style]


class Visit:
    """The record of one connection. It is its `context`."""

    def __init__(self) -> None:
        self.log = ["connect"]
        self.calls = 0  # of on_data
        self.received = bytearray()
        self.calling = False
        self.notes: Any = None  # the test's own


def take(conn: Conn) -> bytes:
    """What is there. Empty if nothing is, or the connection was closed meanwhile."""
    with suppress(trio.WouldBlock, trio.ClosedResourceError, trio.BrokenResourceError):
        return conn.receive_nowait()
    return b""


def echo(conn: Conn) -> None:
    conn.send_nowait(conn.receive_nowait())


class Journal:
    """Callbacks that write down what happens, and check the contract: on_connect once,
    then on_data while there are bytes, then on_close once, and never two at once.

    ``use(conn)`` is what on_data does with the bytes, and gives what it took.
    """

    def __init__(self, use: Callable[[Conn], bytes | None] = take, style: str = "plain") -> None:
        self.use = use
        self.visits: list[Visit] = []
        self.on_connect = self._marked(self._connect, style, first=True)
        self.on_data = self._marked(self._data, style)
        self.on_close = self._marked(self._close, style)

    def _marked(
        self, callback: Callable[..., None], style: str, first: bool = False
    ) -> Callable[..., Any]:
        """Watch that a callback has ended before the next begins."""

        def begin(conn: Conn) -> Visit:
            if first:
                assert conn.context is None
                conn.context = Visit()
                self.visits.append(conn.context)
            visit = conn.context
            assert isinstance(visit, Visit)
            assert not visit.calling
            visit.calling = True
            return visit

        async def awaited(visit: Visit, awaitable: Any) -> None:
            try:
                await awaitable
            finally:
                visit.calling = False

        inner = styled(callback, style)

        def marked(conn: Conn, *args: Any) -> Any:
            visit = begin(conn)
            try:
                awaitable = inner(conn, *args)
            except BaseException:
                visit.calling = False
                raise
            if awaitable is None:
                visit.calling = False
                return None
            return awaited(visit, awaitable)

        return marked

    def _connect(self, conn: Conn) -> None:
        assert conn.id is not None

    def _data(self, conn: Conn) -> None:
        visit: Visit = conn.context
        assert visit.log == ["connect"]
        visit.calls += 1
        visit.received += self.use(conn) or b""

    def _close(self, conn: Conn, reason: str) -> None:
        visit: Visit = conn.context
        assert visit.log == ["connect"]
        assert reason == conn.close_reason
        assert conn.id is None
        visit.log.append(reason)

    @property
    def callbacks(self) -> dict[str, Any]:
        return {"on_connect": self.on_connect, "on_close": self.on_close}

    @property
    def ends(self) -> list[str]:
        """Why connections ended, of those that did."""
        return [visit.log[1] for visit in self.visits if len(visit.log) == 2]

    @property
    def over(self) -> bool:
        return len(self.ends) == len(self.visits)


@asynccontextmanager
async def served(
    engine: Engine,
    on_data: Any,
    *,
    address: str = LOCAL,
    limits: Limits = DEFAULT,
    options: ConnOptions = PLAIN,
    **callbacks: Any,
) -> AsyncIterator[Listener]:
    """A listener under `serve_events`, which is cancelled at the end."""
    listener = await engine.listen(address, limits=limits, options=options)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(listener.serve_events, on_data, **callbacks))
        yield listener
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def served_frames(
    engine: Engine,
    framing: Any,
    on_frames: Callable[[FrameChannel, list[bytes]], Any],
    address: str = LOCAL,
    limits: Limits = DEFAULT,
    options: ConnOptions = PLAIN,
    **callbacks: Any,
) -> AsyncIterator[Listener]:
    """A listener under `serve_frames`, which is cancelled at the end."""
    listener = await engine.listen(address, limits=limits, options=options)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(listener.serve_frames, framing, on_frames, **callbacks))
        yield listener
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def recorded(
    engine: Engine, journal: Journal, address: str = LOCAL, **options: Any
) -> AsyncIterator[Listener]:
    async with served(
        engine, journal.on_data, address=address, **journal.callbacks, **options
    ) as listener:
        yield listener


@contextmanager
def caller(listener: Listener) -> Any:
    """A Trio socket connected to a listener. (A blocking one must not be waited for: in
    an in-loop engine, this thread is the reactor.)"""
    sock = dial(listener)
    sock.setblocking(False)
    peer = trio.socket.from_stdlib_socket(sock)
    try:
        yield peer
    finally:
        peer.close()


async def turns_pass(engine: Engine, turns: int = 3) -> None:
    """Whatever the reactors and the drain had to do is done: so many round trips on
    every reactor, through another listener."""
    async with served(engine, echo) as listener:
        for _ in engine.statistics().reactors:
            with caller(listener) as peer:
                for _ in range(turns):
                    await peer.send(b"!")
                    assert await read(peer, 1) == b"!"


def address_of(kind: str, folder: Any) -> str:
    return LOCAL if kind == "tcp" else f"unix://{folder}/events"
