"""What quiet WebSockets cost a server that pings them:
``python benchmarks/experiment.py idle_websockets``.

Each server has a number of WebSockets from this process, which were opened with what a
browser's handshake says, have sent nothing since, and answer its pings. What is measured: by
how much the server's resident set has grown, for each of them; its CPU time while they are
quiet; and then, during one more interval, how many functions of Python it calls for a ping,
in the thread that runs the loop. Peers are beside it where they are installed.
"""

from __future__ import annotations

import argparse
import asyncio
import select
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import attrs
from rich.console import Console
from rich.table import Column, Table

from harness.answers import answer_all, say
from harness.machine import Machine
from harness.memory import Footprint
from harness.servers import missing
from harness.serving import HOST, run_asyncio
from harness.worker import Worker
from trio_wknet._load.cpu import cpu_seconds
from trio_wknet._load.target import reserve_descriptors

WARMING = 50
"""Connections that come first and are not counted: what a server makes once."""
PEER = "websockets-uvloop"
OURS = {
    "wknet-threaded": (1, "tasks"),
    "wknet-inloop": (0, "tasks"),
    "wknet-threaded-events": (1, "events"),
    "wknet-inloop-events": (0, "events"),
}
SERVERS = (*OURS, PEER)
REQUEST = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\n%sConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
HEADERS = {
    "few": b"",
    "browser": (
        b"Pragma: no-cache\r\nCache-Control: no-cache\r\nUser-Agent: Mozilla/5.0 (X11; Linux "
        b"x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0.0.0 Safari/537.36\r\n"
        b"Origin: http://localhost\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n"
        b"Accept-Language: en-US,en;q=0.9\r\nSec-WebSocket-Extensions: permessage-deflate; "
        b"client_max_window_bits\r\nCookie: session=0123456789abcdef0123456789abcdef\r\n"
    ),
}
PING, PONG = 0x89, 0x8A


# --- the servers --------------------------------------------------------------------


class Calls:
    """The functions of Python that a thread calls."""

    def __init__(self) -> None:
        self._count = 0

    def _note(self, frame: object, event: str, argument: object) -> None:
        self._count += event == "call"

    def start(self) -> None:
        self._count = 0
        sys.setprofile(self._note)

    def stop(self) -> int:
        sys.setprofile(None)
        return self._count


def answer(run_there: Callable[[Callable[[], Any]], Any]) -> None:
    """Until standard input ends. `run_there` runs a function in the loop's thread."""
    calls = Calls()
    answers = {"start": calls.start, "stop": calls.stop}
    answer_all(sys.stdin, {name: partial(run_there, do) for name, do in answers.items()})


def serve_ours(reactors: int, form: str, interval: float) -> None:
    import trio

    from trio_wknet import WebSocketOptions, open_wknet_listener

    async def task(websocket: Any) -> None:
        with suppress(Exception):
            async for message in websocket:
                await websocket.send(message)

    def event(websocket: Any, messages: list[Any]) -> None:
        websocket.send_many_nowait(messages)

    async def main() -> None:
        options = WebSocketOptions(ping_interval=interval, ping_timeout=60 + interval)
        async with (
            open_wknet_listener(f"ws://{HOST}:0", reactors=reactors, websocket=options) as listener,
            trio.open_nursery() as nursery,
        ):
            say(listener.address[1])
            if form == "events":
                nursery.start_soon(listener.serve_messages, event)
            else:
                nursery.start_soon(listener.serve, task)
            await trio.to_thread.run_sync(answer, trio.from_thread.run_sync)
            nursery.cancel_scope.cancel()

    trio.run(main)


def serve_websockets(interval: float) -> None:
    async def echo(websocket: Any) -> None:
        with suppress(Exception):
            async for message in websocket:
                await websocket.send(message)

    async def main() -> None:
        from websockets.asyncio.server import serve

        loop = asyncio.get_running_loop()

        async def call(function: Callable[[], Any]) -> Any:
            return function()

        def run_there(function: Callable[[], Any]) -> Any:
            return asyncio.run_coroutine_threadsafe(call(function), loop).result()

        options: Any = {"ping_interval": interval, "ping_timeout": 60 + interval}
        async with serve(echo, HOST, 0, compression=None, **options) as listening:
            say(listening.sockets[0].getsockname()[1])
            await asyncio.to_thread(answer, run_there)

    run_asyncio(main, use_uvloop=True)


# --- the clients --------------------------------------------------------------------


