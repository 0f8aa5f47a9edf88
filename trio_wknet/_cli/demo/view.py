"""The demo while it runs: both servers, live, on a terminal or as plain lines."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from trio_wknet._cli.demo.process import ServerProcess
from trio_wknet._cli.demo.result import Round
from trio_wknet._cli.text import time_text
from trio_wknet._load.run import LoadProgress

BARS = " ▁▂▃▄▅▆▇█"
HISTORY = 50
FRAMES_PER_SECOND = 8


@attrs.define
class Lane:
    """One server, and its figures so far."""

    title: str
    server: ServerProcess
    port: int
    rounds: list[Round] = attrs.field(factory=list)
    rates: deque[int] = attrs.field(factory=lambda: deque(maxlen=HISTORY))
    now: LoadProgress | None = None
    """While there is load on it."""
    inside: str = ""
    _last: dict[str, Any] | None = None

    def note(self, now: LoadProgress) -> None:
        """Take the news of the load generator and the server."""
        self.now = now
        if now.phase in ("warmup", "measure"):
            self.rates.append(now.rate)
        found = self.server.statistics()
        if found is not None:
            self.inside = inside_text(found, self._last)
            self._last = found


class View:
    """Both lanes on the console, which is a terminal or not."""

    def __init__(self, console: Console, title: str, lanes: list[Lane]) -> None:
        self._console = console
        self._title = title
        self._lanes = lanes

    @contextmanager
    def running(self) -> Iterator[None]:
        """Show the lanes for as long as the block lasts."""
        if self._console.is_terminal:
            with Live(
                console=self._console,
                get_renderable=self._render,
                refresh_per_second=FRAMES_PER_SECOND,
                transient=True,
            ):
                yield
        else:
            self.say(self._title)
            yield

    def say(self, line: str) -> None:
        """A plain line, where there is no live view."""
        if not self._console.is_terminal:
            self._console.print(line, highlight=False, soft_wrap=True)

    def _render(self) -> RenderableType:
        most = max((max(lane.rates, default=0) for lane in self._lanes), default=0)
        return Group(Text(self._title, style="bold"), *(_panel(lane, most) for lane in self._lanes))


def _panel(lane: Lane, most: int) -> Panel:
    """A lane; both have the same scale, so that their bars compare."""
    now = lane.now
    rate = Text(f"{now.rate:>9,} messages/s " if now else " " * 21, style="bold")
    rate.append(sparkline(lane.rates, most), style="green" if now else "dim green")
    lines = [rate, _state(now), Text(f"{'':9} {lane.inside}", style="dim")]
    if lane.rounds:
        number, last = len(lane.rounds), lane.rounds[-1]
        lines.append(Text(f"{'':9} round {number}: {round_text(last)}"))
    style = "green" if now else "dim"
    return Panel(Group(*lines), title=lane.title, title_align="left", style=style)


def _state(now: LoadProgress | None) -> Text:
    """What the load generator is doing."""
    if now is None:
        return Text(f"{'':9} waiting")
    text = Text(f"{now.connections:>9,} connections, {now.phase}")
    if now.errors.total:
        text.append(f", {now.errors.total:,} errors", style="red")
    return text


def sparkline(rates: deque[int], most: int) -> str:
    """A bar for each rate, on a scale that ends at `most`."""
    top = len(BARS) - 1
    return "".join(BARS[-(-rate * top // most)] if most else BARS[0] for rate in rates)


def round_text(one: Round) -> str:
    """A round in one line."""
    result = one.result
    latency = f"p50 {time_text(result.latency.p50)}, p99 {time_text(result.latency.p99)}"
    cost = "" if one.cpu is None else f", {one.cpu * 1e6:.1f} µs CPU"
    return f"{result.messages_per_second:,.0f} messages/s, {latency}{cost}"


# -- What the server says of itself ----------------------------------------------


def inside_text(now: dict[str, Any], last: dict[str, Any] | None) -> str:
    """A server's statistics, as rates since the last ones."""
    if "engine" not in now:
        return f"{now['handlers']:,} handlers"
    text = f"{now['listener']['handlers']:,} handlers"
    if last is None or now["at"] <= last["at"]:
        return text
    seconds = now["at"] - last["at"]
    wakes = now["engine"]["wakes"] - last["engine"]["wakes"]
    turns = _sum(now, "turns") - _sum(last, "turns")
    events = (_sum(now, "events") - _sum(last, "events")) / turns if turns else 0.0
    return (
        f"{text}; reactors: {turns / seconds:,.0f} turns/s of {events:.1f} events, "
        f"woke Trio {wakes / seconds:,.0f}/s"
    )


def _sum(statistics: dict[str, Any], counter: str) -> int:
    return sum(reactor[counter] for reactor in statistics["engine"]["reactors"])
