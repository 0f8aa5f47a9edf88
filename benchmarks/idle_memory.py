"""What an idle connection costs a server in memory: ``python benchmarks/idle_memory.py``.

Each server runs in a process of its own, and has so many connections from this one,
each of which has sent a byte and got it back, and is silent since. What counts is by how
much the server's resident set has grown, divided by the connections. Memory of the
kernel, which is the same for all, is not in it.
"""

from __future__ import annotations

import argparse
import resource
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

import attrs
from measure import serving
from rich.console import Console
from rich.table import Table

WARMING = 200
"""Connections that come first and are not counted: what a server makes once."""

FORMS = {
    "trio": "Trio, a task for each connection",
    "wknet-threaded": "trio_wknet, the same",
    "wknet-threaded-idle": "trio_wknet, the same, with an idle timeout",
    "uvloop-protocol": "uvloop, a Protocol for each connection",
}


@attrs.frozen
class Wanted:
    """What an idle connection may cost at most."""

    server: str
    size: int


WANTED = (Wanted("wknet-threaded-idle", 4000),)


def resident(pid: int) -> int:
    """The resident set of a process, in bytes."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no resident set of process {pid}")


def hold(stack: ExitStack, port: int, count: int) -> None:
    """Open connections, each of which has been served once."""
    for _ in range(count):
        sock = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        sock.sendall(b"x")
        if sock.recv(1) != b"x":
            raise RuntimeError("a connection was not served")


def measure(server: str, connections: int) -> float:
    """Bytes that one idle connection costs a fresh server."""
    with serving(server, None) as running, ExitStack() as stack:
        hold(stack, running.port, WARMING)
        before = resident(running.pid)
        hold(stack, running.port, connections)
        return (resident(running.pid) - before) / connections


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
    needed = arguments.connections + WARMING + 100
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if needed > most:
        sys.exit(f"{needed} descriptors are needed, and {most} are the limit")
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, most))
    found = {
        server: measure(server, arguments.connections)
        for server in FORMS
        if not arguments.only or server in arguments.only
    }
    Console().print(table(found, arguments.connections))


if __name__ == "__main__":
    main()
