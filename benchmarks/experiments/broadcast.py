"""One message to many: ``python benchmarks/experiment.py broadcast``.

For each way of sending it: how long Trio's loop stands still, the longest of its pauses from the
call to the end; and when the last member has the message. The members are sockets of another
process, which reads. Ways are measured in turn, round by round, each time with fresh processes.
With ``--websocket`` members speak WebSocket, and get a text. Needs a C compiler, and for
WebSocket websockets, picows and uvloop.
"""

from __future__ import annotations

import argparse
import select
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from statistics import median
from typing import Any

import attrs
from rich.table import Table

from harness.answers import answer_all, say
from harness.compiled import compiled
from harness.serving import BACKLOG, HOST, run_asyncio
from harness.turns import add_turns, show_turns
from harness.websocket_servers import websockets_on_trio
from harness.worker import BENCHMARKS, Worker
from trio_wknet._load.target import reserve_descriptors

SCRIPT = "experiments/broadcast.py"
TICK = 0.0005  # seconds
C = "c"
WAYS = (C, "threaded-group", "threaded-loop", "inloop-group", "inloop-loop")
WEBSOCKET_WAYS = ("threaded-group", "inloop-group", "websockets-trio", "picows-uvloop")
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@attrs.frozen
class Round:
    """What one broadcast took, in seconds."""

    stall: float
    """The longest pause of Trio's loop, or of whatever loop it is."""
    last: float
    """Until the last member had it."""
    cpu: float | None = None
    """Of the server, on average, of broadcasts without pauses; None: not measured."""


# --- the servers ------------------------------------------------------------------------


async def with_pauses(send: Callable[[], Awaitable[object]]) -> tuple[float, float]:
    """When it began, and how late a task was that wakes every TICK seconds, at most."""
    import trio

    latest = 0.0

    async def watch() -> None:
        nonlocal latest
        while True:
            due = time.monotonic() + TICK
            try:
                await trio.sleep(TICK)
            finally:
                latest = max(latest, time.monotonic() - due)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await trio.sleep(TICK)
        began = time.monotonic()
        await send()
        await trio.sleep(TICK)
        nursery.cancel_scope.cancel()
    return began, latest


async def cpu_each(send: Callable[[], Awaitable[object]], times: int) -> float:
    """The seconds of CPU that one of a number of broadcasts takes, in all threads."""
    began = time.process_time()
    for _ in range(times):
        await send()
    return (time.process_time() - began) / times


async def answer(send: Callable[[], Awaitable[object]]) -> None:
    """Broadcast whenever the parent says so, until standard input ends."""
    import trio

    def broadcast() -> tuple[float, float]:
        return trio.from_thread.run(with_pauses, send)

    def cost(times: int) -> float:
        return trio.from_thread.run(cpu_each, send, times)

    answers = {"broadcast": broadcast, "cost": cost}
    await trio.to_thread.run_sync(answer_all, sys.stdin, answers)


def serve_ours(way: str, count: int, message: str, *, websocket: bool) -> None:
    import trio

    from trio_wknet import open_engine

    reactors, how = 1 if way.startswith("threaded") else 0, way.rpartition("-")[2]
    members: list[Any] = []

    async def main() -> None:
        full = trio.Event()
        address = f"ws://{HOST}:0" if websocket else f"tcp://{HOST}:0"

        def join(member: Any) -> None:
            members.append(member)
            if len(members) == count:
                full.set()

        async with open_engine(reactors) as engine, await engine.listen(address) as listener:
            group = engine.group()

            async def by_group() -> None:
                await full.wait()
                await group.broadcast_nowait(message).wait()

            async def by_loop() -> None:
                await full.wait()
                data = message.encode()
                for member in members:
                    member.send_nowait(data)

            async def handler(member: Any) -> None:
                group.add(member)
                join(member)
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await (member.conn if websocket else member).wait_closed()

            say(listener.address[1])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listener.serve, handler)
                await full.wait()
                await answer(by_group if how == "group" else by_loop)
                nursery.cancel_scope.cancel()

    trio.run(main)


def serve_websockets(count: int, message: str) -> None:
    import trio
    from websockets.trio.server import broadcast

    members: set[Any] = set()

    async def main() -> None:
        full = trio.Event()

        async def handler(websocket: Any) -> None:
            members.add(websocket)
            if len(members) == count:
                full.set()
            with suppress(Exception):
                await websocket.recv()

        async def work() -> None:
            await full.wait()
            await answer(partial(broadcast, members, message))

        await websockets_on_trio(handler, work)

    trio.run(main)


