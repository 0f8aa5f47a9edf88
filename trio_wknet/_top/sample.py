"""What two readings of an engine's page say: rates, shares, and how late things are."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import attrs

from trio_wknet._statistics import lag_histogram
from trio_wknet._top.layout import RANKINGS

if TYPE_CHECKING:
    from trio_wknet._top.layout import ConnRow, LoopRow, ReactorRow
    from trio_wknet._top.reader import EnginePage


@attrs.frozen
class Reading:
    """An engine's page at one moment."""

    at: int
    loop: LoopRow
    reactors: list[ReactorRow]

    @classmethod
    def of(cls, page: EnginePage) -> Reading:
        loop, reactors = page.loop(), page.reactors()
        return cls(time.monotonic_ns(), loop, reactors)


@attrs.frozen(kw_only=True)
class Sample:
    """The difference of two. Times in seconds, rates by the second."""

    name: str
    in_loop: bool
    connections: int
    inbound: int
    outbound: int
    loop: dict[str, Any]
    reactors: list[dict[str, Any]]
    listeners: list[dict[str, Any]]
    conns: list[dict[str, Any]]


def sample(page: EnginePage, before: Reading, now: Reading) -> Sample:
    return Sample(
        name=page.header.name,
        in_loop=page.header.reactors == 0,
        connections=sum(reactor.connections for reactor in now.reactors),
        inbound=sum(reactor.inbound for reactor in now.reactors),
        outbound=sum(reactor.outbound for reactor in now.reactors),
        loop=_loop(before, now),
        reactors=[
            _reactor(index, *rows, now.at)
            for index, rows in enumerate(zip(before.reactors, now.reactors, strict=True))
        ],
        listeners=_listeners(now.reactors),
        conns=[_conn(row, now.at) for reactor in now.reactors for row in reactor.conns],
    )


def _seconds(later: int, earlier: int) -> float:
    return max(later - earlier, 0) / 1e9


def _rate(after: int, before: int, seconds: float) -> float:
    return max(after - before, 0) / seconds if seconds else 0.0


def _loop(before: Reading, now: Reading) -> dict[str, Any]:
    a, b = before.loop, now.loop
    passed = _seconds(b.written_at, a.written_at)
    lags = lag_histogram(list(b.lags), (b.lag, b.longest_lag, b.total_lag))
    # While it runs, what it has run for so far is not in `busy` yet.
    running = _seconds(b.written_at, b.running_since) if b.running_since else 0.0
    busy = _seconds(b.busy, a.busy)
    return {
        "busy": min((max(busy, min(running, passed))) / passed, 1.0) if passed else 0.0,
        "running_for": running,
        "news_wait_for": _seconds(b.written_at, b.posted_at) if b.posted_at else 0.0,
        "lag": b.lag / 1e9,
        "lag_p50": lags.percentile(50),
        "lag_p99": lags.percentile(99),
        "lag_max": lags.maximum,
        "wakes": _rate(b.wakes, a.wakes, passed),
        "batches": _rate(b.batches, a.batches, passed),
        "news_by_batch": _ratio(b.completions - a.completions, b.batches - a.batches),
        "written_ago": _seconds(now.at, b.written_at),
    }


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole > 0 else 0.0


def _reactor(index: int, a: ReactorRow, b: ReactorRow, at: int) -> dict[str, Any]:
    passed = _seconds(b.written_at, a.written_at)
    return {
        "reactor": index,
        "connections": b.connections,
        "busy": min(_seconds(b.busy, a.busy) / passed, 1.0) if passed else 0.0,
        "turns": _rate(b.turns, a.turns, passed),
        "events": _rate(b.events, a.events, passed),
        "inbound": b.inbound,
        "outbound": b.outbound,
        "pool_in_use": b.pool_in_use,
        "written_ago": _seconds(at, b.written_at) if b.written_at else None,
        "listed_ago": _seconds(at, b.passed_at) if b.passed_at else None,
    }


def _listeners(reactors: list[ReactorRow]) -> list[dict[str, Any]]:
    """By listener: its ports may be on several reactors."""
    found: dict[int, dict[str, Any]] = {}
    for port in (port for reactor in reactors for port in reactor.ports):
        one = found.setdefault(port.listener, {"addresses": [], "accepted": 0, "waiting": 0})
        if port.address not in one["addresses"]:
            one["addresses"].append(port.address)
        one["accepted"] = max(one["accepted"], port.accepted)
        one["waiting"] = port.waiting
    return list(found.values())


def _conn(row: ConnRow, at: int) -> dict[str, Any]:
    return {
        "id": row.id,
        "peer": row.address,
        "state": row.state,
        "received": row.received,
        "sent": row.sent,
        "rate": _rate(row.moved, 0, row.moved_in / 1e9),
        "inbound": row.inbound,
        "outbound": row.outbound,
        "age": _seconds(at, row.opened),
        "quiet": _seconds(at, row.moved_at),
        "listed_as": [what for what in RANKINGS if what in row.ranks],
    }


_ORDERS = {
    "busiest": lambda conn: conn["rate"],
    "largest": lambda conn: conn["inbound"] + conn["outbound"],
    "slowest": lambda conn: conn["quiet"],
}


def ranked(found: Sample, what: str, most: int) -> list[dict[str, Any]]:
    """The first connections of one of the rankings."""
    listed = [conn for conn in found.conns if what in conn["listed_as"]]
    return sorted(listed, key=_ORDERS[what], reverse=True)[:most]
