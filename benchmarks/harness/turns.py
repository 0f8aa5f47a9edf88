"""The command line of an experiment whose ways take turns, round by round."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import attrs
from rich.console import Console
from rich.table import Table

from harness.machine import Machine
from harness.rounds import take_turns

T = TypeVar("T")


def add_turns(parser: argparse.ArgumentParser, *, rounds: int) -> None:
    parser.add_argument("--rounds", type=int, default=rounds, help=f"default {rounds}")
    parser.add_argument("--way", action="append", help="may be repeated; by default all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to FILE")


def show_turns(
    options: argparse.Namespace,
    ways: Sequence[str],
    one: Callable[[str], T],
    table: Callable[[dict[str, list[T]]], Table],
) -> None:
    """Measure, and print a table of what each way found in its rounds.

    Args:
      ways: those that are measured unless the options name some.
      one: measures a way once.
    """
    console, machine = Console(), Machine.here()
    console.print(str(machine), highlight=False)
    with console.status("") as status:
        found = take_turns(tuple(options.way or ways), options.rounds, one, status.update)
    console.print(table(found), highlight=False)
    if options.json:
        machine.save(options.json, {way: [*map(plain, rounds)] for way, rounds in found.items()})


def plain(found: object) -> object:
    """As JSON has it."""
    if isinstance(found, list):
        return [*map(plain, found)]
    return attrs.asdict(found)  # type: ignore[arg-type]
