"""A crowd of connections, from the first to the last: ``python benchmarks/experiment.py crowd``.

Connects them all, lets them be quiet, sends one message on each, and has them closed:
by the server's idle timeout where it has one. Says what each of that takes, and what
memory there is for a connection, the servers' and the kernel's.

A process may have only a limited number of descriptors, so a larger crowd needs several servers,
which listen on one port (SO_REUSEPORT), and always several clients, each with a source
address of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import attrs
from rich.console import Console
from rich.table import Table

from harness.clients import Clients, clients
from harness.machine import Machine
from harness.measure import Server
from harness.memory import Footprint, KernelMemory
from harness.servers import SERVERS
from harness.worker import WorkerFailed
from trio_wknet._load.cpu import cpu_seconds

SIZE = 64
WARMING = 50
"""Connections for each server that come first, and are not counted: what a server
makes once. They stay open."""
SPARE_DESCRIPTORS = 100
UNEVEN = 1.05
"""SO_REUSEPORT spreads by a hash, so not quite evenly."""
SLACK = 30.0
"""Seconds that a phase may take beside what it has to."""


@attrs.frozen(kw_only=True)
class Plan:
    """What crowd, and for how long it is quiet."""

    server: str
    connections: int
    servers: int
    quiet: float
    idle_timeout: float

    @property
    def closes(self) -> bool:
        """Whether the server closes what is idle."""
        return self.server.endswith("-idle")

    @property
    def patience(self) -> float:
        """Seconds that connecting, or answering, may take."""
        return SLACK + self.connections / 500

    def check(self) -> None:
        """Raises `ValueError` where that cannot be."""
        if self.servers > 1 and not self.server.startswith("wknet-"):
            raise ValueError(f"servers: {self.server} shares no port, so not {self.servers}")
        each = self.connections / self.servers * (UNEVEN if self.servers > 1 else 1)
        needed = int(each) + WARMING + SPARE_DESCRIPTORS
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        if needed > most:
            raise ValueError(
                f"connections: {self.connections} in {self.servers} server(s) need some {needed} "
                f"descriptors each, and {most} is the limit (ulimit -Hn): take more servers"
            )


@attrs.frozen(kw_only=True)
class Closing:
    """When the servers closed: seconds from when the client sent its last message, which
    the server had somewhat later."""

    first: float
    median: float
    last: float


@attrs.frozen(kw_only=True)
class Course:
    """What became of a crowd. Memory is in bytes, of all servers together, and grown since
    the beginning, apart from `resident_before`."""

    plan: Plan
    connect_seconds: float
    """Until the servers had accepted all."""
    resident_before: int
    resident: int
    """With all connected, and nothing ever sent."""
    private: int
    kernel: KernelMemory
    """For both ends of each connection."""
    quiet_cpu: float
    """Of one core, while nothing was sent."""
    echo_seconds: float
    """For a message on each connection there and back."""
    resident_served: int
    """With all quiet again for as long."""
    closing: Closing | None
    """None where the clients closed."""
    resident_after: int
    """With all closed for as long."""

    def to_json(self) -> dict[str, Any]:
        return {**attrs.asdict(self), "title": self.title(), "lines": self.lines()}

    @property
    def connect_rate(self) -> float:
        return self.plan.connections / self.connect_seconds

    @property
    def echo_rate(self) -> float:
        return self.plan.connections / self.echo_seconds

    def each(self, size: int) -> str:
        """Bytes for each connection."""
        return f"{size / self.plan.connections:,.0f} B"

    def lines(self) -> list[tuple[str, str]]:
        """What there is to say, and how much it is."""
        closing, kernel, megabytes = self.closing, self.kernel, 1 << 20
        quiet, after = f"{self.plan.quiet:g} s", self.resident_after / megabytes
        kernels = f"{self.each(kernel.slab)} of objects, {self.each(kernel.buffers)} of buffers"
        lines = [
            ("to connect all", f"{self.connect_seconds:.2f} s, {self.connect_rate:,.0f}/s"),
            ("memory of a connection, resident", self.each(self.resident)),
            ("the same, private", self.each(self.private)),
            (f"the same, {quiet} after a message on each", self.each(self.resident_served)),
            ("the kernel's, for both ends", kernels),
            ("servers' resident set before", f"{self.resident_before / megabytes:.1f} MiB"),
            ("and what the crowd adds", f"{self.resident_served / megabytes:.1f} MiB"),
            (f"and what stays of that, {quiet} after the end", f"{after:.1f} MiB"),
            (f"CPU while quiet, over {quiet}", f"{self.quiet_cpu:.2%} of a core"),
            ("a message on each", f"{self.echo_seconds:.2f} s, {self.echo_rate:,.0f}/s"),
        ]
        if closing is not None:
            timeout = f"{self.plan.idle_timeout:g} s"
            times = f"{closing.first:.2f} s to {closing.last:.2f} s after the message"
            lines.append(("closed by the idle timeout", f"of {timeout}: {times}"))
        return lines

    def title(self) -> str:
        plan = self.plan
        servers = f"{plan.servers} server process{'es' * (plan.servers > 1)}"
        return f"{plan.connections:,} connections, {plan.server}, {servers}"

    def table(self) -> Table:
        table = Table(title=self.title(), title_justify="left", show_header=False)
        for what, how_much in self.lines():
            table.add_row(what, how_much)
        return table


def run_crowd(plan: Plan, report: Callable[[str], object]) -> Course:
    """The whole course of a crowd. `report` is called with what it is at.

    Raises `ValueError` if the plan cannot be, `WorkerFailed` or `OSError` if a process of
    it fails.
    """
    plan.check()
    with started(plan) as (pids, crowd):
        report("connecting")
        # These settle what a process makes once, and are not waited for to be closed.
        crowd.connect(WARMING * plan.servers, SLACK)
        crowd.ask("echo", SIZE, timeout=SLACK)
        before, kernel_before = footprint(pids), KernelMemory.now()
        connect_seconds = crowd.connect(plan.connections, plan.patience)
        connected, kernel = footprint(pids), KernelMemory.now().since(kernel_before)
        report("quiet")
        quiet_cpu = cpu_share(pids, plan.quiet)
        report("a message on each")
        echo_seconds = timed(lambda: crowd.ask("echo", SIZE, timeout=plan.patience))
        time.sleep(plan.quiet)  # what the message needed is given back meanwhile
        served = footprint(pids)
        report("closing")
        closing = close_all(plan, crowd)
        time.sleep(plan.quiet)
        after = footprint(pids)
    return Course(
        plan=plan,
        connect_seconds=connect_seconds,
        resident_before=before.resident,
        resident=connected.resident - before.resident,
        private=connected.private - before.private,
        kernel=kernel,
        quiet_cpu=quiet_cpu,
        echo_seconds=echo_seconds,
        resident_served=served.resident - before.resident,
        closing=closing,
        resident_after=after.resident - before.resident,
    )


@contextmanager
def started(plan: Plan) -> Iterator[tuple[list[int], Clients]]:
    """The servers, by process, and their clients."""
    with ExitStack() as stack:
        # Kept bound, so that the port is nobody else's. It does not listen, so it is given
        # no connection.
        port = stack.enter_context(shared_port()) if plan.servers > 1 else None
        servers = [
            stack.enter_context(Server(plan.server, None, port, plan.idle_timeout))
            for _ in range(plan.servers)
        ]
        crowd = clients(servers[0].port, plan.connections + WARMING * plan.servers)
        yield [server.pid for server in servers], stack.enter_context(crowd)


@contextmanager
def shared_port() -> Iterator[int]:
    """A port that several processes may listen on."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


