"""A server whose memory has a bound: ``python benchmarks/experiment.py budget``.

Many connections send 1 MiB each to a server that never receives it, or that echoes to clients which
never read; its engine may hold 256 MiB. What counts is the server's resident memory at its
peak, and whether honest clients, an echo on another port of the same engine, go on meanwhile. And
what the bound costs: an echo with it, against one without. It takes some two minutes.

A connection takes a descriptor in the server and one in its client, which are two processes: so
`reserve_descriptors` allows 20 000 of them only where a process may have more than that.
"""

from __future__ import annotations

import argparse
import resource
import select
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
from rich.console import Console

from harness.answers import say
from harness.machine import Machine
from harness.memory import Footprint
from harness.verdicts import Row, echo, echo_cost, table
from harness.worker import Worker
from trio_wknet._load.options import LoadOptions
from trio_wknet._load.run import LoadProgress, LoadResult, run_load
from trio_wknet._load.target import reserve_descriptors

HOST = "127.0.0.1"
SCRIPT = "experiments/budget.py"
BUDGET = 256 << 20
IP_BIND_ADDRESS_NO_PORT = 24  # Linux's, which the socket module has from Python 3.12 on
EACH = 1 << 20
HONEST = 100
RATE = 2000.0  # honest messages a second
SPARE = 400  # descriptors that are not connections
SECONDS = 12  # that hostile clients send


# --- the server -----------------------------------------------------------------------------


def serve(kind: str, reactors: int) -> None:
    """Honest clients get an echo; hostile ones, at the second port, are never received from
    (``deaf``), or get an echo that they do not read (``echo``). ``off``: without a budget."""
    import trio

    from trio_wknet import Conn, open_engine

    def answer(conn: Conn) -> None:
        with suppress(trio.BrokenResourceError, trio.WouldBlock):
            conn.send_nowait(conn.receive_nowait())

    async def keep(listener: Any) -> None:
        kept = []
        while True:
            kept.append(await listener.accept())

    async def main() -> None:
        reserve_descriptors(limit() - SPARE)
        bound = None if kind == "off" else BUDGET
        async with (
            open_engine(reactors, max_buffered=bound) as engine,
            await engine.listen(f"tcp://{HOST}:0") as honest,
            await engine.listen(f"tcp://{HOST}:0") as hostile,
            trio.open_nursery() as nursery,
        ):
            await nursery.start(honest.serve_events, answer)
            if kind == "echo":
                await nursery.start(hostile.serve_events, answer)
            else:
                nursery.start_soon(keep, hostile)
            say([honest.address[1], hostile.address[1]])
            while await trio.to_thread.run_sync(sys.stdin.readline):  # until the parent closes it
                found = engine.statistics()
                say([found.connections, found.buffered, found.ended_by["budget"]])
            nursery.cancel_scope.cancel()

    trio.run(main)


@contextmanager
def server(kind: str, reactors: int) -> Iterator[tuple[Worker, int, int]]:
    with Worker(SCRIPT, "--serve", kind, "--reactors", str(reactors)) as worker:
        honest, hostile = worker.answer()
        yield worker, honest, hostile


