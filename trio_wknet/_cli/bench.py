"""`trio-wknet bench`: load on an echo server, and a table of the result."""

from __future__ import annotations

import json
import sys
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from trio_wknet._cli.text import complaint, failures, time_text
from trio_wknet._load.options import LoadOptions
from trio_wknet._load.protocol import PROTOCOLS
from trio_wknet._load.run import LoadProgress, LoadResult, run_load
from trio_wknet._sockets.address import parse_address

_TOTAL = 1000


@click.command(context_settings={"show_default": True})
@click.argument("address")
@click.argument("port", type=int, required=False)
@click.option("--connections", type=int, default=100, help="Connections in parallel.")
@click.option("--size", type=int, default=64, help="Bytes of a message, without its header.")
@click.option("--protocol", type=click.Choice(PROTOCOLS), default="raw", help="What a message is.")
@click.option(
    "--depth", type=int, show_default="1, or 64 with --rate", help="In flight per connection."
)
@click.option("--rate", type=float, help="Messages per second in total: the open loop.")
@click.option("--duration", type=float, default=10.0, help="Seconds to measure.")
@click.option(
    "--warmup", type=float, show_default="1, or 0 with --count", help="Seconds before that."
)
@click.option("--count", type=int, help="End after this number of messages.")
@click.option("--churn", is_flag=True, help="A new connection for every message.")
@click.option("--verify", is_flag=True, help="Compare every byte that comes back.")
@click.option("--grace", type=float, default=5.0, help="Seconds for the last answers.")
@click.option("--connect-timeout", type=float, default=5.0, help="Seconds for one connect.")
@click.option("--ramp-timeout", type=float, default=60.0, help="Seconds for all connects.")
@click.option("--sources", type=int, help="Loopback addresses to connect from.")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
def bench(address: str, port: int | None, *, as_json: bool, **values: Any) -> None:
    """Load the echo server at ADDRESS: tcp://host:port, unix:///path, or a host followed
    by PORT.

    Without --rate each connection sends the next message when one has come back,
    which shows the server's maximum throughput. With --rate messages are sent by the clock
    and latency counts from when each was due: only then are percentiles honest.

    With --protocol, messages have a form that a server can find them by: raw is a stream of
    bytes, length-prefixed has 4 bytes of length before each, websocket and websocket-text
    open each connection with WebSocket's handshake.

    Exit code 1: nothing was answered, something was answered wrongly, or the server
    could not be reached or was gone before the end. 2: invalid options.
    """
    try:
        options = LoadOptions(*_host_and_port(address, port), **values)
        result = _run_with_bar(options)
    except (ValueError, TypeError) as bad:
        raise click.UsageError(str(bad)) from None
    except OSError as bad:
        raise click.ClickException(bad.strerror or str(bad)) from None
    if as_json:
        click.echo(json.dumps(result.to_json()))
    else:
        click.echo(_title(options))
        Console().print(_table(result))
    if not result.ok:
        click.echo(f"Error: {complaint(result)}", err=True)
        sys.exit(1)


def _host_and_port(address: str, port: int | None) -> tuple[str, int | None]:
    """The generator's host and port of an address as the library writes it."""
    if not address.startswith("tcp://"):
        return address, port
    if port is not None:
        raise ValueError(f"address {address!r} has a port already, so PORT must not be {port}")
    parsed = parse_address(address)
    return parsed.host or "localhost", parsed.port


# -- While it runs -------------------------------------------------------------


def _run_with_bar(options: LoadOptions) -> LoadResult:
    console = Console(stderr=True)
    if not console.is_terminal:
        return run_load(options)
    columns = (TextColumn("{task.description:<7}"), BarColumn(), TaskProgressColumn())
    live = TextColumn("{task.fields[live]}")
    with Progress(*columns, live, console=console, transient=True) as bar:
        task = bar.add_task("ramp", total=_TOTAL, live="")

        def show(now: LoadProgress) -> None:
            done = _TOTAL * _share(options, now)
            bar.update(task, description=now.phase, completed=done, live=_live_line(now))

        return run_load(options, on_progress=show)


def _share(options: LoadOptions, now: LoadProgress) -> float:
    """How much of the run is over, by messages if they bound it, else by time."""
    if options.count is not None:
        return min(1.0, now.messages / options.count)
    return min(1.0, now.elapsed / (options.real_warmup + options.duration))


def _live_line(now: LoadProgress) -> str:
    line = f"{now.rate:,} msg/s  {now.connections:,} connections"
    return line + (f"  {now.errors.total:,} errors" if now.errors.total else "")


# -- When it is over -----------------------------------------------------------


def _table(result: LoadResult) -> Table:
    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    unit = "connections/s" if result.options.churn else "messages/s"
    table.add_row(unit, f"{result.messages_per_second:,.0f}")
    table.add_row("MB/s", f"{result.megabytes_per_second:,.1f}")
    table.add_row("measured", f"{result.messages:,} in {result.seconds:.2f} s")
    table.add_section()
    for name in ("p50", "p90", "p99", "p999", "max", "mean"):
        seconds = getattr(result.latency, name)
        table.add_row(f"latency {name}", time_text(seconds) if result.latency.count else "-")
    table.add_section()
    table.add_row("connections opened", f"{result.opened:,}")
    table.add_row("unfinished", f"{result.unfinished:,}")
    for name, number in failures(result.errors):
        table.add_row(f"errors: {name}", f"{number:,}", style="red")
    table.add_row("ended by", result.ended.replace("_", " "))
    return table


def _title(options: LoadOptions) -> str:
    where = options.host if options.port is None else f"{options.host} port {options.port}"
    how = {"closed": "closed loop", "open": f"{options.rate:,g}/s" if options.rate else ""}
    mode = how.get(options.mode, "churn")
    load = f"{options.connections} x {options.real_depth} x {options.size} bytes"
    return f"{where}: {mode}, {load}, {options.protocol}"
