"""Engine.connections: a mapping from id to connection, always as things are now."""

from __future__ import annotations

import random
import threading
import weakref
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
from helpers import dial, dialled, plain_pair, read_all, until, url

from trio_wknet import Conn, Engine, Listener, open_engine


def adopt(engine: Engine) -> tuple[Conn, Any]:
    ours, theirs = plain_pair("unix")
    conn = engine.adopt(ours)
    assert isinstance(conn, Conn)
    return conn, theirs


def known(conn: Conn) -> int:
    assert conn.id is not None
    return conn.id


@asynccontextmanager
async def some(engine: Engine, count: int) -> AsyncIterator[list[Conn]]:
    pairs = [adopt(engine) for _ in range(count)]
    try:
        yield [conn for conn, _ in pairs]
    finally:
        for conn, peer in pairs:
            conn.abort()
            peer.close()


async def test_it_has_what_was_accepted_connected_and_adopted(engine: Engine) -> None:
    connections = engine.connections
    assert len(connections) == 0
    listener = await engine.listen("tcp://127.0.0.1:0")
    client = await engine.connect(url(listener))
    await until(lambda: listener.statistics().waiting == 1, "a connection")
    assert list(connections.values()) == [client], "it has one that nobody accepted"
    server = await listener.accept()
    async with some(engine, 1) as [adopted]:
        assert len(connections) == 3
        for conn in (client, server, adopted):
            assert connections[known(conn)] is conn
            assert connections.get(known(conn)) is conn
            assert known(conn) in connections
        assert set(connections) == {client.id, server.id, adopted.id}
    assert len(connections) == 2, "the listener, or one that was closed, is counted"
    await client.aclose()
    await server.aclose()
    await listener.aclose()
    assert len(connections) == 0
    assert list(connections) == []


async def test_a_closed_connection_is_gone_at_once_though_it_lingers(engine: Engine) -> None:
    conn, peer = adopt(engine)
    number = known(conn)
    await conn.aclose()
    assert number not in engine.connections
    assert engine.connections.get(number) is None
    with pytest.raises(KeyError, match=str(number)):
        engine.connections[number]
    assert engine.statistics().connections == 1, "it was to linger"
    peer.close()


async def test_an_old_id_never_means_another_connection(engine: Engine, long: bool) -> None:
    """Connections come and go; every id there ever was is looked up again and again."""
    connections, order = engine.connections, random.Random(4)
    open_now: dict[int, tuple[Conn, Any]] = {}
    gone: set[int] = set()
    for _ in range(3000 if long else 300):
        if order.random() < 0.5 or not open_now:
            conn, peer = adopt(engine)
            assert known(conn) not in gone
            open_now[known(conn)] = conn, peer
        else:
            number = order.choice(list(open_now))
            conn, peer = open_now.pop(number)
            gone.add(number)
            conn.abort()
            peer.close()
        if order.random() < 0.2:
            await trio.lowlevel.checkpoint()
        assert not any(number in connections for number in gone)
        assert connections == {number: conn for number, (conn, _) in open_now.items()}
    slots = {number % 2**32 for number in gone}
    assert len(slots) < len(gone), "no slot was used again"
    for conn, peer in open_now.values():
        conn.abort()
        peer.close()


async def test_iterating_while_connections_come_and_go(engine: Engine) -> None:
    connections = engine.connections
    async with some(engine, 10) as conns:
        numbers = [known(conn) for conn in conns]
        ids, values = iter(connections), iter(connections.values())
        items = iter(connections.items())
        first_id, first_value, first_item = next(ids), next(values), next(items)
        for conn in conns[3:6]:
            conn.abort()
        async with some(engine, 5):
            await trio.lowlevel.checkpoint()
            left = conns[:3] + conns[6:]
            assert [first_value, *values] == left, "values() is not what is still open"
            assert [first_item, *items] == [(conn.id, conn) for conn in left]
            assert [first_id, *ids] == numbers, "the ids are not those that there were"


async def test_closing_each_while_iterating(engine: Engine) -> None:
    async with some(engine, 300) as conns:
        seen = []
        for conn in engine.connections.values():
            seen.append(conn)
            conn.abort()
            if len(seen) % 100 == 0:
                await trio.lowlevel.checkpoint()
        assert seen == conns
        assert len(engine.connections) == 0


async def test_what_is_no_id(engine: Engine) -> None:
    connections: Any = engine.connections
    async with some(engine, 3) as conns:
        number = known(conns[0])
        numbers = (0, 1, -1, 2**63, 2**64, 2**64 + number, -number, number + 2**32, True, False)
        others = ("x", str(number), b"", None, 1.5, (number,), conns[0])
        for key in (*numbers, *others):
            assert key not in connections
            assert connections.get(key) is None
            assert connections.get(key, "nothing") == "nothing"
            with pytest.raises(KeyError):
                connections[key]
        unhashables: tuple[Any, ...] = ([], {}, {number}, bytearray())
        for unhashable in unhashables:
            for use in (connections.get, connections.__getitem__, connections.__contains__):
                with pytest.raises(TypeError, match="unhashable"):
                    use(unhashable)


async def test_no_number_finds_what_is_no_connection(engine: Engine) -> None:
    """Listeners and their ports have slots, too."""
    listener = await engine.listen("tcp://localhost:0")
    async with some(engine, 3) as conns:
        slots = [generation << 32 | slot for generation in range(50) for slot in range(50)]
        found = [number for number in slots if number in engine.connections]
        assert found == [known(conn) for conn in conns]
    await listener.aclose()


class Number(int):
    pass


