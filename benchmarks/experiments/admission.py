"""A server that faces the internet: ``python benchmarks/experiment.py admission``.

What hostile clients cost the honest ones, and what it costs to be guarded: many connections that
say nothing, or one byte a second; thousands from one address; and an echo with everything
switched on, against one without. The honest load is open loop: 100 connections, at a fixed rate.
The server is in event mode. It takes some two minutes.
"""

from __future__ import annotations

import argparse
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs
from rich.console import Console

from harness.answers import say
from harness.compiled import compiled
from harness.machine import Machine
from harness.memory import Footprint
from harness.verdicts import Row, echo, echo_cost, table
from harness.worker import BENCHMARKS, Worker
from trio_wknet._load.cpu import cpu_seconds
from trio_wknet._load.options import LoadOptions
from trio_wknet._load.run import LoadProgress, LoadResult, run_load
from trio_wknet._load.target import reserve_descriptors

HOST = "127.0.0.1"
FLOOD = "127.0.0.2"  # where hostile clients come from
SCRIPT = "experiments/admission.py"
HONEST = 100
RATE = 2000.0  # honest messages a second
FIRST_BYTE = 5.0  # seconds
WINDOW = 10.0
MIN_RATE = 100  # bytes a second
PER_ADDRESS = 100
ARRIVALS = 2500.0  # hostile connections a second
PATIENCE = 40.0  # seconds that hostile clients wait for their end


# --- the server -----------------------------------------------------------------------------


def serve(guard: str, reactors: int) -> None:
    """Echo: unguarded (``off``), with every setting (``on``), or with a limit by address."""
    import trio

    from trio_wknet import Admission, Conn, open_wknet_listener

    admissions = {
        "off": None,
        "on": Admission(
            max_connections=15_000,
            max_per_address=15_000,
            accept_rate=1_000_000,
            first_byte_time=FIRST_BYTE,
            min_rate=MIN_RATE,
            rate_window=WINDOW,
            trusted=["192.0.2.0/24"],
        ),
        "address": Admission(max_per_address=PER_ADDRESS, trusted=[HOST]),
    }

    def answer(conn: Conn) -> None:
        with suppress(trio.BrokenResourceError):
            data = conn.receive_nowait()
            if len(data) > 1:  # who trickles gets no answer
                conn.send_nowait(data)

    async def main() -> None:
        address = f"tcp://{HOST}:0"
        reserve_descriptors(16_000)
        async with (
            open_wknet_listener(
                address, reactors=reactors, admission=admissions[guard]
            ) as listener,
            trio.open_nursery() as nursery,
        ):
            await nursery.start(listener.serve_events, answer)
            say(listener.address[1])
            await trio.to_thread.run_sync(sys.stdin.read)  # until the parent closes it
            nursery.cancel_scope.cancel()

    trio.run(main)


@contextmanager
def server(guard: str, reactors: int) -> Iterator[tuple[Worker, int]]:
    with Worker(SCRIPT, "--serve", guard, "--reactors", str(reactors)) as worker:
        yield worker, worker.answer()


# --- hostile clients ------------------------------------------------------------------------


def attack(port: int, kind: str, count: int) -> None:
    """Connect all, and then be ``quiet``, or ``trickle``. Says how many are connected, and then how
    long after its connect the first and the last was cut off, and how many were not."""
    reserve_descriptors(count)
    opened: dict[int, tuple[socket.socket, float]] = {}
    refused = 0
    began = time.monotonic()
    for number in range(count):
        time.sleep(max(0.0, began + number / ARRIVALS - time.monotonic()))
        sock = socket.socket()
        sock.bind((FLOOD, 0))
        try:
            sock.connect((HOST, port))
        except ConnectionResetError:
            refused += 1
            sock.close()
            continue
        sock.setblocking(False)
        opened[sock.fileno()] = (sock, time.monotonic())
    say(len(opened))
    gone = _be_cut_off(opened, trickle=kind == "trickle")
    ended = {"first": min(gone), "last": max(gone)} if gone else {"first": 0.0, "last": 0.0}
    say({**ended, "refused": refused + len(gone), "left": len(opened)})
    sys.stdin.read()


def _be_cut_off(opened: dict[int, tuple[socket.socket, float]], *, trickle: bool) -> list[float]:
    after: list[float] = []
    until = time.monotonic() + PATIENCE
    next_byte = time.monotonic()
    asked = select.poll()
    asked.register(sys.stdin, select.POLLIN)
    with select.epoll() as poller:
        for fd in opened:
            poller.register(fd, select.EPOLLIN)
        while opened and time.monotonic() < until and not asked.poll(0):
            if trickle and time.monotonic() >= next_byte:
                next_byte += 1
                for sock, _ in opened.values():
                    with suppress(OSError):
                        sock.send(b".")
            for fd, _ in poller.poll(0.1):
                sock, since = opened[fd]
                with suppress(ConnectionResetError):
                    if sock.recv(1000):
                        continue
                after.append(time.monotonic() - since)
                del opened[fd]
                sock.close()
    return after


# --- honest ones -------------------------------------------------------------------------------


