"""Rooms of people who talk, by the messaging service of examples/im and by the same service on
plain Trio: ``python benchmarks/experiment.py im``.

By default 10 000 WebSockets, in 100 rooms of 100; 1000 messages a second are said, which are
100 000 deliveries. Each service keeps every message in SQLite before it sends it. They differ in
what is below that: trio_wknet, websockets' server for Trio with its own broadcast, and
trio-websocket with a queue and a task for each member, whose queue may overflow. Measured are
deliveries a second, how late they are, and the server's CPU for a delivery.
"""

from __future__ import annotations

import argparse
import sqlite3
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import attrs
from rich.console import Console
from rich.table import Table

from harness.answers import say
from harness.machine import Machine
from harness.rounds import take_turns
from harness.worker import BENCHMARKS, Worker
from trio_wknet._load.cpu import cpu_seconds
from trio_wknet._load.target import reserve_descriptors

HOST = "127.0.0.1"
SCRIPT = "experiments/im.py"
WAYS = ("wknet", "websockets", "trio-websocket")
SECRET = b"a secret of the benchmark"
BACKLOG = 4096
QUEUE = 1000  # messages that wait for a member, in the peer that needs one

sys.path.append(str(BENCHMARKS.parent))  # examples/im is no part of the package


@attrs.frozen(kw_only=True)
class Found:
    deliveries: float
    """A second."""
    expected: float
    p50: float
    p99: float
    """Seconds."""
    cpu: float
    """Seconds for a delivery, of the server."""
    lost: int


# --- the servers ------------------------------------------------------------------------


async def until_end_of_input() -> None:
    import trio

    await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


async def serve_ours(file: str) -> None:
    import trio

    from examples.im.server import Settings, run
    from examples.im.store import open_local

    async with trio.open_nursery() as nursery:
        settings = Settings(port=0, web_port=0)
        _, web = await nursery.start(run, settings, partial(open_local, file))
        say(web[1])
        await until_end_of_input()
        nursery.cancel_scope.cancel()


class Peer:
    """The service without presence and private messages, for any WebSocket of Trio's."""

    def __init__(self, database: Any, fan_out: Callable[[set[Any], str], Awaitable[None]]) -> None:
        import trio

        self._database = database
        self._fan_out = fan_out
        self._rooms: defaultdict[str, set[Any]] = defaultdict(set)
        self._queue, self._queued = trio.open_memory_channel[tuple[str, str]](10_000)

    async def serve(
        self, member: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[str], Any]
    ) -> None:
        from examples.im import protocol, tokens

        name, room = "", ""
        try:
            while True:
                message = protocol.decode(await receive())
                if message["type"] == "login":
                    name = tokens.name_of(SECRET, message["token"])
                elif message["type"] == "join" and name:
                    room = protocol.name_in(message, "room")
                    self._rooms[room].add(member)
                    await send(protocol.encode(type="joined", room=room))
                elif message["type"] == "say" and room:
                    said = {"from": name, "text": protocol.text_in(message)}
                    at = round(time.time(), 3)
                    text = protocol.encode(type="said", room=room, **said, at=at, ref=None)
                    await self._queue.send((room, text))
        finally:
            self._rooms[room].discard(member)

    async def deliver(self) -> None:
        import trio

        from examples.im.protocol import with_id

        async for first in self._queued:
            batch = [first]
            with suppress(trio.WouldBlock):
                while True:
                    batch.append(self._queued.receive_nowait())
            ids = await self._database.append([(f"room:{room}", text) for room, text in batch])
            for id, (room, text) in zip(ids, batch, strict=True):
                await self._fan_out(self._rooms[room], with_id(id, text))


async def serve_websockets(database: Any) -> None:
    import trio
    from websockets.exceptions import ConnectionClosed
    from websockets.trio.server import broadcast, serve

    peer = Peer(database, broadcast)

    async def handler(websocket: Any) -> None:
        with suppress(ConnectionClosed):
            await peer.serve(websocket, websocket.recv, websocket.send)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.deliver)
        options = {"backlog": BACKLOG, "ping_interval": None, "compression": None}
        server = await nursery.start(partial(serve, handler, 0, host=HOST, **options))
        say(server.listeners[0].socket.getsockname()[1])
        await until_end_of_input()
        nursery.cancel_scope.cancel()


async def serve_trio_websocket(database: Any) -> None:
    import trio
    from trio_websocket import ConnectionClosed, WebSocketServer

    async def fan_out(members: set[Any], text: str) -> None:
        for member in members:
            with suppress(trio.WouldBlock):  # it is slow, and misses this one
                member.send_nowait(text)
        await trio.lowlevel.checkpoint()

    peer = Peer(database, fan_out)

    async def write(websocket: Any, texts: Any) -> None:
        with suppress(ConnectionClosed):
            async for text in texts:
                await websocket.send_message(text)

    async def handler(request: Any) -> None:
        websocket = await request.accept()
        queue, texts = trio.open_memory_channel[str](QUEUE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, websocket, texts)
            with suppress(ConnectionClosed):
                await peer.serve(queue, websocket.get_message, queue.send)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.deliver)
        listeners = await trio.open_tcp_listeners(0, host=HOST, backlog=BACKLOG)
        server = WebSocketServer(handler, listeners)
        nursery.start_soon(server.run)
        say(listeners[0].socket.getsockname()[1])
        await until_end_of_input()
        nursery.cancel_scope.cancel()


