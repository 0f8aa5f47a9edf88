"""What TLS costs a server beside Trio's and uvloop's: ``python benchmarks/experiment.py tls``.

What counts is the server's CPU for a message, a handshake or a request, and its memory for an
idle connection. Servers are measured in turn, round by round, each time in a fresh process, the
server on a core of its own and the load on another. All speak TLS 1.3 with AES-GCM, the
certificate has a key of ECDSA P-256, and no session is resumed.

The load is in C, on the system's libssl (Debian's libssl-dev), so that it is not what holds a
server up. With a slow load a server would find few connections ready at a time, and its turns
would be shared by fewer messages. ``load's cores`` says how many cores the load kept busy: near
1, it was the limit. Needs trustme, uvloop, hypercorn and a C compiler.
"""

from __future__ import annotations

import argparse
import os
import socket
import ssl
import time
from collections.abc import Container
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import attrs
from rich.console import Console
from rich.table import Table

from harness import tls_servers
from harness.compiled import compiled
from harness.machine import Machine
from harness.measure import running_on
from harness.memory import Footprint
from harness.rounds import in_turn
from harness.tls_servers import HOST, OWN, PEER, SERVERS
from harness.worker import BENCHMARKS, Worker
from trio_wknet._load.cpu import cpu_seconds
from trio_wknet._load.target import reserve_descriptors

OURS, INLOOP, THEIRS_ON_OURS = "wknet-threaded", "wknet-inloop", "sslstream-on-wknet"
WARMING = 100
"""Idle connections that come first and are not counted: what a server makes once."""


@attrs.frozen
class Row:
    """One line of what is to be shown."""

    title: str
    servers: tuple[str, ...]
    size: int = 0
    """Bytes of a message; 0: handshakes."""
    in_flight: int = 0
    """Messages on each connection; 0: none, it is idle."""
    wanted: dict[str, float] = attrs.field(factory=dict)
    """By server: how many times ours it is to cost at least."""
    asks: bytes = b""
    """A request, instead of a message that is echoed."""


ROWS = {
    "echo-64": Row(
        "echo of 64 B",
        (OURS, INLOOP, THEIRS_ON_OURS, OWN, PEER),
        64,
        1,
        {OWN: 3.5, PEER: 1.15},
    ),
    "echo-64k": Row("echo of 64 KiB", (OURS, INLOOP, OWN, PEER), 65536, 1, {OWN: 3.0, PEER: 1.0}),
    "depth-16": Row("64 B, 16 in flight", (OURS, INLOOP, PEER), 64, 16, {PEER: 1.3}),
    "handshakes": Row("full handshakes", (OURS, OWN, PEER), wanted={OWN: 1.2, PEER: 1.0}),
    "idle": Row("idle connection", (OURS, OWN, PEER), 1, 0, {PEER: 1 / 0.9}),
    "hypercorn": Row(
        "hypercorn, one-line application",
        ("hypercorn-wknet", "hypercorn-trio"),
        in_flight=1,
        wanted={"hypercorn-trio": 1.1},
        asks=b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ),
}


@attrs.frozen
class Settings:
    rounds: int
    duration: float
    connections: int
    idle: int
    warmup: float = 0.3


@attrs.frozen
class Round:
    """What one server did, once."""

    cost: float
    """Seconds of the server's CPU for a message; of an idle connection, bytes of memory."""
    per_second: float = 0.0
    load_busy: float = 0.0
    """How many cores the load kept busy."""


# --- the load -----------------------------------------------------------------------


class Server(Worker):
    def __init__(self, name: str, core: int) -> None:
        super().__init__("experiments/tls.py", "--serve", name, f"--core={core}")
        self.port = int(self.answer())


class Load(Worker):
    """The program in C. ``size`` is that of an answer."""

    def __init__(self, port: int, connections: int, size: int, in_flight: int, asks: bytes) -> None:
        program = compiled(BENCHMARKS / "harness" / "tls_load.c", "ssl", "crypto")
        numbers = map(str, (port, connections, size, in_flight))
        question = [asks.decode()] if asks else []
        super().__init__(str(program), *numbers, *question, interpreter=())
        self.answer()  # all are connected

    def count(self) -> int:
        self.ask()
        return int(self.answer())


