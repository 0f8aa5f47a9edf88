"""What an idle connection costs a server in memory: ``python benchmarks/idle_memory.py``.

Each server runs in a process of its own, and has so many connections from this one,
each of which has sent a byte and got it back, and is silent since. What counts is by how
much the server's resident set has grown, divided by the connections. Memory of the
kernel, which is the same for all, is not in it.
"""

from __future__ import annotations

import argparse
import socket
import sys
from contextlib import ExitStack

import attrs
from measure import Server
from memory import Footprint
from rich.console import Console
from rich.table import Table
from worker import WorkerFailed

from trio_wknet._load_target import reserve_descriptors

WARMING = 200
"""Connections that come first and are not counted: what a server makes once."""

FORMS = {
    "trio": "Trio, a task for each connection",
    "wknet-threaded": "trio_wknet, the same",
    "wknet-threaded-idle": "trio_wknet, the same, with an idle timeout",
    "wknet-threaded-events-idle": "trio_wknet, event mode, with an idle timeout",
    "wknet-inloop-events-idle": "the same, in-loop",
    "uvloop-protocol": "uvloop, a Protocol for each connection",
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


def measure(server: str, connections: int) -> float:
    """Bytes that one idle connection costs a fresh server.

    Raises `OSError` if this process may not have so many descriptors.
    """
    reserve_descriptors(connections + WARMING)
    with Server(server) as running, ExitStack() as stack:
        hold(stack, running.port, WARMING)
        before = Footprint.of(running.pid).resident
        hold(stack, running.port, connections)
        return (Footprint.of(running.pid).resident - before) / connections


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
            if not arguments.only or server in arguments.only
        }
    except (OSError, WorkerFailed) as exc:
        sys.exit(f"idle_memory.py: {exc}")
    Console().print(table(found, arguments.connections))


if __name__ == "__main__":
    main()
