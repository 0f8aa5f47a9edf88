"""Rooms of people who talk, by the messaging service of examples/im and by the same service on
plain Trio: ``python benchmarks/experiment.py im``.

By default 10 000 WebSockets, in 100 rooms of 100; 1000 messages a second are said, which are
100 000 deliveries. Each service keeps every message in SQLite before it sends it. They differ in
what is below that: trio_wknet, websockets' server for Trio with its own broadcast, and
trio-websocket with a queue and a task for each member, whose queue may overflow. Measured are
deliveries a second, how late they are, and the server's CPU for a delivery. A service that cannot
bear that is measured again at a rate that it can.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

import attrs
from rich.table import Table

from harness.answers import say
from harness.serving import BACKLOG, HOST
from harness.turns import add_turns, show_turns
from harness.websocket_servers import websockets_on_trio
from harness.worker import BENCHMARKS, Worker
from trio_wknet._load.cpu import cpu_seconds
from trio_wknet._load.target import reserve_descriptors

SCRIPT = "experiments/im.py"
WAYS = ("wknet", "websockets", "trio-websocket")
QUEUE = 1000  # messages that wait for a member, in the peer that needs one

LOAD = (
    ("users", 10_000, "default 10 000"),
    ("rooms", 100, "default 100"),
    ("rate", 1000.0, "messages a second, in all rooms; default 1000"),
    ("seconds", 10.0, "default 10"),
    ("warmup", 3.0, "seconds before; default 3"),
    ("text", 100, "characters of a message; default 100"),
    ("processes", max(1, (os.cpu_count() or 1) // 2), "that are the users"),
)
TRIES = 3
PATIENCE = 80.0  # seconds after which a service is not tried again
LAG = 0.05  # seconds that the load may be behind without a remark
SHARE = 0.6  # of what a service delivered when it was asked for too much, to be tried next

sys.path.append(str(BENCHMARKS.parent))  # examples/im is no part of the package


@attrs.frozen(kw_only=True)
class Found:
    users: int
    rate: float
    """Messages a second."""
    deliveries: float = 0.0
    """A second."""
    expected: float = 0.0
    arrived: float = 0.0
    """Of what was said, with what came after the end."""
    p50: float = 0.0
    p99: float = 0.0
    """Seconds."""
    cpu: float = 0.0
    """Seconds for a delivery, of the server."""
    lost: int = 0
    """Connections."""
    behind: float = 0.0
    """Seconds that the load was behind itself, at most."""

    @property
    def is_held(self) -> bool:
        """Whether the service bore it."""
        return self.arrived > 0.99 and self.p99 < 2 and not self.lost


# --- the servers ------------------------------------------------------------------------


async def until_end_of_input() -> None:
    import trio

    await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


async def serve_ours(file: str) -> None:
    import trio

    from examples.im.server import run
    from examples.im.store import open_local

    async with trio.open_nursery() as nursery:
        _, web = await nursery.start(run, partial(open_local, file), HOST, 0, 0)
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
        from examples.im import protocol

        name, room = "", ""
        try:
            while True:
                message = protocol.decode(await receive())
                if message["type"] == "login":
                    name = await self._named(message["name"], message["token"])
                elif message["type"] == "join" and name:
                    room = message["room"]
                    self._rooms[room].add(member)
                    await send(protocol.encode(type="joined", room=room))
                elif message["type"] == "say" and room:
                    said = {"from": name, "text": message["text"]}
                    at = round(time.time(), 3)
                    text = protocol.encode(type="said", room=room, **said, at=at, ref=None)
                    await self._queue.send((room, text))
        finally:
            self._rooms[room].discard(member)

    async def _named(self, name: str, token: str) -> str:
        kept = sha256(token.encode()).hexdigest()
        return name if await self._database.once(f"name:{name}", kept) == kept else ""

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
    from websockets.trio.server import broadcast

    peer = Peer(database, broadcast)

    async def handler(websocket: Any) -> None:
        with suppress(ConnectionClosed):
            await peer.serve(websocket, websocket.recv, websocket.send)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.deliver)
        await websockets_on_trio(handler, until_end_of_input)
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


async def serve(way: str, file: str) -> None:
    from examples.im.store import open_local
    from trio_wknet import open_engine

    if way == "wknet":
        await serve_ours(file)
        return
    async with open_engine(0) as engine, open_local(file, engine) as database:
        await (serve_websockets if way == "websockets" else serve_trio_websocket)(database)


# --- measuring --------------------------------------------------------------------------


def measure(way: str, options: argparse.Namespace, folder: Path) -> list[Found]:
    """At the size and the rate that are asked for; and then, where they are too much, at what
    can be borne."""
    found: list[Found] = []
    users, rooms, rate = options.users, options.rooms, options.rate
    until = time.monotonic() + PATIENCE
    while len(found) < TRIES and time.monotonic() < until:
        one = put_load(way, users, rooms, rate, options, folder)
        found.append(one)
        if one.is_held:
            break
        if one.expected == 0:  # they could not even log in
            users, rooms, rate = users // 2, max(1, rooms // 2), rate / 2
        else:
            rate = min(rate / 2, SHARE * one.deliveries * rooms / users)
    return found


def put_load(
    way: str, users: int, rooms: int, rate: float, options: argparse.Namespace, folder: Path
) -> Found:
    from examples.im.load import Load, crowd, talk

    file = str(folder / f"{way}-{time.monotonic_ns()}.db")
    with Worker(SCRIPT, "--serve", way, "--file", file) as server:
        load = Load(
            host=HOST,
            port=0,
            web_port=server.answer(),
            users=users,
            rooms=rooms,
            text=options.text,
            processes=options.processes,
        )
        try:
            with crowd(load) as pipes:
                meter = partial(cpu_seconds, server.pid)
                times = {"seconds": options.seconds, "warmup": options.warmup}
                result = talk(load, pipes, rate=rate, meter=meter, **times)
        except SystemExit:
            return Found(users=users, rate=rate)
    return Found(
        users=users,
        rate=rate,
        deliveries=result.deliveries,
        expected=rate * users / rooms,
        arrived=result.arrived,
        p50=result.p50,
        p99=result.p99,
        cpu=result.used / max(1.0, result.deliveries * options.seconds),
        lost=result.lost,
        behind=result.behind,
    )


def table(found: dict[str, list[list[Found]]]) -> Table:
    """Every try. The ratio is of the server's CPU for a delivery, to wknet's in its last."""
    shown = Table("service", "users", "said/s", "got/s", "of it", "p99 ms", "CPU µs", "ratio")
    for column in shown.columns:
        column.no_wrap = True
    ours = [tries[-1].cpu for tries in found.get("wknet", [])]
    remarks = []
    for way, rounds in found.items():
        for one in itertools.chain(*rounds):
            shown.add_row(
                way,
                f"{one.users:,}",
                f"{one.rate:,.0f}",
                f"{one.deliveries:,.0f}",
                f"{one.arrived:.0%}",
                f"{one.p99 * 1e3:.0f}",
                f"{one.cpu * 1e6:.1f}",
                f"{one.cpu / median(ours):.2f}" if ours else "",
            )
            if one.lost or one.behind > LAG:
                of = f"{way} at {one.rate:,.0f}/s"
                lag = f"the load was {one.behind * 1e3:.0f} ms behind"
                remarks.append(f"{of}: {one.lost} connections lost, {lag}")
    shown.caption = "\n".join(remarks)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure rooms of people who talk.")
    for name, default, what in LOAD:
        parser.add_argument(f"--{name}", type=type(default), default=default, help=what)
    add_turns(parser, rounds=1)
    parser.add_argument("--serve", choices=WAYS, help="be a server instead")
    parser.add_argument("--file", help="its database")
    options = parser.parse_args()
    if options.serve:
        import trio

        reserve_descriptors(15_000)
        trio.run(serve, options.serve, options.file)
        return
    with tempfile.TemporaryDirectory() as folder:
        show_turns(options, WAYS, partial(measure, options=options, folder=Path(folder)), table)


if __name__ == "__main__":
    main()
