"""Event mode: how a connection ends, what callbacks raise, and how serving ends."""

from __future__ import annotations

import functools
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.lowlevel
from event_servers import (
    LOCAL,
    Journal,
    address_of,
    caller,
    echo,
    recorded,
    served,
    styled,
    turns_pass,
)
from helpers import dial, dialled, read, read_all, until
from trio.testing import MockClock, wait_all_tasks_blocked

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

from trio_wknet import Conn, Engine, open_engine, open_wknet_listener

NAMES = ["on_connect", "on_data", "on_close"]


class Boom(Exception):
    pass


def leaves(exc: BaseException) -> Iterator[BaseException]:
    """The exceptions in an exception group."""
    if isinstance(exc, BaseExceptionGroup):
        for member in exc.exceptions:
            yield from leaves(member)
    else:
        yield exc


class Failing:
    """Callbacks of which one raises, or returns nonsense, once it may."""

    def __init__(self, which: str, style: str, fail: Callable[[], Any]) -> None:
        self.log: list[str] = []
        self.may = False
        self.failed = 0
        self.callbacks: dict[str, Any] = {
            name: functools.partial(self.call, name, None) for name in NAMES
        }
        self.callbacks[which] = styled(functools.partial(self.call, which, fail), style)

    def call(self, name: str, fail: Callable[[], Any] | None, conn: Conn, *args: str) -> Any:
        self.log.append(name)
        if name == "on_data":
            conn.receive_nowait()
        if fail is not None and self.may:
            self.failed += 1
            return fail()
        return None


def raises(error: type[BaseException]) -> Callable[[], Any]:
    def fail() -> None:
        raise error("on purpose")

    return fail


# -- exceptions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [Boom, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("style", ["plain", "async"])
@pytest.mark.parametrize("which", NAMES)
async def test_what_a_callback_raises_comes_out(
    engine: Engine, which: str, style: str, error: type[BaseException]
) -> None:
    """And ends the other connections, with on_close."""
    failing = Failing(which, style, raises(error))
    listener = await engine.listen(LOCAL)
    with dialled(listener, 3) as socks:
        with pytest.raises(BaseException) as raised:  # noqa: PT011
            async with trio.open_nursery() as nursery:
                await nursery.start(functools.partial(listener.serve_events, **failing.callbacks))
                await until(lambda: failing.log.count("on_connect") == 3)
                failing.may = True
                with dial(listener) as sock:
                    sock.send(b"now")
                    if which != "on_close":
                        await trio.sleep_forever()
                await trio.sleep_forever()
        found = list(leaves(raised.value))
        assert found
        assert {type(exc) for exc in found} == {error}
        if which == "on_close" and style == "plain":
            assert len(found) == 4, "one for each connection; none is lost"
        else:
            assert len(found) == 1
        if style == "plain" or which != "on_close":  # async, it is cancelled like all else
            assert failing.log.count("on_close") == 4
        assert listener.statistics().handlers == 0
        for sock in socks:
            with trio.socket.from_stdlib_socket(sock.dup()) as peer:
                assert await peer.recv(1) == b""
    await until(lambda: engine.statistics().connections == 0)
    with pytest.raises(trio.ClosedResourceError):
        await listener.serve_events(echo)