def answer_size(port: int, asks: bytes) -> int:
    """Of an answer, which comes as it is every time."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with context.wrap_socket(socket.create_connection((HOST, port), 10)) as sock:
        sock.sendall(asks)
        answer = b""
        while not answer.endswith(b"\r\n\r\nhello"):
            answer += sock.recv(65536)
    return len(answer)


def messages(server: Server, row: Row, settings: Settings) -> Round:
    """Of a server under load, for a while."""
    size = answer_size(server.port, row.asks) if row.asks else row.size
    with Load(server.port, settings.connections, size, row.in_flight, row.asks) as load:
        time.sleep(settings.warmup)
        began, before = time.perf_counter(), load.count()
        spent, own = cpu_seconds(server.pid), cpu_seconds(load.pid)
        time.sleep(settings.duration)
        answered, took = load.count() - before, time.perf_counter() - began
        spent, own = cpu_seconds(server.pid) - spent, cpu_seconds(load.pid) - own
    if not answered:
        raise RuntimeError(f"nothing was answered: {row.title}")
    return Round(spent / answered, answered / took, own / took)


def idle(server: Server, row: Row, settings: Settings) -> Round:
    """By how much a server grows with connections that were served once."""
    reserve_descriptors(WARMING + settings.idle)
    with Load(server.port, WARMING, row.size, 0, b""):
        before = Footprint.of(server.pid).resident
        with Load(server.port, settings.idle, row.size, 0, b""):
            grown = Footprint.of(server.pid).resident - before
    return Round(grown / settings.idle)


def measure(row: Row, server: Server, settings: Settings) -> Round:
    if row.size and not row.in_flight:
        return idle(server, row, settings)
    return messages(server, row, settings)


def measure_row(
    row: Row, settings: Settings, number: int, only: Container[str]
) -> dict[str, Round]:
    """One round of the servers that are wanted. Each begins with another one."""
    cores = sorted(os.sched_getaffinity(0))
    found = {}
    for name in in_turn(tuple(who for who in row.servers if who in only), number):
        with ExitStack() as stack:
            server = stack.enter_context(Server(name, cores[0]))
            stack.enter_context(running_on({cores[-1]}))
            found[name] = measure(row, server, settings)
    return found


# --- what is shown ------------------------------------------------------------------

Found = dict[str, dict[str, list[Round]]]


def _middle(rounds: list[Round]) -> Round:
    return Round(*(median(column) for column in zip(*map(attrs.astuple, rounds), strict=True)))


def table(found: Found) -> Table:
    """Medians of rounds. A ratio says how many times the first server of a row one costs."""
    shown = Table("", "server", "cost", "a second", "load's cores", "of ours", "at least")
    for name, servers in found.items():
        row = ROWS[name]
        middle = {who: _middle(servers[who]) for who in row.servers if who in servers}
        is_idle = name == "idle"
        first = row.servers[0]
        for who, one in middle.items():
            ratio = one.cost / middle[first].cost if first in middle else 1.0
            wanted = row.wanted.get(who) if first in middle else None
            missed = wanted is not None and ratio < wanted
            shown.add_row(
                row.title if who == next(iter(middle)) else "",
                who,
                f"{one.cost / 1024:.1f} KiB" if is_idle else f"{one.cost * 1e6:.1f} µs",
                f"{one.per_second:,.0f}" if one.per_second else "",
                f"{one.load_busy:.2f}" if one.load_busy else "",
                f"[bold red]{ratio:.2f}" if missed else f"{ratio:.2f}",
                "" if wanted is None else f"{wanted:.2f}",
            )
        shown.add_section()
    return shown


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure TLS beside Trio's and uvloop's.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", action="append", choices=list(ROWS), help="may be repeated")
    parser.add_argument("--server", action="append", choices=list(SERVERS), help="likewise")
    parser.add_argument("--duration", type=float, default=0.7, help="seconds of one round")
    parser.add_argument("--connections", type=int, default=100)
    parser.add_argument("--idle", type=int, default=2000, help="idle connections")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to FILE")
    parser.add_argument("--serve", choices=list(SERVERS), help="be a server instead")
    parser.add_argument("--core", type=int, default=0, help="of --serve")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    if arguments.serve:
        tls_servers.run(arguments)
        return
    settings = Settings(arguments.rounds, arguments.duration, arguments.connections, arguments.idle)
    only = arguments.server or SERVERS
    console, machine = Console(), Machine.here()
    console.print(str(machine), highlight=False)
    found: Found = {name: {} for name in ROWS if name in (arguments.only or ROWS)}
    with console.status("") as status:
        for number in range(settings.rounds):
            for name, servers in found.items():
                # What memory it takes hardly varies.
                if name != "idle" or number == 0:
                    status.update(f"{name}, round {number + 1} of {settings.rounds}")
                    for who, one in measure_row(ROWS[name], settings, number, only).items():
                        servers.setdefault(who, []).append(one)
    console.print(table(found), highlight=False)
    if arguments.json:
        results = {
            name: {who: [attrs.asdict(it) for it in rounds] for who, rounds in servers.items()}
            for name, servers in found.items()
        }
        machine.save(arguments.json, results, settings=attrs.asdict(settings))


if __name__ == "__main__":
    main()
