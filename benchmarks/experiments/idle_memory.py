"""What an idle connection costs a server in memory:
``python benchmarks/experiment.py idle_memory``.

Each server runs in a process of its own, and has a number of connections from this one,
each of which has sent a byte and got it back, and is silent since. What counts is by how
much the server's resident set has grown, divided by the connections. Memory of the
kernel, which is the same for all, is not in it.
"""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from statistics import median
from typing import Any

import attrs
from rich.console import Console
from rich.table import Table

from harness.measure import Server
from harness.memory import Footprint
from harness.servers import missing
from harness.worker import WorkerFailed
from trio_wknet._load.target import reserve_descriptors

WARMING = 200
"""Connections that come first and are not counted: what a server makes once."""

FORMS = {
    "trio": "Trio, a task for each connection",
    "wknet-threaded": "trio_wknet, the same",
    "wknet-threaded-idle": "trio_wknet, the same, with an idle timeout",
    "wknet-threaded-events-idle": "trio_wknet, event mode, with an idle timeout",
    "wknet-inloop-events-idle": "the same, in-loop",
    "anyio-trio": "anyio on trio, a task for each connection",
    "anyio-asyncio": "anyio on asyncio, the same",
    "asyncio-streams": "asyncio streams",
    "asyncio-protocol": "asyncio, a Protocol for each connection",
    "uvloop-streams": "asyncio streams on uvloop",
    "uvloop-protocol": "uvloop, a Protocol for each connection",
    "gevent": "gevent, a greenlet for each connection",
    "c-epoll": "C, a struct for each connection",
}


@attrs.frozen
class Wanted:
    """What an idle connection may cost at most."""

    server: str
    size: int


WANTED = (
    Wanted("wknet-threaded-idle", 4000),
    Wanted("wknet-threaded-events-idle", 512),
    Wanted("wknet-inloop-events-idle", 512),
)


def hold(stack: ExitStack, port: int, count: int) -> None:
    """Open connections, each of which has been served once."""
    for _ in range(count):
        sock = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        sock.sendall(b"x")
        if sock.recv(1) != b"x":
            raise RuntimeError("a connection was not served")


def growth(server: str, counts: Sequence[int]) -> list[int]:
    """A fresh server's resident set, in bytes, with a number of connections beside those that
    come first; the counts rise.

    Raises `OSError` if this process may not have that number of descriptors.
    """
    reserve_descriptors(counts[-1] + WARMING)
    sizes, held = [], 0
    with Server(server) as running, ExitStack() as stack:
        hold(stack, running.port, WARMING)
        for count in counts:
            hold(stack, running.port, count - held)
            held = count
            sizes.append(Footprint.of(running.pid).resident)
    return sizes


def measure(server: str, connections: int) -> float:
    """Bytes that one idle connection costs a fresh server. Raises as `growth` does."""
    before, after = growth(server, (0, connections))
    return (after - before) / connections


@attrs.frozen
class Growth:
    """Servers' resident sets by connections, in bytes."""

    counts: tuple[int, ...]
    rounds: dict[str, list[list[int]]]

    def median(self, server: str) -> list[float]:
        """By count, of all rounds."""
        return [median(sizes) for sizes in zip(*self.rounds[server], strict=True)]

    def each(self, server: str) -> float:
        """Bytes for one connection: from the least to the most of them."""
        least, *_, most = self.median(server)
        return (most - least) / (self.counts[-1] - self.counts[0])

    def to_json(self) -> dict[str, Any]:
        return {
            "counts": self.counts,
            "servers": {
                server: {
                    "form": FORMS[server],
                    "resident": self.median(server),
                    "each": self.each(server),
                    "rounds": rounds,
                }
                for server, rounds in self.rounds.items()
            },
        }


def growth_of_all(
    counts: tuple[int, ...],
    rounds: int,
    report: Callable[[str], object],
    only: Sequence[str] | None = None,
) -> Growth:
    """Of all servers that can run here, or of those named."""
    names = [name for name in FORMS if (not only or name in only) and missing(name) is None]
    found = Growth(counts, {name: [] for name in names})
    for number in range(rounds):
        for name in names:
            report(f"memory, round {number + 1}, {name}")
            found.rounds[name].append(growth(name, counts))
    return found


def growth_table(found: Growth) -> Table:
    result = Table(title="Resident set by idle connections, MiB", title_justify="left")
    result.add_column("server")
    for count in found.counts:
        result.add_column(f"{count:,}", justify="right")
    result.add_column("bytes for each", justify="right")
    for server in found.rounds:
        sizes = [f"{size / (1 << 20):.1f}" for size in found.median(server)]
        result.add_row(FORMS[server], *sizes, f"{found.each(server):,.0f}")
    return result


def table(found: dict[str, float], connections: int) -> Table:
    result = Table(title=f"{connections} idle connections", title_justify="left")
    result.add_column("server")
    for head in ("bytes for each", "of Trio's", "at most", ""):
        result.add_column(head, justify="right")
    wanted = {one.server: one.size for one in WANTED}
    for server, size in found.items():
        most = wanted.get(server)
        met = "" if most is None else "[green]met" if size <= most else "[bold red]MISSED"
        ratio = f"{size / found['trio']:.2f}" if "trio" in found else "-"
        result.add_row(FORMS[server], f"{size:,.0f}", ratio, str(most or ""), met)
    return result


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What idle connections cost in memory.")
    parser.add_argument("--connections", type=int, default=10_000, help="default 10000")
    parser.add_argument("--only", action="append", choices=list(FORMS), help="may be repeated")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    try:
        found = {
            server: measure(server, arguments.connections)
            for server in FORMS
            if (not arguments.only or server in arguments.only) and missing(server) is None
        }
    except (OSError, WorkerFailed) as exc:
        sys.exit(f"idle_memory.py: {exc}")
    Console().print(table(found, arguments.connections))


if __name__ == "__main__":
    main()
