"""Metrics for Prometheus, and whatever else reads OpenMetrics.

A collector: it reads the engines' statistics when it is asked, has no thread, and keeps
nothing. What is read belongs to Trio's thread. A scrape from another thread, such as that of
``prometheus_client.start_http_server``, has Trio's thread read it, and waits for that.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Literal

import attrs
import trio
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from trio_wknet._engine import Engine

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from trio_wknet._listener import Listener
    from trio_wknet._statistics import EngineStatistics, Histogram, ListenerStatistics, Traffic

__all__ = ["WknetCollector"]

BOTH = ("engine", "listener")
Kind = Literal["counter", "gauge", "histogram", "summary"]
_FAMILIES: dict[str, Any] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
    "summary": SummaryMetricFamily,
}


@attrs.frozen
class Family:
    """A metric family: its name without ``wknet_``, what it says, its labels."""

    kind: Kind
    name: str
    text: str
    labels: tuple[str, ...] = BOTH

    def make(self) -> Any:
        return _FAMILIES[self.kind](f"wknet_{self.name}", self.text, labels=self.labels)


FAMILIES = [
    Family("gauge", "connections", "Connections now: that a handler, a task or callbacks have "
           "(open), that wait to be accepted (waiting), or that are being closed (closing).",
           (*BOTH, "state")),
    Family("counter", "accepts", "Connections accepted."),
    Family("counter", "connects", "Connections connected or adopted.", ("engine",)),
    Family("counter", "refusals", "Connections refused before anything saw them, by reason.",
           (*BOTH, "reason")),
    Family("counter", "closes", "Connections that were open and have ended, by close_reason.",
           (*BOTH, "reason")),
    Family("counter", "received_bytes", "Bytes read from sockets."),
    Family("counter", "sent_bytes", "Bytes that the kernel took."),
    Family("counter", "received_messages", "Frames and WebSocket messages taken."),
    Family("counter", "sent_messages", "Frames and WebSocket messages accepted for sending."),
    Family("gauge", "buffered_bytes", "Bytes received and not taken (in), or not yet sent (out).",
           (*BOTH, "direction")),
    Family("gauge", "handlers", "Running handlers, or connections of event mode.",
           ("engine", "listener")),
    Family("summary", "handshake_seconds", "TLS handshakes that are done, and their time."),
    Family("counter", "failed_handshakes", "TLS handshakes that failed, or were cancelled."),
    Family("gauge", "starved", "1 while a listener cannot accept for lack of descriptors or "
           "memory."),
    Family("counter", "shortages", "How often that, or epoll, has lacked something."),
    Family("gauge", "pool_bytes", "Bytes of buffers, in use or kept for reuse.",
           ("engine", "state")),
    Family("gauge", "slab_bytes", "Bytes of memory for connections' state.", ("engine",)),
    Family("counter", "broadcasts", "Broadcasts that are done.", ("engine",)),
    Family("counter", "broadcast_members", "What became of broadcasts, by member.",
           ("engine", "result")),
    Family("counter", "wakes", "How often a reactor had to wake Trio's loop.", ("engine",)),
    Family("histogram", "batch_size", "News that Trio's side took at a time.", ("engine",)),
    Family("histogram", "wake_latency_seconds", "From when a reactor posts news until Trio's "
           "side takes them.", ("engine",)),
    Family("gauge", "loop_lag_seconds", "The last of these latencies.", ("engine",)),
    Family("counter", "loop_busy_seconds", "Time for which Trio's loop ran tasks and callbacks.",
           ("engine",)),
    Family("counter", "measured_seconds", "Time for which that, latencies, batches and busy "
           "reactors were measured.", ("engine",)),
    Family("counter", "reactor_busy_seconds", "Time that a reactor did not wait.",
           ("engine", "reactor")),
    Family("counter", "reactor_turns", "Turns of a reactor's loop.", ("engine", "reactor")),
    Family("counter", "reactor_events", "Events that epoll reported.", ("engine", "reactor")),
    Family("gauge", "reactor_connections", "Connections that a reactor drives.",
           ("engine", "reactor")),
]  # fmt: skip


class WknetCollector(Collector):
    """Exports what engines count. Register it with a `prometheus_client.CollectorRegistry`::

        registry = CollectorRegistry()
        registry.register(WknetCollector({"main": engine}))

    Metrics are named ``wknet_...``, and have the labels ``engine``, the name given here, and
    ``listener``, its address; an empty ``listener`` stands for connections without one, and for
    listeners that are closed, so that sums over listeners are the engine's. An engine that was
    closed exports nothing.

    A collection may come from any thread: from another one than the engines', Trio's thread is
    asked, which it waits for. One costs 1 to 2 milliseconds, and up to 0.2 microseconds more for
    each open connection.

    Args:
      engines: an engine, which is named ``"default"``, or several by name. All belong to the Trio
          run that calls this.
      measure: have the engines measure how late Trio's loop is, and how busy they are
          (`trio_wknet.Engine.measure`). Default True. If it is False, what that measures stays
          0, unless the program has switched it on.

    Raises:
      TypeError, ValueError: if an argument is invalid.
      RuntimeError: if an engine is closed, or belongs to another thread; outside of a Trio run.
    """

    def __init__(self, engines: Engine | Mapping[str, Engine], *, measure: bool = True) -> None:
        self._engines = _check_engines(engines)
        if not isinstance(measure, bool):
            raise TypeError(f"measure must be True or False, not {measure!r}")
        self._token = trio.lowlevel.current_trio_token()
        self._thread = threading.get_ident()
        for engine in self._engines.values():
            engine._core.ensure_usable()
            if measure:
                engine.measure()

    def describe(self) -> Iterable[Metric]:
        """Return the metrics without values, for a registry to check their names. Not a
        checkpoint.

        Returns:
          An iterable of `prometheus_client.Metric`. It raises nothing.
        """
        return [family.make() for family in FAMILIES]

    def collect(self) -> Iterable[Metric]:
        """Return the metrics with their values. Not a checkpoint. A registry calls it.

        Returns:
          An iterable of `prometheus_client.Metric`; without values once the run has ended. It
          raises nothing.
        """
        if threading.get_ident() == self._thread:
            return self._read()
        try:
            return trio.from_thread.run_sync(self._read, trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled):
            return self.describe()

    def _read(self) -> list[Metric]:
        page = Page()
        for name, engine in self._engines.items():
            if not engine._core.closed:
                _add_engine(page, name, engine)
        return page.families()


def _check_engines(engines: object) -> dict[str, Engine]:
    if isinstance(engines, Engine):
        return {"default": engines}
    try:
        found: dict[str, Engine] = dict(engines)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        raise TypeError(f"engines must be an Engine or a mapping, not {engines!r}") from None
    for name, engine in found.items():
        if not isinstance(name, str):
            raise TypeError(f"engines must have strings as names, not {name!r}")
        if not isinstance(engine, Engine):
            raise TypeError(f"engines must have Engine objects as values, not {engine!r}")
    if not found:
        raise ValueError("engines must name at least one engine")
    return found


class Page:
    """The families of one collection."""

    def __init__(self) -> None:
        self._families = {family.name: family.make() for family in FAMILIES}

    def families(self) -> list[Metric]:
        return list(self._families.values())

    def add(self, name: str, labels: tuple[str, ...], *values: Any) -> None:
        self._families[name].add_metric(labels, *values)

    def add_each(self, name: str, labels: tuple[str, ...], values: Mapping[str, float]) -> None:
        for label, value in values.items():
            self.add(name, (*labels, label), value)

    def add_histogram(self, name: str, engine: str, histogram: Histogram, bounds: Any) -> None:
        self.add(name, (engine,), _cumulative(histogram, bounds), histogram.total)


# --- an engine ------------------------------------------------------------------------


def _add_engine(page: Page, name: str, engine: Engine) -> None:
    whole = engine.statistics()
    rest = Rest(whole)
    for label, listener in _labelled(engine.listeners):
        of = listener._as_of_tally(True)
        rest.take(of)
        _add_listener(page, (name, label), of)
    _add_rest(page, (name, ""), rest)
    _add_own(page, name, whole)


def _labelled(listeners: Iterable[Listener]) -> Iterator[tuple[str, Listener]]:
    """Listeners by address; several at one address, which reuse_port allows, are numbered."""
    seen: dict[str, int] = {}
    for listener in listeners:
        address = listener.address
        if isinstance(address, tuple):
            host, port, *_ = address
            text = f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
        elif isinstance(address, bytes):
            text = "@" + address[1:].decode(errors="backslashreplace")
        else:
            text = str(address)
        seen[text] = seen.get(text, 0) + 1
        yield text if seen[text] == 1 else f"{text} #{seen[text]}", listener


def _add_listener(page: Page, labels: tuple[str, str], of: ListenerStatistics) -> None:
    page.add_each("connections", labels, {"open": of.open, "waiting": of.waiting})
    page.add("accepts", labels, of.accepted)
    page.add_each("refusals", labels, of.refused_by)
    page.add("handlers", labels, of.handlers)
    page.add("starved", labels, float(of.starved))
    page.add("shortages", labels, of.shortages)
    _add_common(page, labels, of)


def _add_common(page: Page, labels: tuple[str, str], of: Any) -> None:
    """What listeners and the rest have in common."""
    traffic: Traffic = of.traffic
    page.add_each("closes", labels, of.closed_by)
    page.add("received_bytes", labels, traffic.bytes_received)
    page.add("sent_bytes", labels, traffic.bytes_sent)
    page.add("received_messages", labels, traffic.messages_received)
    page.add("sent_messages", labels, traffic.messages_sent)
    held = {"in": traffic.buffered_inbound, "out": traffic.buffered_outbound}
    page.add_each("buffered_bytes", labels, held)
    page.add("handshake_seconds", labels, of.handshakes_done, of.handshake_seconds)
    page.add("failed_handshakes", labels, of.failed_handshakes)


class Rest:
    """What an engine has counted, without its open listeners. Never negative: what a reactor
    counts may be a moment newer in one of two numbers."""

    def __init__(self, whole: EngineStatistics) -> None:
        self.open = whole.open
        self.closing = whole.connections - whole.open
        self.accepted = whole.accepted
        self.refused_by = dict(whole.refused_by)
        self.closed_by = dict(whole.closed_by)
        self.handshakes_done = whole.handshakes_done
        self.handshake_seconds = whole.handshake_seconds
        self.failed_handshakes = whole.failed_handshakes
        self.traffic = whole.traffic

    def take(self, of: ListenerStatistics) -> None:
        """Without this one."""
        self.open -= of.open
        self.closing = max(0, self.closing - of.waiting)
        self.accepted = max(0, self.accepted - of.accepted)
        _subtract(self.refused_by, of.refused_by)
        _subtract(self.closed_by, of.closed_by)
        self.handshakes_done -= of.handshakes_done
        self.handshake_seconds = max(0.0, self.handshake_seconds - of.handshake_seconds)
        self.failed_handshakes -= of.failed_handshakes
        mine, its = attrs.asdict(self.traffic), attrs.asdict(of.traffic)
        self.traffic = type(of.traffic)(**{name: mine[name] - its[name] for name in mine})


def _subtract(counts: dict[str, int], others: Mapping[str, int]) -> None:
    for reason, count in others.items():
        counts[reason] = max(0, counts.get(reason, 0) - count)


def _add_rest(page: Page, labels: tuple[str, str], rest: Rest) -> None:
    page.add_each("connections", labels, {"open": rest.open, "closing": rest.closing})
    page.add("accepts", labels, rest.accepted)
    page.add_each("refusals", labels, rest.refused_by)
    _add_common(page, labels, rest)


def _add_own(page: Page, name: str, whole: EngineStatistics) -> None:
    """What is the engine's alone."""
    only = (name,)
    page.add("connects", only, whole.connected)
    page.add("shortages", (name, ""), whole.shortages)
    page.add_each("pool_bytes", only, {"used": whole.pool_in_use, "kept": whole.pool_kept})
    page.add("slab_bytes", only, whole.slab_bytes)
    page.add("broadcasts", only, whole.broadcasts)
    page.add_each("broadcast_members", only, whole.broadcast_to)
    page.add("wakes", only, whole.wakes)
    page.add_histogram("batch_size", name, whole.batch_sizes, SIZES)
    page.add_histogram("wake_latency_seconds", name, whole.wake_latency, LATENCIES)
    page.add("loop_lag_seconds", only, whole.loop_lag)
    page.add("loop_busy_seconds", only, whole.loop_busy_time)
    page.add("measured_seconds", only, whole.measured_time)
    for number, reactor in enumerate(whole.reactors):
        labels = (name, str(number))
        page.add("reactor_busy_seconds", labels, reactor.busy_time)
        page.add("reactor_turns", labels, reactor.turns)
        page.add("reactor_events", labels, reactor.events)
        page.add("reactor_connections", labels, reactor.connections)


# --- histograms -----------------------------------------------------------------------

# A part of the ranges that the core counts in: a bucket is a time series. From 1 microsecond to
# 17 seconds, by factors of 2.
LATENCIES = tuple(2.0**n / 1e9 for n in range(10, 35))
SIZES = tuple(2.0**n for n in range(16))


def _cumulative(histogram: Histogram, bounds: Iterable[float]) -> list[tuple[str, float]]:
    """Buckets as Prometheus has them: with everything up to their bound."""
    exact = dict.fromkeys(bounds, 0)
    below = 0
    for bound, count in zip(histogram.bounds, histogram.counts, strict=True):
        below += count
        if bound in exact:
            exact[bound] = below
    return [*((repr(bound), float(count)) for bound, count in exact.items()), ("+Inf", below)]
