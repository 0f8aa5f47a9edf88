"""`trio-wknet top`: a live view of a process's engines, from the page that they write."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import Any

import attrs
import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from trio_wknet._cli.text import time_text
from trio_wknet._top.layout import RANKINGS
from trio_wknet._top.reader import WatchedProcess, WatchError, find_process
from trio_wknet._top.sample import Reading, Sample, ranked, sample

_STUCK = 1.0  # seconds after which something is shown as late
_FIRST = 0.5  # seconds between the two readings of the first view
_WIDTH = 160  # of what is not printed to a terminal
_PATIENCE = 2.0  # seconds in which Trio's loop should answer


@click.command(context_settings={"show_default": True})
@click.argument("process", metavar="PID|NAME")
@click.option("--once", is_flag=True, help="Print one view, and end.")
@click.option("--json", "as_json", is_flag=True, help="Print one view as JSON, and end.")
@click.option("--stacks", is_flag=True, help="Ask Trio's loop for the connections' tasks.")
@click.option(
    "--interval", type=click.FloatRange(0.2, 60), default=1.0, help="Seconds between two views."
)
@click.option(
    "--rows", type=click.IntRange(1, 16), default=5, help="Connections in each of the lists."
)
def top(
    process: str, *, once: bool, as_json: bool, stacks: bool, interval: float, rows: int
) -> None:
    """Watch the engines of the process PID, or of the one that calls itself NAME.

    It must have been started with trio_wknet.run(..., top=True), top="NAME", or with the
    environment variable WKNET_TOP=1 or WKNET_TOP=NAME, by the same user. Watching works while
    its Trio loop is stuck; only --stacks needs an answer of the loop.

    Exit code 1: the process cannot be watched, or has ended.
    """
    try:
        with WatchedProcess(find_process(process)) as watched:
            if once or as_json:
                _print_once(watched, stacks, rows, as_json)
            else:
                with suppress(KeyboardInterrupt):  # how it is meant to end
                    _watch(watched, stacks, rows, interval)
    except WatchError as failure:
        raise click.ClickException(str(failure)) from None


def _print_once(watched: WatchedProcess, stacks: bool, rows: int, as_json: bool) -> None:
    watched.wait_until_written()
    before = _read(watched)
    time.sleep(_FIRST)
    samples = _samples(watched, before, _read(watched))
    tasks = _tasks(watched) if stacks else None
    if as_json:
        found = [attrs.asdict(one) for one in samples]
        click.echo(json.dumps({"pid": watched.pid, "engines": found, "tasks": tasks}))
    else:
        _console().print(_view(watched.pid, samples, rows, stacks, tasks))


def _console() -> Console:
    console = Console()
    if not console.is_terminal:
        console.width = _WIDTH
    return console


def _watch(watched: WatchedProcess, stacks: bool, rows: int, interval: float) -> None:
    watched.wait_until_written()
    before, pause = _read(watched), min(interval, _FIRST)
    with Live(console=_console(), auto_refresh=False) as live:
        while True:
            time.sleep(pause)
            _refresh(watched)
            now = _read(watched)
            tasks = _tasks(watched) if stacks else None
            samples = _samples(watched, before, now)
            view = _view(watched.pid, samples, rows, stacks, tasks)
            if live.console.is_terminal:
                live.update(view, refresh=True)
            else:
                live.console.print(view)
            before, pause = now, interval


def _refresh(watched: WatchedProcess) -> None:
    """See whether the process and its engines are still there, and have them write on."""
    if not watched.alive:
        raise WatchError(f"process {watched.pid} has ended")
    if any(page.closed for page in watched.pages):
        watched.find_pages()
        if not watched.pages:
            raise WatchError(f"process {watched.pid} has closed its engines")
    watched.beat()


def _read(watched: WatchedProcess) -> dict[int, Reading]:
    """By when the engine was opened."""
    if not watched.alive:
        raise WatchError(f"process {watched.pid} has ended")
    return {page.header.opened: Reading.of(page) for page in watched.pages}


def _samples(
    watched: WatchedProcess, before: dict[int, Reading], now: dict[int, Reading]
) -> list[Sample]:
    found = []
    for page in watched.pages:
        reading = now[page.header.opened]
        found.append(sample(page, before.get(page.header.opened, reading), reading))
    return found


def _tasks(watched: WatchedProcess) -> dict[int, dict[str, Any]] | None:
    """Of all engines; None if the loop of one does not answer."""
    found: dict[int, dict[str, Any]] = {}
    for page in watched.pages:
        tasks = page.tasks(_PATIENCE)
        if tasks is None:
            return None
        found |= tasks
    return found


# -- the view --------------------------------------------------------------------------


def _view(
    pid: int,
    samples: list[Sample],
    rows: int,
    stacks: bool,
    tasks: dict[int, dict[str, Any]] | None,
) -> RenderableType:
    parts: list[RenderableType] = []
    for one in samples:
        parts += [_title(pid, one), _loop_line(one), _reactor_table(one)]
        if one.listeners:
            parts.append(_listener_table(one))
        parts += [
            _conn_table(what, listed) for what in RANKINGS if (listed := ranked(one, what, rows))
        ]
    if stacks:
        parts.append(_stack_text(samples, rows, tasks))
    return Group(*parts)


def _title(pid: int, one: Sample) -> Text:
    name = f" {one.name!r}" if one.name else ""
    form = "in-loop" if one.in_loop else f"{len(one.reactors)} reactors"
    return Text(
        f"process {pid}{name}: engine, {form}, {one.connections:,} connections, "
        f"{_bytes(one.inbound)} unread, {_bytes(one.outbound)} unsent",
        style="bold",
    )


def _loop_line(one: Sample) -> Text:
    loop = one.loop
    text = Text(
        f"Trio's loop: busy {loop['busy']:.0%}, lag {_time(loop['lag'])} "
        f"(p50 {_time(loop['lag_p50'])}, p99 {_time(loop['lag_p99'])}, "
        f"max {_time(loop['lag_max'])}), {loop['wakes']:,.0f} wakes/s, "
        f"{loop['batches']:,.0f} batches/s of {loop['news_by_batch']:.1f}"
    )
    late = max(loop["running_for"], loop["news_wait_for"])
    if late >= _STUCK:
        text.append(f"\nTrio's loop is stuck: it has not come round for {_time(late)}", "bold red")
    if loop["written_ago"] >= 2 * _STUCK:
        text.append(
            f"\nthe process does not run: last sign {_time(loop['written_ago'])} ago", "red"
        )
    return text


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, justify="left" if column in _TEXTS else "right", no_wrap=True)
    return table


_TEXTS = {"reactor", "listener", "busiest", "largest", "slowest", "state"}


def _reactor_table(one: Sample) -> Table:
    table = _table("reactor", "busy", "conns", "turns/s", "events/s", "unread", "unsent", "as of")
    for row in one.reactors:
        ago = row["written_ago"]
        table.add_row(
            *(str(row["reactor"]), f"{row['busy']:.0%}", f"{row['connections']:,}"),
            *(f"{row['turns']:,.0f}", f"{row['events']:,.0f}"),
            *(_bytes(row["inbound"]), _bytes(row["outbound"])),
            "never" if ago is None else f"{_time(ago)} ago",
            style="red" if ago is None or ago >= _STUCK else "",
        )
    return table


def _listener_table(one: Sample) -> Table:
    table = _table("listener", "accepted", "waiting")
    for row in one.listeners:
        where = escape(", ".join(row["addresses"]))
        table.add_row(where, f"{row['accepted']:,}", f"{row['waiting']:,}")
    return table


def _conn_table(what: str, listed: list[dict[str, Any]]) -> Table:
    table = _table(what, "state", "rate/s", "received", "sent", "unread", "unsent", "quiet", "age")
    for row in listed:
        table.add_row(
            *(escape(row["peer"]), row["state"], _bytes(row["rate"])),
            *(_bytes(row[name]) for name in ("received", "sent", "inbound", "outbound")),
            *(_time(row["quiet"]), _time(row["age"])),
        )
    return table


def _stack_text(samples: list[Sample], rows: int, tasks: dict[int, dict[str, Any]] | None) -> Text:
    if tasks is None:
        return Text(f"Trio's loop did not answer within {_PATIENCE:g} s: no stacks", "bold red")
    text = Text()
    listed = {
        conn["id"]: conn["peer"]
        for one in samples
        for what in RANKINGS
        for conn in ranked(one, what, rows)
    }
    for number, task in tasks.items():
        if listed and number not in listed:
            continue
        peer = listed.get(number, f"connection {number}")
        text.append(f"{peer}: {task['name']}, waits for {task['waits_for']}\n", "bold")
        text.append("".join(f"    {line}\n" for line in task["stack"]))
    return text


def _time(seconds: float) -> str:
    return time_text(seconds) if seconds < 100 else f"{seconds:,.0f} s"


def _bytes(number: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:,.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:,.1f} GiB"
