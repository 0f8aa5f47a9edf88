"""What is measured of many connections: a function for each, which gives rows.

Ours and its peers take turns, round by round, each time in a fresh process. Ratios are
of medians.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from statistics import median
from typing import Any, Literal

import attrs

from experiments import broadcast, idle_memory
from harness.clients import clients
from harness.measure import Server, Settings, running_on
from harness.rounds import able, run_scenario, take_turns
from harness.scenarios import SCENARIOS
from trio_wknet._cli.text import complaint
from trio_wknet._load.options import LoadOptions
from trio_wknet._load.run import run_load

EVENTS = ("wknet-inloop-events-idle", "wknet-threaded-events-idle")
TASKS = ("wknet-inloop-idle", "wknet-threaded-idle")
ECHOES = ("events-inloop", "events-threaded", "idle-threaded", "idle-inloop", "idle-deadline")
"""The scenarios of `scenarios.py` that belong here, with what is wanted there first."""
GROUPS = ("inloop-group", "threaded-group")
MESSAGE = 256  # bytes, of a broadcast
BURST = 20  # broadcasts without pauses, for their CPU
ACTIVE = 100
COLLECTIONS = 5
PATIENCE = 120.0

Report = Callable[[str], object]


@attrs.frozen(kw_only=True)
class Size:
    """How much is measured, and how often."""

    settings: Settings
    memory: int
    """Connections whose memory is measured."""
    collected: int
    """Connections that are open while garbage is collected."""
    idle: int
    """Connections that are open beside active ones."""
    rate: float
    """Messages a second of the active ones, of which there are `ACTIVE`."""
    members: tuple[int, ...]
    """Sizes of groups."""
    repeats: int
    """How many times the rounds for throughput: it differs by a fifth from one process to
    the next, and the other figures hardly do."""


@attrs.frozen(kw_only=True)
class Row:
    """One figure, ours, beside others."""

    name: str
    what: str
    unit: Literal["B", "s", "messages/s"]
    rounds: dict[str, list[float]]
    """What was measured, by server: ours first."""
    peer: str | None = None
    """By what ours is divided; None: by nothing."""
    at_most: float | None = None
    at_least: float | None = None
    cpu: dict[str, float] = attrs.Factory(dict)
    """Seconds of CPU for a message, by server, of a throughput: what a busy machine changes
    least. Empty: not measured."""

    @property
    def ours(self) -> str:
        return next(iter(self.rounds))

    def median(self, server: str) -> float:
        return median(self.rounds[server])

    @property
    def value(self) -> float:
        """What is compared with what was wanted."""
        ours = self.median(self.ours)
        return ours if self.peer is None else ours / self.median(self.peer)

    @property
    def met(self) -> bool | None:
        """Whether it is what was wanted; None: nothing was."""
        if self.at_most is not None:
            return self.value <= self.at_most
        return None if self.at_least is None else self.value >= self.at_least

    def to_json(self) -> dict[str, Any]:
        medians = {server: self.median(server) for server in self.rounds}
        derived = {"ours": self.ours, "medians": medians, "value": self.value, "met": self.met}
        return {**attrs.asdict(self), **derived}


def memory(size: Size, report: Report) -> list[Row]:
    """What an idle connection costs its process."""
    peers = ("trio", "uvloop-protocol")
    found = take_turns(
        (*EVENTS, *TASKS, *peers),
        size.settings.rounds,
        lambda server: idle_memory.measure(server, size.memory),
        report,
    )

    def row(name: str, form: str, ours: tuple[str, ...], at_most: int) -> Row:
        # The larger one of ours counts.
        ordered = sorted(ours, key=lambda server: -median(found[server]))
        return Row(
            name=name,
            what=f"memory of an idle connection, {form}, with an idle timeout; "
            f"{size.memory:,} are open",
            unit="B",
            rounds={server: found[server] for server in (*ordered, *peers)},
            at_most=at_most,
        )

    return [
        row("memory-events", "event mode", EVENTS, 512),
        row("memory-tasks", "a handler task for each", TASKS, 4000),
    ]


def echo(size: Size, report: Report) -> list[Row]:
    """The throughput of event mode, and with idle timeouts; the loads are of `scenarios.py`."""
    rows = []
    for scenario in SCENARIOS:
        if scenario.name not in ECHOES:
            continue
        settings = attrs.evolve(size.settings, rounds=size.repeats * size.settings.rounds)
        result = run_scenario(scenario, able(scenario), settings, report)
        require(not result.failures(), "; ".join(result.failures()))
        wanted = scenario.wanted[0]
        costs = {server: result.median(server, "cpu") for server in result.rounds}
        rows.append(
            Row(
                name=scenario.name,
                what=scenario.title,
                unit="messages/s",
                rounds={
                    server: [one.result.messages_per_second for one in rounds]
                    for server, rounds in result.rounds.items()
                },
                peer=wanted.peer,
                at_least=wanted.ratio,
                cpu={server: cost for server, cost in costs.items() if cost},
            )
        )
    return rows


def collection(size: Size, report: Report) -> list[Row]:
    """How long the garbage collector stops everything."""
    found = take_turns(
        (EVENTS[0], "trio"),
        size.settings.rounds,
        lambda server: collection_time(server, size.collected),
        report,
    )
    return [
        Row(
            name="collection",
            what=f"gc.collect() with {size.collected:,} connections open, event mode",
            unit="s",
            rounds=found,
            peer="trio",
            at_most=0.05,
        )
    ]


def collection_time(name: str, connections: int) -> float:
    """The median of several collections, with connections that were served once."""
    with Server(name) as server, clients(server.port, connections) as crowd:
        crowd.connect(connections, PATIENCE)
        crowd.ask("echo", 1, timeout=PATIENCE)
        times = []
        for _ in range(1 + COLLECTIONS):
            server.ask("collect")
            times.append(server.answer())
        return median(times[1:])  # the first has what is garbage anyway


def tail(size: Size, report: Report) -> list[Row]:
    """What idle connections do to the latency of active ones."""
    rows = []
    for name in (*EVENTS, "trio"):
        alone, beside = f"{name}, none", f"{name}, {size.idle:,} idle"
        idle = {alone: 0, beside: size.idle}

        def one(case: str, name: str = name, idle: dict[str, int] = idle) -> float:
            return p99(name, idle[case], size)

        rows.append(
            Row(
                name=f"tail-{name}",
                what=f"p99 of {ACTIVE} active connections, {size.rate:,.0f} messages/s, with "
                f"{size.idle:,} idle ones beside: {name}",
                unit="s",
                rounds=take_turns((beside, alone), size.settings.rounds, one, report),
                peer=alone,
                at_most=None if name == "trio" else 1.25,
            )
        )
    return rows


def p99(name: str, idle: int, size: Size) -> float:
    """Of the active connections, with idle ones beside them."""
    cores = sorted(os.sched_getaffinity(0))
    with (
        Server(name, cores[0]) as server,
        running_on({cores[-1]}),
        clients(server.port, idle) as crowd,
    ):
        if idle:
            crowd.connect(idle, PATIENCE)
            crowd.ask("echo", 1, timeout=PATIENCE)
        result = run_load(
            LoadOptions(
                "127.0.0.1",
                server.port,
                connections=ACTIVE,
                rate=size.rate,
                warmup=size.settings.warmup,
                duration=size.settings.duration,
            )
        )
        answered = result.ok and not result.errors.total
        require(answered, f"{name}: {complaint(result)}; {server.state}")
    return result.latency.p99


def groups(size: Size, report: Report) -> list[Row]:
    """One message to many. The members are in another process, which reads."""
    rows = []
    for members in size.members:

        def one(way: str, members: int = members) -> broadcast.Round:
            return broadcast.measure(way, members, MESSAGE, times=5, burst=BURST)

        title = f"a broadcast of {MESSAGE} B to {members:,}"
        found = take_turns(
            GROUPS, size.settings.rounds, one, lambda what, title=title: report(f"{title}: {what}")
        )
        rows += [
            Row(
                name=f"group-{members}",
                what=f"{title}, until the last one has it",
                unit="s",
                rounds={way: [it.last for it in rounds] for way, rounds in found.items()},
            ),
            Row(
                name=f"group-cpu-{members}",
                what=f"{title}, CPU of the server for a member",
                unit="s",
                rounds={
                    way: [(it.cpu or 0.0) / members for it in rounds]
                    for way, rounds in found.items()
                },
            ),
        ]
    return rows


class NotAnswered(Exception):
    """A load was not answered properly, so there is no figure."""


def require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise NotAnswered(otherwise)


ROWS: dict[str, Callable[[Size, Report], list[Row]]] = {
    "memory": memory,
    "echo": echo,
    "collection": collection,
    "tail": tail,
    "groups": groups,
}