@pytest.mark.parametrize("style", ["plain", "async"])
@pytest.mark.parametrize("which", NAMES)
async def test_on_error_deals_with_it(engine: Engine, which: str, style: str) -> None:
    """That connection is closed; the others do not notice."""
    failing = Failing(which, style, raises(Boom))
    errors: list[Any] = []

    def on_error(conn: Conn, exc: Exception) -> None:
        if which != "on_close":
            conn.send_nowait(b"sorry")
        errors.append((type(exc), conn.id is None))

    async with served(engine, on_error=on_error, **failing.callbacks) as listener:
        with caller(listener) as other:
            await until(lambda: "on_connect" in failing.log)
            for n in range(1, 4):
                failing.may = True
                with caller(listener) as peer:
                    await peer.send(b"now")
                    peer.shutdown(socket.SHUT_WR)
                    # It was still open, and what was sent to it arrives.
                    assert await read_all(peer) == (b"" if which == "on_close" else b"sorry")
                await until(lambda: len(errors) == n)  # noqa: B023
                failing.may = False
            await until(lambda: listener.statistics().handlers == 1)
            before = failing.log.count("on_data")
            await other.send(b"still served")
            await until(lambda: failing.log.count("on_data") > before)
        await until(lambda: failing.log.count("on_close") == 4)
    assert errors == [(Boom, which == "on_close")] * 3


@pytest.mark.parametrize("style", ["plain", "async"])
async def test_on_error_is_for_exceptions_only(engine: Engine, style: str) -> None:
    failing = Failing("on_data", style, raises(KeyboardInterrupt))
    failing.may = True
    errors: list[Any] = []
    with pytest.raises(BaseExceptionGroup) as raised:
        async with served(
            engine, on_error=lambda *args: errors.append(args), **failing.callbacks
        ) as listener:
            with dial(listener) as sock:
                sock.send(b"now")
                await trio.sleep_forever()
    assert [type(exc) for exc in leaves(raised.value)] == [KeyboardInterrupt]
    assert errors == []


@pytest.mark.parametrize("style", ["plain", "async"])
@pytest.mark.parametrize("which", NAMES)
async def test_what_on_error_raises_comes_out(engine: Engine, which: str, style: str) -> None:
    failing = Failing(which, style, raises(Boom))
    failing.may = True
    calls = 0

    def on_error(conn: Conn, exc: Exception) -> None:
        nonlocal calls
        calls += 1
        raise LookupError("from on_error") from exc

    with pytest.raises(BaseExceptionGroup) as raised:
        async with served(engine, on_error=on_error, **failing.callbacks) as listener:
            with dial(listener) as sock:
                sock.send(b"now")
            await trio.sleep_forever()
    (found,) = leaves(raised.value)
    assert isinstance(found, LookupError)
    assert isinstance(found.__cause__, Boom)
    assert calls == 1
    assert failing.log.count("on_close") == 1


async def test_on_error_must_be_plain(engine: Engine) -> None:
    async def on_error(conn: Conn, exc: Exception) -> None:
        raise AssertionError

    failing = Failing("on_data", "plain", raises(Boom))
    failing.may = True
    with pytest.raises(BaseExceptionGroup) as raised:
        async with served(engine, on_error=on_error, **failing.callbacks) as listener:
            with dial(listener) as sock:
                sock.send(b"now")
                await trio.sleep_forever()
    assert raised.group_contains(TypeError, match="on_error must be a plain function")


@pytest.mark.parametrize("nonsense", [0, b"data", "generator"])
@pytest.mark.parametrize("which", NAMES)
async def test_a_callback_that_returns_nonsense(engine: Engine, which: str, nonsense: Any) -> None:
    if nonsense == "generator":
        nonsense = (n for n in "x")
    failing = Failing(which, "plain", lambda: nonsense)
    failing.may = True
    with pytest.raises(BaseExceptionGroup) as raised:
        async with served(engine, **failing.callbacks) as listener:
            with dial(listener) as sock:
                sock.send(b"now")
            await trio.sleep_forever()
    assert raised.group_contains(TypeError, match="must return None or be an async function")