async def test_it_is_a_mapping(engine: Engine) -> None:
    connections: Any = engine.connections
    assert isinstance(connections, Mapping)
    async with some(engine, 3) as conns:
        plain: Any = {conn.id: conn for conn in conns}
        number = known(conns[0])
        assert connections == plain
        assert plain == connections
        assert connections != {number: conns[0]}
        sequence: Any = list(plain)
        assert connections != sequence
        assert dict(connections) == plain
        assert {**connections} == plain
        assert len(connections.keys()) == len(connections.values()) == len(connections.items()) == 3
        assert connections.keys() == plain.keys()
        assert connections.items() == plain.items()
        assert connections.keys() & {number} == {number}
        assert number in connections.keys()  # noqa: SIM118
        assert (number, conns[0]) in connections.items()
        assert (number, conns[1]) not in connections.items()
        assert conns[2] in connections.values()
        assert None not in connections.values()
        assert connections[Number(number)] is conns[0]
        match connections:
            case {None: _}:
                raise AssertionError("a key that is none")
            case {**found}:
                assert found == plain
            case _:
                raise AssertionError("not taken for a mapping")
        assert "3" in repr(connections)
    assert not connections
    for change in ("__setitem__", "__delitem__", "pop", "clear", "update", "setdefault"):
        assert not hasattr(connections, change)
    for use in (hash, reversed):
        with pytest.raises(TypeError):
            use(connections)


async def test_after_the_engine_is_closed(nothing_left: None, reactors: int) -> None:
    async with open_engine(reactors) as engine:
        conn, peer = adopt(engine)
        number = known(conn)
        connections = engine.connections
        ids, values = iter(connections), iter(connections.values())
    peer.close()
    assert list(ids) == [number]
    for use in (
        lambda: len(connections),
        lambda: number in connections,
        lambda: connections.get(number),
        lambda: connections[number],
        lambda: list(connections),
        lambda: next(values),
        lambda: connections == {},
    ):
        with pytest.raises(RuntimeError, match="closed"):
            use()
    assert "closed" in repr(connections)


async def test_from_another_thread(engine: Engine) -> None:
    async with some(engine, 1) as [conn]:
        failures = []

        def use() -> None:
            for attempt in (engine.connections.__len__, lambda: engine.connections[known(conn)]):
                try:
                    attempt()
                except RuntimeError as exc:
                    failures.append(str(exc))

        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
        assert [text for text in failures if "another thread" in text] == failures
        assert len(failures) == 2


class Context:
    pass


@asynccontextmanager
async def served(listener: Listener, on_data: Any, **others: Any) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            await listener.serve_events(on_data, **others)

        nursery.start_soon(serve)
        yield
        nursery.cancel_scope.cancel()


async def test_in_event_mode_objects_are_made_when_asked_for(engine: Engine) -> None:
    made: list[weakref.ref[Conn]] = []

    def on_connect(conn: Conn) -> None:
        conn.context = number = len(made)
        made.append(weakref.ref(conn))
        conn.send_nowait(b"%d" % number)

    listener = await engine.listen("tcp://127.0.0.1:0")
    async with served(listener, lambda conn: None, on_connect=on_connect):
        with dialled(listener, 5) as socks:
            await until(lambda: len(made) == 5, "the connections")
            assert [ref() for ref in made] == [None] * 5, "objects are kept"
            connections = engine.connections
            assert len(connections) == 5
            numbers = list(connections)
            kept = connections[numbers[0]]
            assert connections[numbers[0]] is kept
            assert next(iter(connections.values())) is kept
            assert sorted(conn.context for conn in connections.values()) == list(range(5))
            assert [number for number, conn in connections.items() if conn.id == number] == numbers
            del kept
            for number in numbers[:3]:
                connections[number].abort()
            assert list(connections) == numbers[3:]
            for sock in socks:
                with suppress(ConnectionResetError):
                    assert sock.recv(1)
            for number in numbers[3:]:
                connections[number].send_nowait(b"bye")
                await connections[number].aclose()
            assert len(connections) == 0
    await listener.aclose()


async def test_what_peers_end_in_event_mode_is_gone(engine: Engine) -> None:
    ended = []
    listener = await engine.listen("tcp://127.0.0.1:0")
    async with served(listener, lambda conn: None, on_close=lambda conn, why: ended.append(why)):
        with dialled(listener, 3):
            await until(lambda: len(engine.connections) == 3, "the connections")
            numbers = list(engine.connections)
        await until(lambda: len(ended) == 3, "the end")
        assert len(engine.connections) == 0
        assert not any(number in engine.connections for number in numbers)
    await listener.aclose()


async def test_a_detached_connection_is_gone(engine: Engine) -> None:
    conn, peer = adopt(engine)
    number = known(conn)
    sock, _ = await conn.detach()
    assert number not in engine.connections
    sock.close()
    peer.close()


async def test_broadcast_over_what_is_there(engine: Engine) -> None:
    """What the mapping is for: tell everybody, whatever they do meanwhile."""
    listener = await engine.listen("tcp://127.0.0.1:0")
    async with trio.open_nursery() as nursery:

        async def handler(conn: Conn) -> None:
            await conn.wait_closed()

        nursery.start_soon(listener.serve, handler)
        socks = [dial(listener) for _ in range(20)]
        await until(lambda: len(engine.connections) == 20, "the connections")
        for number, conn in enumerate(engine.connections.values()):
            await conn.send_all(b"%d" % number)
            await conn.send_eof()
        got = []
        for sock in socks:
            sock.setblocking(False)
            got.append(await read_all(trio.socket.from_stdlib_socket(sock)))
            sock.close()
        assert sorted(map(int, got)) == list(range(20))
        nursery.cancel_scope.cancel()