def honest(port: int, seconds: float, note: Callable[[LoadProgress], object]) -> LoadResult:
    options = LoadOptions(HOST, port, connections=HONEST, rate=RATE, duration=seconds, warmup=0.5)
    result = run_load(options, on_progress=note)
    if not result.ok:
        raise SystemExit(f"the honest load failed: {result.errors}")
    return result


def nothing(_: LoadProgress) -> None:
    pass


def resident(worker: Worker) -> int:
    return Footprint.of(worker.pid).resident


# --- what is measured --------------------------------------------------------------------------


def slow_clients(kind: str, count: int, reactors: int) -> list[Row]:
    """They are cut off in time, and honest clients hardly see it."""
    last_allowed = FIRST_BYTE + 1 if kind == "quiet" else 1.5 * WINDOW + 2
    with server("on", reactors) as (worker, port):
        alone = honest(port, 5, nothing).latency.p99
        before = resident(worker)
        with Worker(SCRIPT, "--attack", kind, "--port", str(port), "--count", str(count)) as flood:
            arriving = count / ARRIVALS
            among = honest(port, arriving + last_allowed + 1, nothing).latency.p99
            opened = flood.answer(60)
            found = flood.answer(PATIENCE + 30)
        time.sleep(2)  # memory that was not needed for a second is given back
        grown = (resident(worker) - before) / opened
    name = f"{opened:,} {kind}"
    return [
        Row(what=f"{name}: left", value=found["left"], bound="0", met=found["left"] == 0),
        Row(
            what=f"{name}: the last gone after, s",
            value=found["last"],
            bound=f"{last_allowed:g}",
            met=found["last"] <= last_allowed,
        ),
        Row(
            what=f"{name}: honest p99, among them to alone",
            value=among / alone,
            bound="1.5",
            met=among <= 1.5 * alone,
        ),
        Row(
            what=f"{name}: memory that stays, bytes each",
            value=grown,
            bound="1000",
            met=grown <= 1000,
        ),
    ]


@contextmanager
def flood(port: int, count: int, server: int) -> Iterator[tuple[Worker, float]]:
    """Connections from one address, and the CPU time that each took of a server."""
    before = cpu_seconds(server)
    options = ("--port", str(port), "--count", str(count))
    with Worker(SCRIPT, "--attack", "quiet", *options) as worker:
        worker.answer(60)
        yield worker, (cpu_seconds(server) - before) / count * 1e6


def least_for_a_refusal(count: int) -> float:
    """In µs of CPU: a program in C that does nothing else."""
    program = compiled(BENCHMARKS / "harness" / "refuse.c")
    with (
        Worker(str(program), interpreter=()) as worker,
        flood(worker.answer(), count, worker.pid) as (clients, each),
    ):
        clients.ask("stop")
        clients.answer()
    return each


def one_address(count: int, reactors: int) -> list[Row]:
    """All but PER_ADDRESS are refused, at once and cheaply."""
    least = least_for_a_refusal(count)
    with server("address", reactors) as (worker, port):
        alone = honest(port, 3, nothing).latency.p99
        with flood(port, count, worker.pid) as (clients, each):
            among = honest(port, 3, nothing).latency.p99
            clients.ask("stop")
            found = clients.answer(PATIENCE + 30)
    refused = found["refused"]
    return [
        Row(
            what=f"{count:,} from one address: refused",
            value=refused,
            bound=f"{count - PER_ADDRESS}",
            met=refused == count - PER_ADDRESS,
        ),
        Row(what="CPU of a refusal, µs", value=each, bound="20", met=each <= 20),
        Row(
            what="CPU of a refusal, to that of a program in C",
            value=each / least,
            bound="1.25",
            met=each <= 1.25 * least,
        ),
        Row(
            what="honest p99 after it, to before",
            value=among / alone,
            bound="1.5",
            met=among <= 1.5 * alone,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what admission is for, and its cost.")
    parser.add_argument("--connections", type=int, default=10_000, help="that are slow")
    parser.add_argument("--flood", type=int, default=5000, help="connections from one address")
    parser.add_argument("--rounds", type=int, default=9, help="of the echo")
    parser.add_argument("--reactors", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to FILE")
    parser.add_argument("--serve", help="be a server instead")
    parser.add_argument("--attack", help="be hostile clients instead")
    parser.add_argument("--port", type=int)
    parser.add_argument("--count", type=int)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve, given.reactors)
        return
    if given.attack:
        attack(given.port, given.attack, given.count)
        return

    def one(form: str) -> tuple[float, float]:
        with server(form, given.reactors) as (worker, port):
            return echo(HOST, port, worker.pid, HONEST)

    console = Console(stderr=True)
    rows: list[Row] = []
    for kind in ("quiet", "trickle"):
        console.print(f"{kind} connections")
        rows += slow_clients(kind, given.connections, given.reactors)
    console.print("one address")
    rows += one_address(given.flood, given.reactors)
    rows += echo_cost("off", "on", given.rounds, one, console.print)
    Console().print(table(rows))
    if given.json:
        Machine.here().save(given.json, [attrs.asdict(row) for row in rows])


if __name__ == "__main__":
    main()