async def test_one_that_fails_at_once_leaves_no_other_unserved(engine: Engine) -> None:
    """Many were accepted together; on_connect raises for one of them. Those after it
    were never seen by the application, and are closed like the others."""
    count = 0
    journal = Journal()

    def on_connect(conn: Conn) -> None:
        nonlocal count
        count += 1
        if count == 5:
            raise Boom
        journal.on_connect(conn)

    def on_close(conn: Conn, reason: str) -> None:
        if conn.context is not None:
            journal.on_close(conn, reason)

    listener = await engine.listen(LOCAL)
    with dialled(listener, 30) as socks:
        await until(lambda: listener.statistics().waiting == 30)
        with pytest.raises(BaseExceptionGroup):
            await listener.serve_events(echo, on_connect=on_connect, on_close=on_close)
        assert count == 5
        assert journal.ends == ["closed"] * 4
        # No one is waited for that nobody serves.
        await until(lambda: engine.statistics().connections == 0)
        for sock in socks:
            with trio.socket.from_stdlib_socket(sock.dup()) as peer:
                assert await peer.recv(1) == b""


@pytest.mark.parametrize("style", ["plain", "async"])
async def test_both_exceptions_come_out(engine: Engine, style: str) -> None:
    """Of on_data, and of the on_close that follows from it."""

    def on_data(conn: Conn) -> None:
        raise Boom

    def on_close(conn: Conn, reason: str) -> None:
        raise LookupError

    with pytest.raises(BaseExceptionGroup) as raised:
        async with served(engine, styled(on_data, style), on_close=on_close) as listener:
            with dial(listener) as sock:
                sock.send(b"now")
                await trio.sleep_forever()
    assert {type(exc) for exc in leaves(raised.value)} == {Boom, LookupError}


# -- closing ---------------------------------------------------------------------------------------


async def aclose(conn: Conn) -> None:
    await conn.aclose()


async def aclose_forcefully(conn: Conn) -> None:
    await trio.aclose_forcefully(conn)


async def detach(conn: Conn) -> None:
    sock, unread = await conn.detach()
    with sock:
        sock.send(unread.upper())


@pytest.mark.parametrize(
    ("close", "reason"),
    [
        (Conn.close_nowait, "closed"),
        (Conn.abort, "aborted"),
        (aclose, "closed"),
        (aclose_forcefully, "closed"),
        (detach, "detached"),
    ],
)
@pytest.mark.parametrize("where", ["on_connect", "on_data"])
async def test_a_callback_may_close(
    engine: Engine, where: str, close: Callable[[Conn], Any], reason: str
) -> None:
    log: list[str] = []

    def callback(name: str) -> Callable[..., Any]:
        def called(conn: Conn, *args: str) -> Any:
            log.append(args[0] if args else name)
            return close(conn) if name == where else None

        return called

    async with served(
        engine,
        callback("on_data"),
        on_connect=callback("on_connect"),
        on_close=callback("on_close"),
    ) as listener:
        for _ in range(3):
            with caller(listener) as peer:
                await peer.send(b"unread")
                await until(lambda: reason in log)
                if close is detach:
                    # A reset, if the bytes came between the detach and its close.
                    with suppress(ConnectionResetError):
                        assert await read_all(peer) in (b"UNREAD", b"")
            assert log == ["on_connect", *(["on_data"] if where == "on_data" else []), reason]
            log.clear()
        await until(lambda: listener.statistics().handlers == 0)


async def test_on_close_is_not_called_from_inside_a_close(engine: Engine) -> None:
    """Whoever closes, a task or another connection's callback, goes on undisturbed."""
    journal = Journal()
    conns: list[Conn] = []
    during: list[list[str]] = []

    def on_connect(conn: Conn) -> None:
        journal.on_connect(conn)
        conns.append(conn)

    def on_data(conn: Conn) -> None:
        journal.on_data(conn)
        for other in conns:
            if other is not conn and other.id is not None:
                other.abort()
                during.append(list(journal.ends))

    async with served(
        engine, on_data, on_connect=on_connect, on_close=journal.on_close
    ) as listener:
        with dialled(listener, 4) as socks:
            await until(lambda: len(conns) == 4)
            conns[0].close_nowait()
            assert journal.ends == []
            await until(lambda: journal.ends == ["closed"])
            socks[1].send(b"x")
            await until(lambda: len(journal.ends) == 3)
            assert during == [["closed"]] * 2
            (left,) = [conn for conn in conns if conn.id is not None]
            await left.aclose()
            await until(lambda: len(journal.ends) == 4)
        assert sorted(journal.ends) == ["aborted", "aborted", "closed", "closed"]


