"""Event mode: a quiet connection is its slot. Objects come and go, and what the
application keeps stays."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest
import trio
from event_servers import STYLES, caller, echo, served, styled
from helpers import Gate, dialled, read, until
from trio.testing import wait_all_tasks_blocked

from trio_wknet import Conn, Engine


def objects() -> list[Conn]:
    """Every Conn that there is. The collector knows them all."""
    return [it for it in gc.get_objects() if type(it) is Conn]


def in_use(engine: Engine) -> int:
    """Bytes of buffers that reactors hold for connections and themselves."""
    return sum(reactor.pool_in_use for reactor in engine.statistics().reactors)


async def hear(peer: Any, word: bytes = b"hello") -> None:
    await peer.send(word)
    assert await read(peer, len(word)) == word


# -- quiet connections -----------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
async def test_a_quiet_connection_has_no_object_and_no_buffer(engine: Engine, style: str) -> None:
    gc.collect()
    already = len(objects())
    before = in_use(engine)
    async with served(engine, styled(echo, style)) as listener:
        with dialled(listener, 50) as socks:
            peers = [trio.socket.from_stdlib_socket(sock.dup()) for sock in socks]
            for _ in range(2):
                for peer in peers:
                    peer.setsockopt(6, 1, 1)
                    await hear(peer)
            await wait_all_tasks_blocked()
            # But for one, which is kept to be lent to the next callback.
            assert len(objects()) - already <= 1
            assert listener.statistics().handlers == 50
            await until(lambda: in_use(engine) == before)
            for peer in peers:
                peer.close()


@pytest.mark.parametrize("style", STYLES)
async def test_the_context_stays_where_the_object_goes(engine: Engine, style: str) -> None:
    class Context:
        def __init__(self) -> None:
            self.calls = 0
            self.last: Any = None

    contexts: list[Context] = []
    gone: list[bool] = []

    def on_connect(conn: Conn) -> None:
        conn.context = Context()
        contexts.append(conn.context)

    def on_data(conn: Conn) -> None:
        context: Context = conn.context
        assert context in contexts
        if context.last is not None:
            gone.append(context.last() is None)
        context.last = weakref.ref(conn)  # for whose sake it is lent to nobody
        context.calls += 1
        echo(conn)

    async with served(engine, styled(on_data, style), on_connect=on_connect) as listener:
        with caller(listener) as one, caller(listener) as other:
            for n in range(1, 5):
                for peer in (one, other):
                    await hear(peer)
                    await wait_all_tasks_blocked()
                assert [context.calls for context in contexts] == [n, n]
                assert [context.last() for context in contexts] == [None, None]
    assert gone == [True] * 6


async def test_a_connection_that_is_kept_keeps_its_object(engine: Engine) -> None:
    kept: list[Conn] = []
    seen: list[Conn] = []

    def on_data(conn: Conn) -> None:
        seen.append(conn)
        echo(conn)

    def on_close(conn: Conn, reason: str) -> None:
        seen.append(conn)

    async with served(engine, on_data, on_connect=kept.append, on_close=on_close) as listener:
        with caller(listener) as peer:
            for _ in range(3):
                await hear(peer)
                gc.collect()
            (conn,) = kept
            assert engine.connections[conn.id or 0] is conn
            await conn.send_all(b"from a task")
            assert await read(peer, 11) == b"from a task"
        await until(lambda: len(seen) == 4)
        assert all(it is conn for it in seen)


async def test_an_object_is_lent_without_what_it_knew(engine: Engine) -> None:
    """The same object may stand for one connection after another, where nobody kept it:
    then nothing of the one is seen in the next."""
    seen: dict[int, Any] = {}

    def on_data(conn: Conn) -> None:
        assert conn.context is None or conn.context == conn.remote_address
        conn.context = conn.remote_address
        assert conn.id is not None
        assert seen.setdefault(conn.id, conn.remote_address) == conn.remote_address
        assert conn.socket.fileno() >= 0
        assert conn.statistics().bytes_received == 5 * calls.setdefault(conn.id, 1)
        calls[conn.id] += 1
        echo(conn)

    calls: dict[int, int] = {}
    async with served(engine, on_data) as listener:
        with caller(listener) as one, caller(listener) as two, caller(listener) as three:
            for _ in range(5):
                for peer in (one, two, three):
                    await hear(peer)
            addresses = {peer.getsockname() for peer in (one, two, three)}
    assert set(seen.values()) == addresses


async def test_no_warning_where_the_server_holds_it(engine: Engine) -> None:
    """A stream that is dropped open is a ResourceWarning, an error here. In event mode
    dropping the object is what is meant."""
    async with served(engine, echo, on_connect=lambda conn: None) as listener:
        with caller(listener) as peer:
            for _ in range(5):
                await hear(peer)
                gc.collect()
            for conn in engine.connections.values():
                del conn
            gc.collect()
            await hear(peer)


# -- contexts --------------------------------------------------------------------------------------


class Session:
    """A context that refers back."""

    def __init__(self, conn: Conn) -> None:
        self.conn = conn


async def test_a_context_that_refers_to_its_connection(engine: Engine) -> None:
    """It lives as long as that, and no longer."""
    sessions: list[weakref.ref[Session]] = []

    def on_connect(conn: Conn) -> None:
        conn.context = Session(conn)
        sessions.append(weakref.ref(conn.context))

    def on_data(conn: Conn) -> None:
        assert conn.context.conn is conn
        echo(conn)

    async with served(engine, on_data, on_connect=on_connect) as listener:
        with caller(listener) as peer:
            for _ in range(3):
                await hear(peer)
                gc.collect()
            assert sessions[0]() is not None
        await until(lambda: listener.statistics().handlers == 0)
        gc.collect()
        assert sessions[0]() is None


async def test_a_context_is_replaced(engine: Engine) -> None:
    """What the old one's finalizer does, which may be anything, comes after."""
    log: list[Any] = []

    class Closes:
        def __init__(self, conn: Conn) -> None:
            self.conn = conn

        def __del__(self) -> None:
            log.append(self.conn.context)
            self.conn.close_nowait()

    def on_data(conn: Conn) -> None:
        conn.receive_nowait()
        conn.context = Closes(conn)
        conn.context = "new"
        log.append(conn.id)
        assert conn.context == "new"

    async with served(
        engine, on_data, on_close=lambda conn, reason: log.append(conn.context)
    ) as listener:
        with caller(listener) as peer:
            await peer.send(b"x")
            await until(lambda: len(log) == 3)
    assert log == ["new", None, "new"]