def limit() -> int:
    """Descriptors that a process may have."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


# --- hostile clients ------------------------------------------------------------------------


def attack(port: int, count: int) -> None:
    """Connect all, and have each send EACH, without reading, for SECONDS. Says how many were
    connected."""
    reserve_descriptors(count)
    left: dict[int, tuple[socket.socket, int]] = {}
    for number in range(count):
        sock = socket.socket()
        # Several addresses, as one has not so many ports; and none is chosen before `connect`.
        sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((f"127.0.0.{2 + number % 8}", 0))
        sock.connect((HOST, port))
        sock.setblocking(False)
        left[sock.fileno()] = (sock, EACH)
    say(len(left))
    piece = bytes(65536)
    until = time.monotonic() + SECONDS
    everyone = [sock for sock, _ in left.values()]
    with select.epoll() as poller:
        for fd in left:
            poller.register(fd, select.EPOLLOUT | select.EPOLLET)
        while time.monotonic() < until:
            for fd, _ in poller.poll(0.1):
                sock, rest = left[fd]
                with suppress(OSError):
                    while rest:
                        rest -= sock.send(piece[:rest])
                left[fd] = (sock, rest)
    say("done")
    sys.stdin.read()
    del everyone


# --- honest ones -------------------------------------------------------------------------------


def honest_load(port: int, seconds: float) -> LoadResult:
    def nothing(_: LoadProgress) -> None:
        pass

    options = LoadOptions(HOST, port, connections=HONEST, rate=RATE, duration=seconds, warmup=0.5)
    return run_load(options, on_progress=nothing)


def most_resident(worker: Worker) -> int:
    """The most bytes of memory that a process has had at a time."""
    status = Path(f"/proc/{worker.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


# --- what is measured --------------------------------------------------------------------------


def flooded(kind: str, count: int, reactors: int) -> list[Row]:
    """Memory stays bounded, and honest clients are served."""
    with server(kind, reactors) as (worker, honest, hostile):
        alone = honest_load(honest, 3)
        with Worker(SCRIPT, "--attack", "--port", str(hostile), "--count", str(count)) as flood:
            opened = flood.answer(120)
            among = honest_load(honest, SECONDS)
            flood.answer(60)
            worker.ask("statistics")
            _, buffered, ended = worker.answer(30)
            peak = most_resident(worker)
            resident = Footprint.of(worker.pid).resident / BUDGET
    name = f"{opened:,} to one that {'echoes' if kind == 'echo' else 'is deaf'}"
    share = peak / BUDGET
    served = among.messages_per_second / alone.messages_per_second
    p99 = among.latency.p99 / alone.latency.p99
    return [
        Row(what=f"{name}: peak memory to budget", value=share, bound="1.3", met=share <= 1.3),
        Row(
            what=f"{name}: memory in the end to budget",
            value=resident,
            bound="1.3",
            met=resident <= 1.3,
        ),
        Row(
            what=f"{name}: held in the end, to budget",
            value=buffered / BUDGET,
            bound="1",
            met=buffered <= BUDGET,
        ),
        Row(what=f"{name}: ended for it", value=ended, bound="", met=True),
        Row(
            what=f"{name}: honest messages a second, among them to alone",
            value=served,
            bound="0.95",
            met=served >= 0.95 and among.ok,
        ),
        Row(what=f"{name}: honest p99, among them to alone", value=p99, bound="", met=True),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what a budget is for, and its cost.")
    parser.add_argument("--connections", type=int, default=20_000, help="that send 1 MiB each")
    parser.add_argument("--rounds", type=int, default=7, help="of the echo")
    parser.add_argument("--reactors", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to FILE")
    parser.add_argument("--serve", help="be a server instead")
    parser.add_argument("--attack", action="store_true", help="be hostile clients instead")
    parser.add_argument("--port", type=int)
    parser.add_argument("--count", type=int)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve, given.reactors)
        return
    if given.attack:
        attack(given.port, given.count)
        return

    def one(form: str) -> tuple[float, float]:
        with server(form, given.reactors) as (worker, port, _):
            return echo(HOST, port, worker.pid, HONEST)

    console = Console(stderr=True)
    rows: list[Row] = []
    count = min(given.connections, limit() - SPARE)
    if count < given.connections:
        console.print(f"{count} connections: a process may have {limit()} descriptors")
    for kind in ("deaf", "echo"):
        console.print(f"clients of a server that is {kind}")
        rows += flooded(kind, count, given.reactors)
    rows += echo_cost("off", "deaf", given.rounds, one, console.print)
    Console().print(table(rows))
    if given.json:
        Machine.here().save(given.json, [attrs.asdict(row) for row in rows])


if __name__ == "__main__":
    main()