async def test_a_closed_connection_says_so(engine: Engine) -> None:
    kept: list[Conn] = []

    def on_close(conn: Conn, reason: str) -> None:
        kept.append(conn)
        with pytest.raises(trio.ClosedResourceError):
            conn.receive_nowait()

    def on_connect(conn: Conn) -> None:
        conn.context = "kept"

    async with served(engine, echo, on_connect=on_connect, on_close=on_close) as listener:
        with caller(listener) as peer:
            await peer.send(b"x")
            assert await read(peer, 1) == b"x"
        await until(lambda: kept)
        (conn,) = kept
        for call in (conn.receive_some, conn.flush, conn.send_eof, conn.detach):
            with pytest.raises(trio.ClosedResourceError):
                await call()
        with pytest.raises(trio.ClosedResourceError):
            conn.send_nowait(b"x")
        await conn.aclose()
        await conn.wait_closed()
        conn.abort()
        assert (conn.close_reason, conn.id, conn.context) == ("eof", None, "kept")
        assert conn.statistics().bytes_received == conn.statistics().bytes_sent == 1
        conn.context = "changed"
        assert conn.context == "changed"


async def test_closed_by_a_task_while_an_async_callback_runs(engine: Engine) -> None:
    """on_close waits for the callback."""
    log: list[Any] = []
    conns: list[Conn] = []
    go = trio.Event()

    async def on_data(conn: Conn) -> None:
        conns.append(conn)
        await go.wait()
        with pytest.raises(trio.ClosedResourceError):
            conn.receive_nowait()
        log.append("callback")

    async with served(
        engine, on_data, on_close=lambda conn, reason: log.append(reason)
    ) as listener:
        with caller(listener) as peer:
            await peer.send(b"x")
            await until(lambda: conns)
            conns[0].abort()
            await turns_pass(engine)
            assert log == []
            go.set()
            await until(lambda: len(log) == 2)
    assert log == ["callback", "aborted"]


async def test_an_async_on_close_is_waited_for(engine: Engine) -> None:
    """By drain; and it may take its time."""
    go = trio.Event()
    log: list[str] = []

    async def on_close(conn: Conn, reason: str) -> None:
        log.append(reason)
        await go.wait()
        log.append("done")

    listener = await engine.listen(LOCAL)
    async with trio.open_nursery() as nursery:
        await nursery.start(functools.partial(listener.serve_events, echo, on_close=on_close))
        dial(listener).close()
        await until(lambda: log)
        nursery.start_soon(listener.drain)
        await turns_pass(engine)
        assert log == ["eof"]
        assert listener.statistics().handlers == 1
        go.set()
    assert log == ["eof", "done"]


async def test_connections_are_found_by_id(engine: Engine) -> None:
    """In Engine.connections, also where they have no object; and closed from there."""
    journal = Journal()
    async with recorded(engine, journal) as listener:
        with dialled(listener, 5):
            await until(lambda: len(journal.visits) == 5)
            assert len(engine.connections) == 5
            assert {conn.context for conn in engine.connections.values()} == set(journal.visits)
            for conn in engine.connections.values():
                conn.abort()
            await until(lambda: journal.ends == ["aborted"] * 5)
            assert len(engine.connections) == 0


# -- idle ------------------------------------------------------------------------------------------


