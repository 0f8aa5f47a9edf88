"""What is measured: each kind of work, the servers that do it, and what must be reached."""

from __future__ import annotations

from typing import Literal

import attrs

from trio_wknet._load.options import LoadOptions
from trio_wknet._load.protocol import Protocol

ECHO = ("wknet-threaded", "wknet-inloop")
ECHO_NOWAIT = ("wknet-threaded-nowait", "wknet-inloop-nowait")
EVENTS = ("wknet-inloop-events", "wknet-threaded-events")
FRAMES = ("wknet-threaded-frames", "wknet-inloop-frames")
FRAMES_NOWAIT = ("wknet-threaded-frames-nowait", "wknet-inloop-frames-nowait")
FRAMES_MANY = ("wknet-threaded-frames-many", "wknet-inloop-frames-many")
FRAMES_EVENTS = ("wknet-inloop-frames-events", "wknet-threaded-frames-events")
WEBSOCKET_ONE = ("wknet-threaded-websocket", "wknet-inloop-websocket")
WEBSOCKET_MANY = ("wknet-threaded-websocket-many", "wknet-inloop-websocket-many")
WEBSOCKET_EVENTS = ("wknet-threaded-websocket-events", "wknet-inloop-websocket-events")
WEBSOCKETS = ("picows-uvloop", "websockets-uvloop", "trio-websocket")
PEERS = ("trio", "anyio-trio", "asyncio-streams", "uvloop-streams", "gevent", "c-epoll")
BULK = 65536
"""Messages of this size or more count as bytes."""
SETTLING = 1 / 5000
"""Seconds for each connection before anything is counted, beside the usual ones."""
KIB, MIB = 1 << 10, 1 << 20

Quantity = Literal["throughput", "p99", "cpu"]
Unit = Literal["messages/s", "connections/s", "MB/s"]


@attrs.frozen
class Wanted:
    """A ratio of ours to a peer's: of throughput at least, of what should be small at most."""

    peer: str
    """A server, or what `figure` is, in words."""
    ratio: float
    figure: float | None = attrs.field(default=None, kw_only=True)
    """The figure that ours is compared with, where that is not a server's."""
    of: Quantity = attrs.field(default="throughput", kw_only=True)
    ours: tuple[str, ...] = attrs.field(default=(), kw_only=True)
    """Which servers of ours may reach it; none: any of the scenario's."""

    @property
    def at_most(self) -> bool:
        return self.of != "throughput"


@attrs.frozen(kw_only=True)
class Scenario:
    """One kind of work. Of several servers of ours the better one counts, by name."""

    name: str
    what: str
    ours: tuple[str, ...]
    wanted: tuple[Wanted, ...] = ()
    others: tuple[str, ...] = ()
    """Servers that are measured beside, with nothing wanted."""
    protocol: Protocol = "raw"
    connections: int = 100
    size: int = 64
    depth: int = 1
    churn: bool = False
    pinned: bool = True
    """The server on a core of its own, the load on another."""
    longer: float = 1.0
    """Times the usual seconds, where a message takes long."""
    slow: bool = False
    """With one more connection, whose client sends without end and reads little."""
    of_trio: float | None = None
    """An open loop, at this share of the most that Trio does with the same load closed."""
    rate: float | None = None
    """Messages a second of the open loop; what follows from `of_trio`."""

    @property
    def servers(self) -> tuple[str, ...]:
        """All that are measured, each once."""
        peers = (wanted.peer for wanted in self.wanted if wanted.figure is None)
        return tuple(dict.fromkeys((*self.ours, *peers, *self.others)))

    @property
    def unit(self) -> Unit:
        if self.churn:
            return "connections/s"
        return "MB/s" if self.size >= BULK else "messages/s"

    @property
    def title(self) -> str:
        """The work in words."""
        parts = [self.what, size_text(self.size), self._connections_text()]
        if self.depth > 1:
            parts.append(f"{self.depth} in flight on each")
        if not self.pinned:
            parts.append("all cores free")
        if self.of_trio is not None:
            parts.append(f"at {self.of_trio:.0%} of Trio's maximum")
        return ", ".join(parts)

    def _connections_text(self) -> str:
        if self.churn:
            return f"{self.connections:,} side by side"
        return f"{self.connections:,} connection{'s' * (self.connections > 1)}"

    def within(self, connections: int | None) -> Scenario:
        """The same with at most this number of connections; None: no bound."""
        return attrs.evolve(self, connections=min(self.connections, connections or 1 << 20))

    def load(self, port: int, warmup: float, duration: float) -> LoadOptions:
        """The load on the server at a port; seconds are the usual ones.

        A server may be accepting still when all are connected, so they have time to settle.
        """
        return LoadOptions(
            "127.0.0.1",
            port,
            protocol=self.protocol,
            connections=self.connections,
            size=self.size,
            depth=None if self.rate else self.depth,
            rate=self.rate,
            churn=self.churn,
            warmup=warmup + SETTLING * self.connections,
            duration=duration * self.longer,
        )