class Crowd:
    """WebSockets that say nothing, and answer pings."""

    def __init__(self, port: int, headers: str, stack: ExitStack) -> None:
        self._port = port
        self._request = REQUEST % HEADERS[headers]
        self._stack = stack
        self._poll = stack.enter_context(select.epoll())
        self._socks: dict[int, socket.socket] = {}
        self.answered = 0

    def connect(self, count: int) -> None:
        for _ in range(count):
            sock = self._stack.enter_context(socket.create_connection((HOST, self._port)))
            sock.settimeout(60)
            sock.sendall(self._request)
            said = b""
            while b"\r\n\r\n" not in said:
                said += sock.recv(4096)
            if not said.startswith(b"HTTP/1.1 101 "):
                raise RuntimeError(f"the server said {said!r}")
            self._poll.register(sock, select.EPOLLIN)
            self._socks[sock.fileno()] = sock
            self._answer(sock, said.partition(b"\r\n\r\n")[2])

    def tend(self, seconds: float) -> None:
        """Answer pings for a while."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            for fd, _ in self._poll.poll(left):
                sock = self._socks[fd]
                self._answer(sock, sock.recv(4096) or b"\0")

    def _answer(self, sock: socket.socket, frames: bytes) -> None:
        """Pings are short, and so come whole."""
        while frames:
            if frames[0] != PING:
                raise RuntimeError(f"the server sent {frames!r}, or has left")
            size = frames[1]
            key = bytes(4)
            sock.sendall(bytes([PONG, 0x80 | size]) + key + frames[2 : 2 + size])
            self.answered += 1
            frames = frames[2 + size :]


# --- measuring ----------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Course:
    """What became of one server's WebSockets."""

    connections: int
    seconds: float
    resident: float
    """Bytes for each."""
    cpu: float
    """Seconds, of the server, while they were quiet."""
    pings: int
    """Meanwhile, each answered."""
    counted_pings: int
    calls: int
    """Functions of Python that were called during those."""


def counted(server: Worker, wait: Callable[[], None]) -> int:
    """The calls of Python meanwhile, with those that it takes to ask for them."""
    server.ask("start")
    server.answer()
    wait()
    server.ask("stop")
    return int(server.answer())


def measure(name: str, options: argparse.Namespace) -> Course:
    """A fresh server, with its WebSockets. Raises `OSError` if this process may not have as
    many descriptors."""
    reserve_descriptors(options.connections + WARMING)
    with (
        Worker(
            "experiments/idle_websockets.py", "--serve", name, f"--interval={options.interval}"
        ) as server,
        ExitStack() as stack,
    ):
        crowd = Crowd(server.answer(), options.headers, stack)
        crowd.connect(WARMING)
        asking = counted(server, lambda: None)
        before = Footprint.of(server.pid).resident
        crowd.connect(options.connections)
        resident = Footprint.of(server.pid).resident - before
        cpu, pings = cpu_seconds(server.pid), crowd.answered
        crowd.tend(options.seconds)
        cpu, pings = cpu_seconds(server.pid) - cpu, crowd.answered - pings
        first = crowd.answered
        calls = counted(server, partial(crowd.tend, options.interval)) - asking
        return Course(
            connections=options.connections,
            seconds=options.seconds,
            resident=resident / options.connections,
            cpu=cpu,
            pings=pings,
            counted_pings=crowd.answered - first,
            calls=calls,
        )


def table(found: dict[str, Course]) -> Table:
    server = Column("server", no_wrap=True)
    shown = Table(server, "bytes", "CPU", "core", "pings", "each", "calls")
    for name, course in found.items():
        each = f"{course.cpu / course.pings * 1e6:.1f} µs" if course.pings else "-"
        calls = f"{course.calls / course.counted_pings:.2f}" if course.counted_pings else "-"
        share = f"{course.cpu / course.seconds:.2%}"
        cpu = f"{course.cpu:.3f} s"
        shown.add_row(name, f"{course.resident:,.0f}", cpu, share, f"{course.pings:,}", each, calls)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure quiet WebSockets with pings.")
    parser.add_argument("--connections", type=int, default=10_000, help="default 10000")
    parser.add_argument("--interval", type=float, default=30.0, help="of pings, seconds")
    parser.add_argument("--seconds", type=float, default=60.0, help="of quiet; default 60")
    parser.add_argument("--headers", choices=list(HEADERS), default="browser")
    parser.add_argument("--only", action="append", choices=SERVERS, help="may be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to FILE")
    parser.add_argument("--serve", choices=SERVERS, help="be a server instead")
    options = parser.parse_args()
    if options.serve:
        reserve_descriptors(15_000)
        if options.serve == PEER:
            serve_websockets(options.interval)
        else:
            serve_ours(*OURS[options.serve], options.interval)
        return
    console, machine = Console(), Machine.here()
    console.print(str(machine), highlight=False)
    names = [name for name in options.only or SERVERS if name != PEER or not missing(PEER)]
    found = {}
    with console.status("") as status:
        for name in names:
            status.update(name)
            found[name] = measure(name, options)
    console.print(f"{options.connections:,} WebSockets, a ping each {options.interval:g} s")
    console.print(table(found))
    if options.json:
        results = {name: attrs.asdict(course) for name, course in found.items()}
        machine.save(options.json, results)


if __name__ == "__main__":
    main()