def prepare(file: str) -> None:
    """A database whose secret is known, so that tokens need not be asked for."""
    connection = sqlite3.connect(file)
    connection.executescript(
        """CREATE TABLE secret(one INTEGER PRIMARY KEY, value BLOB NOT NULL);
        CREATE TABLE messages(
            id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL, body TEXT NOT NULL);"""
    )
    connection.execute("INSERT INTO secret VALUES (1, ?)", (SECRET,))
    connection.commit()
    connection.close()


async def serve(way: str, file: str) -> None:
    from examples.im.store import open_local
    from trio_wknet import open_engine

    if way == "wknet":
        await serve_ours(file)
        return
    async with open_engine(0) as engine, open_local(file, engine) as database:
        await (serve_websockets if way == "websockets" else serve_trio_websocket)(database)


# --- measuring --------------------------------------------------------------------------


def put_load(port: int, pid: int, options: argparse.Namespace) -> None:
    """Be the users, and say what they found."""
    from examples.im.load import Load, run

    looks: list[tuple[float, int]] = []
    load = Load(
        host=HOST,
        port=0,
        web_port=port,
        users=options.users,
        rooms=options.rooms,
        rate=options.rate,
        seconds=options.seconds,
        warmup=options.warmup,
        text=options.text,
        secret=SECRET,
    )
    result = run(load, lambda got: looks.append((cpu_seconds(pid), got)))
    (began, before), (ended, after) = looks
    found = Found(
        deliveries=result.deliveries / result.seconds,
        expected=result.expected / result.seconds,
        p50=result.p50,
        p99=result.p99,
        cpu=(ended - began) / max(1, after - before),
        lost=result.lost,
    )
    say(attrs.asdict(found))


def measure(way: str, options: argparse.Namespace, folder: Path) -> Found:
    file = str(folder / f"{way}-{time.monotonic_ns()}.db")
    prepare(file)
    with Worker(SCRIPT, "--serve", way, "--file", file) as server:
        port = server.answer()
        arguments = [f"--{name}={getattr(options, name)}" for name in LOAD]
        with Worker(SCRIPT, "--load", str(port), "--pid", str(server.pid), *arguments) as users:
            return Found(**users.answer(timeout=options.seconds + options.warmup + 120))


LOAD = {"users": 10_000, "rooms": 100, "rate": 1000.0, "seconds": 8.0, "warmup": 3.0, "text": 100}


def table(found: dict[str, list[Found]]) -> Table:
    """Medians; the ratio is of deliveries for the same CPU, to each of the peers."""
    titles = ("service", "deliveries/s", "of", "p50", "p99", "CPU each", "lost", "wknet's ratio")
    shown = Table(*titles)
    rows = {
        way: {field: median(getattr(one, field) for one in rounds) for field in FIELDS}
        for way, rounds in found.items()
    }
    for way, row in rows.items():
        ratio = row["cpu"] / rows["wknet"]["cpu"] if "wknet" in rows else float("nan")
        shown.add_row(
            way,
            f"{row['deliveries']:,.0f}",
            f"{row['expected']:,.0f}",
            f"{row['p50'] * 1e3:,.1f} ms",
            f"{row['p99'] * 1e3:,.1f} ms",
            f"{row['cpu'] * 1e6:.2f} µs",
            f"{row['lost']:.0f}",
            f"{ratio:.2f}",
        )
    return shown


FIELDS = [field.name for field in attrs.fields(Found)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure rooms of people who talk.")
    for name, default in LOAD.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--way", action="append", choices=WAYS, help="may be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to FILE")
    parser.add_argument("--serve", choices=WAYS, help="be a server instead")
    parser.add_argument("--file", help="its database")
    parser.add_argument("--load", type=int, metavar="PORT", help="be the users instead")
    parser.add_argument("--pid", type=int, help="the server's")
    options = parser.parse_args()
    if options.serve:
        import trio

        reserve_descriptors(15_000)
        trio.run(serve, options.serve, options.file)
        return
    if options.load:
        reserve_descriptors(options.users)
        put_load(options.load, options.pid, options)
        return
    console, machine = Console(), Machine.here()
    console.print(str(machine), highlight=False)
    with tempfile.TemporaryDirectory() as folder, console.status("") as status:
        one = partial(measure, options=options, folder=Path(folder))
        found = take_turns(tuple(options.way or WAYS), options.rounds, one, status.update)
    console.print(
        f"{options.users:,} users in {options.rooms} rooms, {options.rate:,.0f} messages/s"
    )
    console.print(table(found), highlight=False)
    if options.json:
        rounds = {way: list(map(attrs.asdict, rounds)) for way, rounds in found.items()}
        machine.save(options.json, rounds)


if __name__ == "__main__":
    main()