def serve_picows(count: int, message: str) -> None:
    async def main() -> None:
        import asyncio

        from picows import WSListener, WSMsgType, ws_create_server

        members: list[Any] = []
        full = asyncio.Event()

        class Member(WSListener):
            def on_ws_connected(self, transport: Any) -> None:
                members.append(transport)
                if len(members) == count:
                    full.set()

        server = await ws_create_server(lambda request: Member(), HOST, 0, backlog=BACKLOG)
        say(server.sockets[0].getsockname()[1])
        loop, data = asyncio.get_running_loop(), message.encode()

        async def send() -> tuple[float, float]:
            began = time.monotonic()
            for transport in members:
                transport.send(WSMsgType.TEXT, data)
            return began, time.monotonic() - began

        def broadcast() -> tuple[float, float]:
            return asyncio.run_coroutine_threadsafe(send(), loop).result()

        await full.wait()
        await loop.run_in_executor(None, answer_all, sys.stdin, {"broadcast": broadcast})

    run_asyncio(main, use_uvloop=True)


def serve(way: str, count: int, size: int, *, websocket: bool) -> None:
    message = "x" * size
    reserve_descriptors(count)
    if way == "websockets-trio":
        serve_websockets(count, message)
    elif way == "picows-uvloop":
        serve_picows(count, message)
    else:
        serve_ours(way, count, message, websocket=websocket)


# --- the members ------------------------------------------------------------------------


def read(port: int, count: int, size: int, *, websocket: bool) -> None:
    """Be all members: say when each has got as many bytes."""
    if websocket:
        size += 2 if size < 126 else 4  # the header of a frame
    reserve_descriptors(count)
    poll, socks, left = select.epoll(), {}, {}
    for _ in range(count):
        sock = socket.create_connection((HOST, port), timeout=60)
        if websocket:
            sock.sendall(UPGRADE)
            head = b""
            while b"\r\n\r\n" not in head:
                head += sock.recv(1)
        poll.register(sock, select.EPOLLIN)
        socks[sock.fileno()] = sock
        left[sock.fileno()] = 0

    def wait(times: int = 1) -> float:
        """Until all have as many messages more."""
        for fd in left:
            left[fd] += size * times
        missing = sum(1 for n in left.values() if n > 0)
        while missing:
            for fd, _ in poll.poll():
                left[fd] -= len(socks[fd].recv(65536))
                missing -= left[fd] == 0
        return time.monotonic()

    say(count)
    answer_all(sys.stdin, {"wait": wait})


# --- measuring --------------------------------------------------------------------------


def started(way: str, count: int, size: int, *, websocket: bool) -> Worker:
    if way == C:
        program = compiled(BENCHMARKS / "harness" / "broadcast.c")
        return Worker(str(program), str(count), str(size), interpreter=())
    more = ("--websocket",) if websocket else ()
    return Worker(SCRIPT, "--serve", way, f"--members={count}", f"--size={size}", *more)


def measure(
    way: str, count: int, size: int, times: int, *, websocket: bool = False, burst: int = 0
) -> Round:
    """Medians of some broadcasts. The server's CPU is that of a burst of them."""
    more = ("--websocket",) if websocket else ()
    with started(way, count, size, websocket=websocket) as server:
        port = server.answer()
        arguments = ("--read", str(port), f"--members={count}", f"--size={size}", *more)
        with Worker(SCRIPT, *arguments) as members:
            members.answer()
            rounds = []
            for _ in range(times + 1):
                members.ask("wait")
                server.ask("broadcast")
                began, stall = server.answer()
                rounds.append((stall, members.answer() - began))
                time.sleep(0.02)
            del rounds[0]  # memory is taken
            stall, last = (median(column) for column in zip(*rounds, strict=True))
            if not burst:
                return Round(stall, last)
            members.ask("wait", burst)
            server.ask("cost", burst)
            cpu = server.answer()
            members.answer()
            return Round(stall, last, cpu)


def table(found: dict[str, list[Round]]) -> Table:
    """Medians of rounds, and ratios to the first way's."""
    shown = Table("way", "loop's longest pause", "the last has it", "to the first")
    rows = {
        way: (median(one.stall for one in rounds), median(one.last for one in rounds))
        for way, rounds in found.items()
    }
    first = next(iter(rows.values()))[1]
    for way, (stall, last) in rows.items():
        shown.add_row(way, f"{stall * 1e3:.2f} ms", f"{last * 1e3:.1f} ms", f"{last / first:.2f}")
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure one message to many.")
    add_turns(parser, rounds=5)
    parser.add_argument("--times", type=int, default=5, help="broadcasts of a round")
    parser.add_argument("--members", type=int, default=5000)
    parser.add_argument("--size", type=int, default=256, help="bytes")
    parser.add_argument("--websocket", action="store_true")
    parser.add_argument("--serve", help="be a server instead")
    parser.add_argument("--read", type=int, metavar="PORT", help="be the members instead")
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.members, options.size, websocket=options.websocket)
        return
    if options.read:
        read(options.read, options.members, options.size, websocket=options.websocket)
        return
    one = partial(
        measure,
        count=options.members,
        size=options.size,
        times=options.times,
        websocket=options.websocket,
    )
    show_turns(options, WEBSOCKET_WAYS if options.websocket else WAYS, one, table)


if __name__ == "__main__":
    main()