def footprint(pids: list[int]) -> Footprint:
    """Of several processes together."""
    each = [Footprint.of(pid) for pid in pids]
    return Footprint(sum(one.resident for one in each), sum(one.private for one in each))


def cpu_share(pids: list[int], seconds: float) -> float:
    """How much of one core they take, over a number of seconds from now."""
    began, before = time.monotonic(), sum(map(cpu_seconds, pids))
    time.sleep(seconds)
    return (sum(map(cpu_seconds, pids)) - before) / (time.monotonic() - began)


def timed(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def close_all(plan: Plan, crowd: Clients) -> Closing | None:
    """Have the servers close what is idle, if they do, or else the clients close."""
    if not plan.closes:
        crowd.ask("close", timeout=SLACK)
        return None
    timeout = plan.idle_timeout * 1.5 + SLACK
    answers = crowd.ask("wait_closed", timeout, timeout=timeout + SLACK)
    return Closing(
        first=min(one["first"] for one in answers),
        median=median(one["median"] for one in answers),
        last=max(one["last"] for one in answers),
    )


def idle_timeout_for(connections: int) -> float:
    """Seconds that are enough to connect this many, and to look at them, before the first is
    closed."""
    return 20.0 + connections / 2500


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The course of a crowd of connections.")
    parser.add_argument("--server", default="wknet-inloop-events-idle", choices=list(SERVERS))
    parser.add_argument("--connections", type=int, default=19_000, help="default 19000")
    parser.add_argument("--servers", type=int, default=1, help="processes; default 1")
    parser.add_argument("--quiet", type=float, default=10.0, help="seconds; default 10")
    parser.add_argument("--idle-timeout", type=float, help="seconds; default by connections")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to FILE")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    console, machine = Console(), Machine.here()
    plan = Plan(
        server=arguments.server,
        connections=arguments.connections,
        servers=arguments.servers,
        quiet=arguments.quiet,
        idle_timeout=arguments.idle_timeout or idle_timeout_for(arguments.connections),
    )
    console.print(str(machine), highlight=False)
    try:
        with console.status("") as status:
            course = run_crowd(plan, status.update)
    except (ValueError, OSError, WorkerFailed) as exc:
        sys.exit(f"crowd.py: {exc}")
    except KeyboardInterrupt:
        sys.exit("crowd.py: interrupted")
    console.print(course.table())
    if arguments.json:
        found = {"machine": attrs.asdict(machine), "course": course.to_json()}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
