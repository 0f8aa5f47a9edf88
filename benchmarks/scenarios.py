"""What is measured: each kind of work, the servers that do it, and what must be reached."""

from __future__ import annotations

from typing import Literal

import attrs

from trio_wknet._load_options import LoadOptions

ECHO = ("wknet-threaded", "wknet-inloop")
ECHO_NOWAIT = ("wknet-threaded-nowait", "wknet-inloop-nowait")


@attrs.frozen
class Wanted:
    """The ratio to a peer that must be reached at least."""

    peer: str
    ratio: float


@attrs.frozen(kw_only=True)
class Scenario:
    """One kind of work. Of several servers of ours the better one counts, by name."""

    name: str
    title: str
    ours: tuple[str, ...]
    wanted: tuple[Wanted, ...] = ()
    others: tuple[str, ...] = ()
    """Servers that are measured beside, with nothing wanted."""
    connections: int
    size: int = 64
    depth: int | None = None
    churn: bool = False
    pinned: bool = True
    """The server on a core of its own, the load on another."""
    unit: Literal["messages/s", "connections/s", "MB/s"] = "messages/s"

    @property
    def servers(self) -> tuple[str, ...]:
        """All that are measured, each once."""
        return tuple(dict.fromkeys((*self.ours, *(w.peer for w in self.wanted), *self.others)))

    def load(self, port: int, warmup: float, duration: float) -> LoadOptions:
        """The load on the server at a port."""
        return LoadOptions(
            "127.0.0.1",
            port,
            connections=self.connections,
            size=self.size,
            depth=self.depth,
            churn=self.churn,
            warmup=warmup,
            duration=duration,
        )


SCENARIOS = (
    Scenario(
        name="echo-100",
        title="echo, 64 B, 100 connections, send_all",
        ours=ECHO,
        wanted=(Wanted("trio", 2.0), Wanted("uvloop-streams", 0.9)),
        connections=100,
    ),
    Scenario(
        name="echo-100-nowait",
        title="echo, 64 B, 100 connections, send_nowait",
        ours=ECHO_NOWAIT,
        wanted=(Wanted("trio", 2.2),),
        connections=100,
    ),
    Scenario(
        name="events-inloop",
        title="echo, 64 B, 100 connections, event mode, in-loop",
        ours=("wknet-inloop-events",),
        wanted=(Wanted("uvloop-protocol", 1.0),),
        others=("trio",),
        connections=100,
    ),
    Scenario(
        name="events-threaded",
        title="echo, 64 B, 100 connections, event mode, 1 reactor thread",
        ours=("wknet-threaded-events",),
        wanted=(Wanted("uvloop-protocol", 0.85),),
        others=("trio",),
        connections=100,
    ),
    Scenario(
        name="idle-threaded",
        title="echo, 64 B, 100 connections, an idle timeout on each, 1 reactor thread",
        ours=("wknet-threaded-idle",),
        wanted=(Wanted("wknet-threaded", 0.98),),
        connections=100,
    ),
    Scenario(
        name="idle-inloop",
        title="echo, 64 B, 100 connections, an idle timeout on each, in-loop",
        ours=("wknet-inloop-idle",),
        wanted=(Wanted("wknet-inloop", 0.98),),
        connections=100,
    ),
    Scenario(
        name="idle-deadline",
        title="the same, against Trio with a deadline set for each message",
        ours=("wknet-threaded-idle", "wknet-inloop-idle"),
        wanted=(Wanted("trio-deadline", 2.3),),
        others=("trio",),
        connections=100,
    ),
    Scenario(
        name="echo-5000",
        title="echo, 64 B, 5000 connections",
        ours=ECHO,
        wanted=(Wanted("trio", 2.0),),
        connections=5000,
    ),
    Scenario(
        name="pingpong-inloop",
        title="ping-pong, 64 B, 1 connection, in-loop",
        ours=("wknet-inloop",),
        wanted=(Wanted("trio", 0.9),),
        connections=1,
        pinned=False,
    ),
    Scenario(
        name="pingpong-threaded",
        title="ping-pong, 64 B, 1 connection, 1 reactor thread",
        ours=("wknet-threaded",),
        wanted=(Wanted("trio", 0.6),),
        connections=1,
        pinned=False,
    ),
    Scenario(
        name="bulk",
        title="64 KiB writes echoed, 4 connections, 4 under way on each",
        ours=ECHO,
        wanted=(Wanted("trio", 1.5),),
        connections=4,
        size=65536,
        depth=4,
        unit="MB/s",
    ),
    Scenario(
        name="churn",
        title="connect, 64 B there and back, close; 64 side by side",
        ours=ECHO,
        wanted=(Wanted("trio", 2.0),),
        connections=64,
        churn=True,
        unit="connections/s",
    ),
)

# What the README's plot is made of.
SWEEP = tuple(
    Scenario(
        name=f"sweep-{connections}",
        title=f"echo, 64 B, {connections} connection{'s' * (connections > 1)}",
        ours=ECHO,
        others=("trio", "asyncio-streams", "uvloop-streams"),
        connections=connections,
    )
    for connections in (1, 10, 100, 1000, 5000)
)