def size_text(size: int) -> str:
    """Bytes in the unit that suits them."""
    for unit, text in ((MIB, "MiB"), (KIB, "KiB")):
        if size >= unit:
            return f"{size // unit} {text}"
    return f"{size} B"


def by_connections(connections: int, *wanted: Wanted, others: tuple[str, ...] = ()) -> Scenario:
    """One of those that the picture of throughput is made of."""
    return Scenario(
        name=f"echo-{connections}",
        what="stream echo",
        ours=ECHO,
        wanted=wanted,
        others=(*PEERS, *others),
        connections=connections,
        longer=max(1.0, connections / 7500),
    )


BY_CONNECTIONS = (
    by_connections(1),
    by_connections(10),
    by_connections(
        100,
        Wanted("trio", 2.5),
        Wanted("uvloop-streams", 1.15),
        Wanted("trio", 0.55, of="cpu", ours=("wknet-threaded",)),
        others=("anyio-asyncio",),
    ),
    by_connections(1000, Wanted("trio", 2.5), Wanted("uvloop-streams", 1.15)),
    by_connections(5000, Wanted("trio", 2.5), Wanted("uvloop-streams", 1.15)),
    by_connections(15_000),
)

MESSAGES = (
    Scenario(
        name="frames",
        what="frames, one received and sent at a time",
        ours=FRAMES,
        wanted=(Wanted("trio-frames", 2.2), Wanted("uvloop-frames-readexactly", 1.05)),
        others=("uvloop-frames-protocol",),
        protocol="length-prefixed",
    ),
    Scenario(
        name="frames-16",
        what="frames, one received and sent at a time",
        ours=FRAMES,
        wanted=(Wanted("uvloop-frames-readexactly", 2.5),),
        others=("trio-frames", *FRAMES_NOWAIT),
        protocol="length-prefixed",
        depth=16,
    ),
    Scenario(
        name="frames-16-many",
        what="frames, all that have come received and sent at a time",
        ours=FRAMES_MANY,
        wanted=(Wanted("uvloop-frames-writelines", 1.4),),
        others=("trio-frames", "uvloop-frames-protocol"),
        protocol="length-prefixed",
        depth=16,
    ),
    Scenario(
        name="frames-events",
        what="frames by callbacks",
        ours=FRAMES_EVENTS,
        wanted=(Wanted("uvloop-frames-protocol", 1.0, ours=("wknet-inloop-frames-events",)),),
        others=("trio-frames", "uvloop-frames-writelines"),
        protocol="length-prefixed",
    ),
    Scenario(
        name="frames-events-16",
        what="frames by callbacks",
        ours=FRAMES_EVENTS,
        wanted=(Wanted("uvloop-frames-protocol", 1.6),),
        others=("trio-frames", "uvloop-frames-writelines"),
        protocol="length-prefixed",
        depth=16,
    ),
    Scenario(
        name="frames-free",
        what="frames, all that have come received and sent at a time",
        ours=FRAMES_MANY,
        wanted=(Wanted("1,000,000 messages/s", 1.0, figure=1e6),),
        others=("trio-frames", "uvloop-frames-writelines"),
        protocol="length-prefixed",
        depth=256,
        pinned=False,
    ),
    Scenario(
        name="frames-1m",
        what="frames, beside the same bytes echoed without looking for frames",
        ours=FRAMES,
        wanted=(
            Wanted("wknet-threaded", 0.9, ours=("wknet-threaded-frames",)),
            Wanted("wknet-inloop", 0.9, ours=("wknet-inloop-frames",)),
        ),
        others=("trio-frames", "uvloop-frames-readexactly"),
        protocol="length-prefixed",
        connections=4,
        size=MIB,
    ),
)


def websocket(
    name: str,
    *wanted: Wanted,
    ours: tuple[str, ...] = WEBSOCKET_ONE,
    text: bool = False,
    **more: int,
) -> Scenario:
    """WebSocket's echo, beside all libraries for it."""
    return Scenario(
        name=f"websocket-{name}",
        what=f"WebSocket echo of {'text' if text else 'binary'} messages",
        ours=ours,
        wanted=wanted,
        others=WEBSOCKETS,
        protocol="websocket-text" if text else "websocket",
        **more,
    )


WEBSOCKET = (
    websocket("1", Wanted("trio-websocket", 6.0), Wanted("websockets-uvloop", 2.5)),
    websocket(
        "events",
        Wanted("picows-uvloop", 1.0, ours=("wknet-inloop-websocket-events",)),
        ours=WEBSOCKET_EVENTS,
    ),
    websocket("16", Wanted("picows-uvloop", 3.0), ours=WEBSOCKET_MANY, depth=16),
    websocket("64k", Wanted("picows-uvloop", 1.0), size=64 * KIB),
    websocket("binary-1k", size=KIB),
    websocket("text-1k", size=KIB, text=True),
)