async def test_idle_after_the_peer_finished_sending(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The reason is the first that there was; the callback is cancelled all the same."""
    log: list[str] = []

    async def on_data(conn: Conn) -> None:
        conn.receive_nowait()
        try:
            await trio.sleep_forever()
        finally:
            log.append("cancelled")

    async with open_wknet_listener(f"unix://{tmp_path}/s", idle_timeout=60) as listener:
        async with trio.open_nursery() as nursery:
            await nursery.start(
                functools.partial(
                    listener.serve_events, on_data, on_close=lambda conn, reason: log.append(reason)
                )
            )
            with caller(listener) as peer:
                await peer.send(b"x")
                peer.shutdown(socket.SHUT_WR)
                assert await read_all(peer) == b""
            assert 60 <= trio.current_time() < 61
            await wait_all_tasks_blocked()
            assert log == ["cancelled", "eof"]
            nursery.cancel_scope.cancel()


# -- the end of serving ----------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["plain", "async"])
async def test_cancelled(engine: Engine, style: str) -> None:
    """Every connection is closed, with on_close; callbacks under way are cancelled."""
    journal = Journal(style="plain")
    began: list[Conn] = []
    cancelled = 0

    async def on_data(conn: Conn) -> None:
        nonlocal cancelled
        began.append(conn)
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            cancelled += 1
            raise

    listener = await engine.listen(LOCAL)
    with dialled(listener, 6) as socks:
        async with trio.open_nursery() as nursery:
            await nursery.start(
                functools.partial(listener.serve_events, on_data, **journal.callbacks)
            )
            await until(lambda: len(journal.visits) == 6)
            for sock in socks[:3]:
                sock.send(b"x")
            await until(lambda: len(began) == 3)
            nursery.cancel_scope.cancel()
        assert cancelled == 3
        assert journal.ends == ["closed"] * 6
        for sock in socks:
            with trio.socket.from_stdlib_socket(sock.dup()) as peer:
                try:
                    assert await peer.recv(1) == b""
                except ConnectionResetError:  # it had unread bytes
                    assert sock in socks[:3]


@pytest.mark.parametrize("ends_well", [True, False])
async def test_a_callback_that_outlives_the_cancellation(engine: Engine, ends_well: bool) -> None:
    """It is the last one of its connection. What comes while it runs is not told, and
    what comes after it finds nobody."""
    go = trio.Event()
    log: list[str] = []

    async def on_data(conn: Conn) -> None:
        log.append("begin")
        with trio.CancelScope(shield=True):
            await go.wait()
        assert conn.receive_nowait()
        log.append("end")
        if not ends_well:
            await trio.lowlevel.checkpoint()

    listener = await engine.listen(LOCAL)
    with dialled(listener, 1) as socks:
        async with trio.open_nursery() as nursery:
            await nursery.start(
                functools.partial(
                    listener.serve_events, on_data, on_close=lambda conn, reason: log.append(reason)
                )
            )
            socks[0].send(b"x")
            await until(lambda: log)
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await wait_all_tasks_blocked()
                socks[0].send(b"more")
                await turns_pass(engine)
                assert log == ["begin"]
                go.set()
        assert log == ["begin", "end", "closed"]
        await until(lambda: engine.statistics().connections == 0)


async def test_drain_waits_for_connections(engine: Engine, kind: str, tmp_path: Path) -> None:
    """Nobody new; those that are there are served until they end."""
    journal = Journal(echo_too)
    drained: list[int] = []

    async def drain() -> None:
        await listener.drain()
        drained.append(listener.statistics().handlers)

    listener = await engine.listen(address_of(kind, tmp_path))
    async with trio.open_nursery() as nursery:
        await nursery.start(
            functools.partial(listener.serve_events, journal.on_data, **journal.callbacks)
        )
        with caller(listener) as one:
            with caller(listener) as other:
                await until(lambda: len(journal.visits) == 2)
                nursery.start_soon(drain)
                await until(lambda: not listener._fds)
                for peer in (one, other, one):
                    await peer.send(b"served")
                    assert await read(peer, 6) == b"served"
            await until(lambda: len(journal.ends) == 1)
            await one.send(b"still")
            assert await read(one, 5) == b"still"
            assert not drained
    assert drained == [0]
    assert journal.ends == ["eof", "eof"]


def echo_too(conn: Conn) -> bytes:
    data = conn.receive_nowait()
    conn.send_nowait(data)
    return data


async def test_drain_without_connections(engine: Engine) -> None:
    listener = await engine.listen(LOCAL)
    async with trio.open_nursery() as nursery:
        await nursery.start(listener.serve_events, echo)
        await listener.drain()


async def test_closed_while_it_drains(engine: Engine) -> None:
    """Those that are there are served on, and closing them is still noticed."""
    journal = Journal(echo_too)
    conns: list[Conn] = []

    def on_connect(conn: Conn) -> None:
        journal.on_connect(conn)
        conns.append(conn)

    listener = await engine.listen(LOCAL)
    with caller(listener) as one, caller(listener):
        async with trio.open_nursery() as nursery:
            await nursery.start(
                functools.partial(
                    listener.serve_events,
                    journal.on_data,
                    on_connect=on_connect,
                    on_close=journal.on_close,
                )
            )
            await until(lambda: len(conns) == 2)
            nursery.start_soon(listener.drain)
            await wait_all_tasks_blocked()
            await listener.aclose()
            await one.send(b"served")
            assert await read(one, 6) == b"served"
            for conn in conns:
                conn.abort()
                assert len(journal.ends) < 2
                await wait_all_tasks_blocked()
    assert journal.ends == ["aborted"] * 2


async def test_the_listener_is_closed(engine: Engine) -> None:
    journal = Journal()
    listener = await engine.listen(LOCAL)
    with dialled(listener, 3):
        with pytest.raises(BaseExceptionGroup) as raised:
            async with trio.open_nursery() as nursery:
                await nursery.start(
                    functools.partial(listener.serve_events, journal.on_data, **journal.callbacks)
                )
                await until(lambda: len(journal.visits) == 3)
                await listener.aclose()
                assert journal.ends == [], "not from inside aclose"
        assert raised.group_contains(trio.ClosedResourceError)
        assert journal.ends == ["closed"] * 3
    with pytest.raises(trio.ClosedResourceError):
        await listener.serve_events(echo)


@pytest.mark.parametrize("graceful", [True, False])
async def test_the_engine_is_closed(nothing_left: None, reactors: int, graceful: bool) -> None:
    """Under connections without an object, and under a callback."""
    journal = Journal()
    running: list[Conn] = []

    async def on_data(conn: Conn) -> None:
        running.append(conn)
        with pytest.raises(trio.ClosedResourceError):
            while True:
                await conn.receive_some()

    async def serve(task_status: Any) -> None:
        with pytest.raises(BaseExceptionGroup) as raised:
            await listener.serve_events(on_data, **journal.callbacks, task_status=task_status)
        assert raised.group_contains(trio.ClosedResourceError)

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                async with open_engine(reactors) as engine:
                    listener = await engine.listen(LOCAL)
                    await nursery.start(serve)
                    socks = [dial(listener) for _ in range(5)]
                    await until(lambda: len(journal.visits) == 5)
                    socks[0].send(b"x")
                    await until(lambda: running)
                    if not graceful:
                        scope.cancel()
    assert journal.ends == ["engine closed"] * 5
    for sock in socks:
        sock.close()


async def test_what_a_context_holds_is_freed_with_the_engine(
    nothing_left: None, reactors: int
) -> None:
    class Context:
        freed = 0

        def __del__(self) -> None:
            Context.freed += 1

    def on_connect(conn: Conn) -> None:
        conn.context = Context()

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                async with open_engine(reactors) as engine:
                    listener = await engine.listen(LOCAL)
                    serve = functools.partial(listener.serve_events, echo, on_connect=on_connect)
                    await nursery.start(serve)
                    socks = [dial(listener) for _ in range(5)]
                    await until(lambda: listener.statistics().handlers == 5)
                    nursery.cancel_scope.cancel()
                    scope.cancel()
    assert Context.freed == 5
    for sock in socks:
        sock.close()


# -- the end of everything -------------------------------------------------------------------------


@pytest.mark.parametrize("error", [Boom, KeyboardInterrupt, SystemExit])
def test_a_run_that_ends_by_an_exception(
    nothing_left: None, reactors: int, error: type[BaseException]
) -> None:
    journal = Journal()

    async def main() -> None:
        async with open_engine(reactors) as engine, recorded(engine, journal) as listener:
            with dialled(listener, 3):
                await until(lambda: len(journal.visits) == 3)
                raise error

    with pytest.raises(BaseException) as raised:  # noqa: PT011
        trio.run(main)
    assert {type(exc) for exc in leaves(raised.value)} == {error}
    assert len(journal.ends) == 3


@pytest.mark.parametrize("style", ["plain", "async"])
def test_ctrl_c_while_a_callback_runs(nothing_left: None, reactors: int, style: str) -> None:
    """A plain one is not torn: it runs inside Trio, where Ctrl-C waits."""
    journal = Journal()
    log: list[str] = []

    def on_data(conn: Conn) -> None:
        conn.receive_nowait()
        signal.raise_signal(signal.SIGINT)
        log.append("done")

    async def main() -> None:
        async with open_engine(reactors) as engine:
            async with served(engine, styled(on_data, style), **journal.callbacks) as listener:
                with dialled(listener, 2) as socks:
                    await until(lambda: len(journal.visits) == 2)
                    socks[0].send(b"x")
                    await trio.sleep_forever()

    with pytest.raises(BaseException) as raised:  # noqa: PT011
        trio.run(main)
    assert {type(exc) for exc in leaves(raised.value)} == {KeyboardInterrupt}
    assert log == (["done"] if style == "plain" else [])
    assert len(journal.ends) == 2


FORK = """
import os, socket, sys, trio, trio_wknet

def echo(conn):
    conn.send_nowait(conn.receive_nowait())

async def main():
    conns = []
    async with trio_wknet.open_wknet_listener("tcp://127.0.0.1:0", reactors={reactors}) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: listener.serve_events(echo, on_connect=conns.append))
            client = await trio.open_tcp_stream(*listener.address)
            while not conns:
                await trio.sleep(0.001)
            (conn,) = conns
            child = os.fork()
            if child == 0:
                ways = [
                    lambda: conn.send_nowait(b"from the child"),
                    lambda: conn.receive_nowait(),
                    lambda: conn.idle_scope(1),
                    lambda: listener.serve_events(echo).send(None),
                ]
                for way in ways:
                    try:
                        way()
                    except (RuntimeError, trio.BusyResourceError) as exc:
                        assert "fork" in str(exc) or way is ways[-1], exc
                    else:
                        os._exit(1)
                conn.abort()
                os._exit(7)
            assert os.waitpid(child, 0)[1] == 7 << 8
            # The child's end has not closed what is the parent's.
            await client.send_all(b"parent")
            assert await client.receive_some() == b"parent"
            await client.aclose()
            nursery.cancel_scope.cancel()

trio.run(main)
"""


def test_after_a_fork(reactors: int) -> None:
    """The child may not use a connection, nor disturb the parent's. Python 3.12 warns of
    just this: of forking where threads are."""
    quiet = "ignore:This process:DeprecationWarning"
    done = subprocess.run(
        [sys.executable, "-W", quiet, "-c", FORK.format(reactors=reactors)],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


async def test_twice_in_a_row(engine: Engine, tmp_path: Path) -> None:
    """On the same address, and with the same callbacks."""
    journal = Journal(echo_too)
    for n in range(1, 4):
        async with recorded(engine, journal, address_of("unix", tmp_path)) as listener:
            with caller(listener) as peer:
                await peer.send(b"again")
                assert await read(peer, 5) == b"again"
        assert len(journal.visits) == len(journal.ends) == n