# -- other threads ---------------------------------------------------------------------------------


async def test_the_collector_finds_an_object_that_is_handed_out_meanwhile(engine: Engine) -> None:
    """The collector, in another thread, has found a Conn in a cycle that nobody refers
    to. Before it comes to finalize it, bytes arrive, and the application gets it and
    keeps it. It must not be taken away again."""
    conns: list[Any] = []
    kept: list[Conn] = []
    gates: list[Gate] = []

    def on_connect(conn: Conn) -> None:
        gate = Gate()
        gates.append(gate)
        cycle: list[Any] = [gate, conn]
        cycle.append(cycle)
        conns.append(cycle)

    def on_data(conn: Conn) -> None:
        echo(conn)
        kept.append(conn)

    gc.collect()
    async with served(engine, on_data, on_connect=on_connect) as listener:
        with caller(listener) as peer:
            await until(lambda: conns)
            identity = id(conns[0][1])
            reached, go = gates[0].reached, gates[0].go
            gc.disable()
            try:
                conns.clear()
                gates.clear()
                collector = threading.Thread(target=gc.collect)
                collector.start()
                await until(reached.is_set)
                await hear(peer)
                assert [id(conn) for conn in kept] == [identity], "it was not the collector's"
                go.set()
                await until(lambda: not collector.is_alive())
                collector.join()
            finally:
                gc.enable()
            (conn,) = kept
            assert conn.id is not None
            conn.send_nowait(b"alive")
            assert await read(peer, 5) == b"alive"
            # It is gone for good in the end, though finalized once already.
            gone = weakref.ref(conn)
            del conn
            kept.clear()
            assert gone() is None
            await hear(peer)


async def test_an_object_that_another_thread_is_freeing(engine: Engine) -> None:
    """Some fifty levels deep in a structure that is being freed, an object waits for its
    turn without a reference left (CPython's trashcan). It is not there any more for
    anybody."""
    roots: list[Any] = []
    seen: list[int] = []

    def on_data(conn: Conn) -> None:
        echo(conn)
        seen.append(id(conn))

    async with served(engine, on_data, on_connect=roots.append) as listener:
        for depth in range(40, 60):
            with caller(listener) as peer:
                await until(lambda: roots)
                gate = Gate()
                reached, go = gate.reached, gate.go
                nested: Any = [roots.pop()]
                for _ in range(depth):
                    nested = [nested]
                roots.append([gate, nested])  # freed from the end
                del gate, nested
                freeing = threading.Thread(target=roots.clear)
                freeing.start()
                await until(reached.is_set)
                for _ in range(3):
                    await hear(peer)
                go.set()
                await until(lambda: not freeing.is_alive())  # noqa: B023
                freeing.join()
                await hear(peer)
                assert roots == []
    assert len(seen) == 20 * 4


async def test_dropped_in_another_thread(engine: Engine) -> None:
    kept: list[Conn] = []
    async with served(engine, echo, on_connect=kept.append) as listener:
        with caller(listener) as peer:
            for n in range(50):
                await until(lambda: kept or n)  # noqa: B023
                thread = threading.Thread(target=kept.clear)
                thread.start()
                await hear(peer)
                thread.join()
                kept.extend(engine.connections.values())
            kept.clear()
            await hear(peer)
