"""Runs the scenarios (scenarios.pyx) in every interleaving up to a bound, and then in some by
chance. ``nox -s interleavings`` builds what that needs.

Each scenario has a process of its own: what a failed run leaves cannot be tidied up.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import sys
import time
from typing import Any


def check(scenario: Any, explore: Any, departures: int, most: int) -> bool:
    started = time.monotonic()
    ordered, random, complete, report = explore(scenario, departures, most)
    what = "all" if complete else "the first"
    print(
        f"{scenario.__name__:14} {what} {ordered} with {departures} departures, "
        f"{random} by chance, {time.monotonic() - started:.1f} s",
        f"FAILED: {report}" if report else "",
        flush=True,
    )
    return not report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--long", action="store_true", help="take minutes")
    parser.add_argument("scenario", nargs="*", help="by default all")
    options = parser.parse_args()
    departures, most = (4, 100_000) if options.long else (2, 1000)
    module = importlib.import_module("trio_wknet._native.scenarios")
    gc.disable()  # a collection in some run would make it unlike the others
    good = True
    for scenario in module.SCENARIOS:
        if options.scenario and scenario.__name__ not in options.scenario:
            continue
        child = os.fork()
        if child == 0:
            os._exit(0 if check(scenario, module.explore, departures, most) else 1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status not in (0, 1):
            print(f"{scenario.__name__} ended with status {status}", flush=True)
        good = good and status == 0
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
