"""`trio-wknet demo`: the same echo handler on this library and on Trio's own transport,
under the same load, live, and a table of both."""

from __future__ import annotations

import json
from contextlib import ExitStack

import attrs
import click
from rich.console import Console

from trio_wknet._cli.demo.process import ServerFailed, ServerProcess
from trio_wknet._cli.demo.result import Comparison, Round, reactors_text
from trio_wknet._cli.demo.view import Lane, View, round_text
from trio_wknet._cli.text import complaint
from trio_wknet._engine import MAX_REACTORS
from trio_wknet._load.cpu import CpuMeter
from trio_wknet._load.options import LoadOptions
from trio_wknet._load.run import LoadProgress, run_load

HOST = "127.0.0.1"
ROUNDS = 2
WARMUP = 0.5


@click.command(context_settings={"show_default": True})
@click.option("--connections", type=int, default=100, help="Connections in parallel.")
@click.option("--size", type=int, default=64, help="Bytes of a message.")
@click.option("--duration", type=float, default=4.0, help="Seconds of each of the four loads.")
@click.option(
    "--reactors",
    type=click.IntRange(0, MAX_REACTORS),
    show_default="the library's choice",
    help="Reactor threads; 0 runs the reactor in Trio's own thread.",
)
@click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
def demo(
    connections: int, size: int, duration: float, reactors: int | None, *, as_json: bool
) -> None:
    """Compare this library with Trio's own transport, in about 20 seconds.

    An echo server on each, both with the same handler, take turns under the same load.
    Each server is a process of its own, and so is the load. Needs no network.

    Exit code 1: a server failed, or connections to it did. 2: invalid options.
    """
    try:
        options = LoadOptions(HOST, 1, connections=connections, size=size, duration=duration)
        options = attrs.evolve(options, warmup=min(WARMUP, duration))
        found = compare(options, reactors, Console(stderr=True))
    except (ValueError, TypeError) as bad:
        raise click.UsageError(str(bad)) from None
    except (OSError, ServerFailed) as bad:
        raise click.ClickException(getattr(bad, "strerror", None) or str(bad)) from None
    if as_json:
        click.echo(json.dumps(found.to_json()))
    else:
        Console().print(found.table())
        click.echo(found.what_was_measured())


def compare(options: LoadOptions, reactors: int | None, console: Console) -> Comparison:
    """Load both servers in turn, showing it on the console.

    Raises `ServerFailed` when a load was not answered as it should be, and what
    `run_load` raises. However it ends, the servers have ended before.
    """
    with ExitStack() as stack:
        wknet = stack.enter_context(ServerProcess("wknet", reactors))
        trio = stack.enter_context(ServerProcess("trio"))
        hello, port = wknet.hello(), trio.hello()["port"]
        lanes = [
            Lane(f"trio_wknet, {reactors_text(hello['reactors'])}", wknet, hello["port"]),
            Lane("Trio, serve_tcp", trio, port),
        ]
        title = f"Echo, {options.connections:,} connections, {options.size:,} bytes"
        view = View(console, title, lanes)
        with view.running():
            for lane in lanes:
                view.say(f"{lane.title}: process {lane.server.pid}, port {lane.port}")
            for number in range(ROUNDS):
                for lane in lanes:
                    _load(options, lane)
                    view.say(f"round {number + 1}, {lane.title}: {round_text(lane.rounds[-1])}")
        return Comparison(options, hello["reactors"], *(lane.rounds for lane in lanes))


def _load(options: LoadOptions, lane: Lane) -> None:
    """A round of load on one server."""
    meter = CpuMeter(lane.server.pid)

    def note(now: LoadProgress) -> None:
        meter.note(now)
        lane.note(now)

    result = run_load(attrs.evolve(options, port=lane.port), on_progress=note)
    lane.now = None
    if not result.ok or result.errors.total:
        raise ServerFailed(f"{lane.title}: {complaint(result)}{lane.server.epitaph()}")
    lane.rounds.append(Round(result, meter.per_message))
