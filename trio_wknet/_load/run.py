"""Load for an echo server: the run, and its result.

An echo server sends every byte back, in order; with protocol `raw`, message boundaries do
not matter to it. Run the load in another process than the server. Otherwise the two share
one GIL, and the figures are of neither.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

import attrs

from trio_wknet._load.options import LoadOptions
from trio_wknet._load.protocol import exchange
from trio_wknet._load.target import pack_sources, pick_sources, reserve_descriptors, resolve
from trio_wknet._native.load.generator import LoadGenerator

if TYPE_CHECKING:
    from trio_wknet._native.load.generator import Ending, Figures, Phase, Snapshot
    from trio_wknet._native.load.histogram import Histogram

PROGRESS_INTERVAL = 0.1


@attrs.frozen
class LoadErrors:
    """How connections failed, each counted once."""

    connect_refused: int = 0
    connect_other: int = 0
    """Connects that failed otherwise: `LoadResult.connect_error` says how the first did."""
    timeout: int = 0
    """Connects that took longer than `connect_timeout` or `ramp_timeout`."""
    reset: int = 0
    eof: int = 0
    """The server closed while the run lasted."""
    mismatch: int = 0
    """Bytes came back that were not sent, or (with `verify`) other bytes."""
    upgrade_refused: int = 0
    """The answer to the request for WebSocket was another one than it has to be."""

    @property
    def total(self) -> int:
        """All of them."""
        return sum(attrs.astuple(self))


@attrs.frozen
class Latency:
    """Seconds from a message's start to its last byte back, to within 1 %.

    Of the messages that started in the measured window, also when they were answered
    after it. In open loop, a message starts when it is scheduled.
    """

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    p999: float
    max: float

    @classmethod
    def of(cls, histogram: Histogram) -> Latency:
        """The summary of a histogram of nanoseconds."""
        return cls(
            count=len(histogram),
            mean=histogram.mean / 1e9,
            p50=histogram.percentile(50) / 1e9,
            p90=histogram.percentile(90) / 1e9,
            p99=histogram.percentile(99) / 1e9,
            p999=histogram.percentile(99.9) / 1e9,
            max=histogram.max / 1e9,
        )


@attrs.frozen
class LoadProgress:
    """The run as it is now; `messages` and `bytes` are answered since the start."""

    phase: Phase
    elapsed: float
    """Seconds since the start."""
    connections: int
    """Connections that are open."""
    messages: int
    bytes: int
    rate: int
    """Messages a second, in the last tenth of one."""
    errors: LoadErrors

    @classmethod
    def of(cls, live: Snapshot) -> LoadProgress:
        """The typed form of what the native side counts."""
        return cls(
            phase=live["phase"],
            elapsed=live["elapsed"],
            connections=live["connections"],
            messages=live["messages"],
            bytes=live["bytes"],
            rate=live["rate"],
            errors=LoadErrors(**live["errors"]),
        )


@attrs.frozen
class LoadResult:
    """The result of a run."""

    options: LoadOptions
    ended: Ending
    """`duration` or `count` as planned; `stopped`; `unreachable`, no connection could be
    opened; `server_gone`, all were lost, or nothing of the churn succeeds any more."""
    opened: int
    """Connections that were established."""
    started: int
    """Messages of the whole run; in open loop those that came due, in churn connects begun."""
    answered: int
    """Those of them that came back whole."""
    unfinished: int
    """Those that did not, whatever the reason: `started - answered`."""
    messages: int
    """Messages answered inside the measured window."""
    seconds: float
    """How long that window was."""
    errors: LoadErrors
    connect_error: str | None
    latency: Latency

    @property
    def messages_per_second(self) -> float:
        """Messages answered a second; in churn, also connections."""
        return self.messages / self.seconds if self.seconds else 0.0

    @property
    def megabytes_per_second(self) -> float:
        """10^6 bytes of messages a second, one way."""
        return self.messages_per_second * self.options.size / 1e6

    @property
    def ok(self) -> bool:
        """Messages were answered, all correctly, and the server was alive at the end."""
        survived = self.ended not in ("unreachable", "server_gone")
        return survived and self.answered > 0 and self.errors.mismatch == 0

    def to_json(self) -> dict[str, Any]:
        """All of it as a dict for JSON; times are in seconds."""
        figures = attrs.asdict(self)
        figures["options"]["mode"] = self.options.mode
        figures["messages_per_second"] = self.messages_per_second
        figures["megabytes_per_second"] = self.megabytes_per_second
        figures["ok"] = self.ok
        return figures


def prepare(options: LoadOptions) -> LoadGenerator:
    """A native generator that is ready to run.

    Raises `OSError` when the host cannot be resolved or descriptors do not suffice,
    `ValueError` when `sources` does not fit the address.
    """
    target = resolve(options.host, options.port, options.connect_timeout)
    streams = exchange(options.protocol, options.size, _host_header(options))
    sources = pick_sources(target, options.sources, options.connections, options.churn)
    reserve_descriptors(options.connections)
    return LoadGenerator(
        target,
        mode=options.mode,
        connections=options.connections,
        outbound=streams.outbound.as_tuple,
        inbound=streams.inbound.as_tuple,
        request=streams.request,
        accept=streams.accept,
        depth=options.real_depth,
        rate=options.rate or 0.0,
        scheduled=options.scheduled,
        count=options.count or 0,
        verify=options.verify,
        warmup=options.real_warmup,
        duration=options.duration,
        grace=options.grace,
        connect_timeout=options.connect_timeout,
        ramp_timeout=options.ramp_timeout,
        connecting=options.connecting,
        sources=pack_sources(sources),
    )


def _host_header(options: LoadOptions) -> str:
    """The host as HTTP names it; a unix socket has none, so that it is localhost."""
    if options.port is None:
        return "localhost"
    host = f"[{options.host}]" if ":" in options.host else options.host
    return f"{host}:{options.port}"


def run_load(
    options: LoadOptions, *, on_progress: Callable[[LoadProgress], object] | None = None
) -> LoadResult:
    """Run the load in a thread of its own, and wait for the end.

    `on_progress` is called in the caller's thread ten times a second and once at the
    end. It takes at most `ramp_timeout + warmup + duration + grace` seconds, whatever
    the server does. A `KeyboardInterrupt`, like any exception from `on_progress`, ends
    the run and is raised again. Otherwise it raises what `prepare` does; a server that
    fails raises nothing: the result says so.
    """
    return run_prepared(options, prepare(options), on_progress)


def run_prepared(
    options: LoadOptions,
    generator: LoadGenerator,
    on_progress: Callable[[LoadProgress], object] | None = None,
) -> LoadResult:
    """The same, with what `prepare` made of the options: its `latency` can be read then."""
    with ThreadPoolExecutor(1, thread_name_prefix="trio-wknet-load") as pool:
        try:
            # In here: Ctrl-C may come as soon as the thread has begun, before this returns.
            running = pool.submit(generator.run)
            while wait([running], timeout=PROGRESS_INTERVAL).not_done:
                if on_progress is not None:
                    on_progress(LoadProgress.of(generator.snapshot()))
        finally:
            generator.stop()
    if on_progress is not None:
        on_progress(LoadProgress.of(generator.snapshot()))
    return _result(options, running.result(), generator.latency)


def _result(options: LoadOptions, figures: Figures, histogram: Histogram) -> LoadResult:
    code = figures["connect_errno"]
    return LoadResult(
        options=options,
        ended=figures["ended"],
        opened=figures["opened"],
        started=figures["started"],
        answered=figures["answered"],
        unfinished=figures["unfinished"],
        messages=figures["messages"],
        seconds=figures["seconds"],
        errors=LoadErrors(**figures["errors"]),
        connect_error=os.strerror(code) if code else None,
        latency=Latency.of(histogram),
    )
