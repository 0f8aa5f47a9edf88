"""The same server on Trio's own transport and on this library's, measured in turn: what the
scripts have in common that compare no more than that."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
from rich.console import Console
from rich.table import Table

from harness.machine import Machine
from harness.rounds import take_turns

OWN = "trio"
REACTORS = {OWN: None, "wknet-inloop": 0, "wknet-threaded": 1}


def run_server(name: str, core: int, serve: Callable[[], Awaitable[None]]) -> None:
    """Be a server, on a core and on the transport of that name."""
    import trio

    import trio_wknet

    os.sched_setaffinity(0, {core})
    if name == OWN:
        trio.run(serve)
    else:
        trio_wknet.run(serve, reactors=REACTORS[name])


def parser(description: str) -> argparse.ArgumentParser:
    """The options that all such scripts have."""
    ours = [name for name in REACTORS if name != OWN]
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--server", choices=ours, action="append", help="may be repeated")
    made.add_argument("--json", type=Path, metavar="FILE", help="write everything to FILE")
    made.add_argument("--serve", choices=list(REACTORS), help="be a server instead")
    made.add_argument("--core", type=int, default=0, help="of --serve")
    return made


def compare(
    arguments: argparse.Namespace,
    settings: Any,
    wanted: float,
    one: Callable[[str], Any],
    table: Callable[[dict[str, list[Any]]], Table],
) -> None:
    """Measure all, or those that were asked for beside Trio's; show that, and write it."""
    chosen = arguments.server or REACTORS
    names = tuple(name for name in REACTORS if name == OWN or name in chosen)
    console, machine = Console(), Machine.here()
    console.print(str(machine), highlight=False)
    with console.status("") as status:
        found = take_turns(names, arguments.rounds, one, status.update)
    console.print(table(found), f"wanted: {wanted} of one of ours", highlight=False)
    if arguments.json:
        everything = {
            "machine": attrs.asdict(machine),
            "settings": attrs.asdict(settings),
            "results": {
                name: [attrs.asdict(it) for it in rounds] for name, rounds in found.items()
            },
        }
        arguments.json.write_text(json.dumps(everything, indent=1) + "\n")
