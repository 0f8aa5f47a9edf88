"""How the bridge should wake and await: ``python benchmarks/experiment.py bridge``.

It takes a minute. Rounds of all variants are taken in turn; the figures are medians.
"""

from __future__ import annotations

import argparse

from rich.console import Console

from experiments.bridge_awaitables import awaitable_table
from experiments.bridge_wakes import wake_table
from harness.machine import Machine


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare ways to wake and to await.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each wake measurement")
    arguments = parser.parse_args()
    console = Console()
    console.print(str(Machine.here()), highlight=False)
    for size in (1, 100):
        for busy in (False, True):
            console.print(wake_table(size, busy, arguments.rounds, arguments.seconds))
    console.print(awaitable_table(arguments.rounds, 1000))


if __name__ == "__main__":
    main()