SCENARIOS = (
    *BY_CONNECTIONS,
    *MESSAGES,
    *WEBSOCKET,
    Scenario(
        name="echo-free",
        what="stream echo",
        ours=ECHO,
        wanted=(
            Wanted("trio", 2.5),
            Wanted("trio", 0.55, of="cpu", ours=("wknet-threaded",)),
        ),
        others=("uvloop-streams", "c-epoll"),
        pinned=False,
    ),
    Scenario(
        name="echo-nowait",
        what="stream echo with send_nowait",
        ours=ECHO_NOWAIT,
        wanted=(Wanted("trio", 2.5),),
    ),
    Scenario(
        name="one-connection",
        what="stream echo",
        ours=ECHO,
        wanted=(
            Wanted("trio", 1.05, ours=("wknet-inloop",)),
            Wanted("trio", 0.85, ours=("wknet-threaded",)),
        ),
        others=("uvloop-streams", "c-epoll"),
        connections=1,
        pinned=False,
    ),
    Scenario(
        name="depth-16",
        what="stream echo",
        ours=ECHO,
        wanted=(Wanted("uvloop-streams", 1.5),),
        others=("trio", "asyncio-streams", "gevent", "c-epoll"),
        depth=16,
    ),
    Scenario(
        name="events-inloop",
        what="event echo, in-loop",
        ours=("wknet-inloop-events",),
        wanted=(Wanted("uvloop-protocol", 1.05), Wanted("c-epoll", 0.85)),
        others=("trio", "asyncio-protocol"),
    ),
    Scenario(
        name="events-threaded",
        what="event echo, 1 reactor thread",
        ours=("wknet-threaded-events",),
        wanted=(Wanted("uvloop-protocol", 0.85),),
        others=("trio",),
    ),
    Scenario(
        name="events-5000",
        what="event echo",
        ours=EVENTS,
        wanted=(
            Wanted("uvloop-protocol", 1.05, ours=("wknet-inloop-events",)),
            Wanted("c-epoll", 0.85, ours=("wknet-inloop-events",)),
        ),
        others=("trio", "asyncio-protocol"),
        connections=5000,
    ),
    Scenario(
        name="events-free",
        what="event echo",
        ours=EVENTS,
        others=("trio", "uvloop-protocol", "c-epoll"),
        pinned=False,
    ),
    Scenario(
        name="size-1k",
        what="stream echo",
        ours=ECHO,
        others=("trio", "uvloop-streams", "gevent", "c-epoll"),
        size=KIB,
    ),
    Scenario(
        name="size-64k",
        what="stream echo",
        ours=ECHO,
        others=("trio", "uvloop-streams", "gevent", "c-epoll"),
        size=64 * KIB,
    ),
    Scenario(
        name="bulk-64k",
        what="bulk echo",
        ours=ECHO,
        wanted=(Wanted("uvloop-streams", 1.5), Wanted("gevent", 1.1)),
        others=("trio", "asyncio-streams", "c-epoll"),
        connections=4,
        size=64 * KIB,
        depth=4,
    ),
    Scenario(
        name="bulk-1m",
        what="bulk echo",
        ours=ECHO,
        wanted=(Wanted("uvloop-streams", 1.5), Wanted("gevent", 1.1)),
        others=("trio", "asyncio-streams", "c-epoll"),
        connections=4,
        size=MIB,
    ),
    Scenario(
        name="churn",
        what="connect, a message there and back, close",
        ours=ECHO,
        wanted=(Wanted("uvloop-streams", 1.0),),
        others=("trio", "asyncio-streams", "gevent", "c-epoll"),
        connections=64,
        churn=True,
    ),
    Scenario(
        name="half-load",
        what="stream echo by the clock",
        ours=ECHO,
        wanted=(Wanted("trio", 0.6, of="p99"),),
        others=("asyncio-streams", "uvloop-streams", "gevent", "c-epoll"),
        of_trio=0.5,
    ),
    Scenario(
        name="slow-consumer",
        what="stream echo beside one slow consumer",
        ours=ECHO,
        others=("trio", "uvloop-streams", "gevent", "c-epoll"),
        slow=True,
    ),
    Scenario(
        name="idle-threaded",
        what="stream echo, an idle timeout on each, 1 reactor thread",
        ours=("wknet-threaded-idle",),
        wanted=(Wanted("wknet-threaded", 0.98),),
    ),
    Scenario(
        name="idle-inloop",
        what="stream echo, an idle timeout on each, in-loop",
        ours=("wknet-inloop-idle",),
        wanted=(Wanted("wknet-inloop", 0.98),),
    ),
    Scenario(
        name="idle-deadline",
        what="the same, against Trio with a deadline set for each message",
        ours=("wknet-threaded-idle", "wknet-inloop-idle"),
        wanted=(Wanted("trio-deadline", 2.3),),
    ),
)
