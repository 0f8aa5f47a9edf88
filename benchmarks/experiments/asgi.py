"""hypercorn on this library beside hypercorn on Trio: ``python benchmarks/experiment.py asgi``.

The application is one line, so what is measured is hypercorn, h11, Trio and the
transport; of these only the last differs. wrk asks, over 64 connections. Servers are
measured in turn, round by round, each time in a fresh process, the server on a core of
its own and wrk on another. Needs hypercorn, and wrk (Debian's package).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import partial
from statistics import median
from urllib.parse import urlsplit

import attrs
from rich.table import Table

from harness.answers import answer_all, say
from harness.asgi_app import app
from harness.measure import running_on
from harness.transports import OWN, compare, parser, run_server
from harness.worker import Worker
from trio_wknet._load.cpu import cpu_seconds

HOST = "127.0.0.1"
WANTED = 1.25  # times Trio's requests a second
UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


# --- the server ---------------------------------------------------------------------


async def serve() -> None:
    """Until standard input ends."""
    import trio
    from hypercorn.config import Config
    from hypercorn.trio import serve

    config = Config.from_mapping(bind=f"{HOST}:0", errorlog=None)
    async with trio.open_nursery() as nursery:
        stop = partial(serve, app, config, shutdown_trigger=trio.sleep_forever)
        (bind,) = await nursery.start(stop)
        say(urlsplit(bind).port)
        await trio.to_thread.run_sync(answer_all, sys.stdin, {})
        nursery.cancel_scope.cancel()


# --- the load -----------------------------------------------------------------------


@attrs.frozen
class Round:
    """What wrk says of one server, once."""

    per_second: float
    median_latency: float
    p99_latency: float
    cpu_per_request: float
    """Of the server, in seconds."""


@attrs.frozen
class Settings:
    rounds: int
    duration: int
    connections: int


def _seconds(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s)", text).groups()  # type: ignore[union-attr]
    return float(number) * UNITS[unit]


def ask(port: int, duration: int, connections: int) -> str:
    """What wrk says. A request that was not answered properly is an error."""
    command = ["wrk", "--latency", "-t1", f"-c{connections}", f"-d{duration}s"]
    done = subprocess.run(
        [*command, f"http://{HOST}:{port}/"], capture_output=True, text=True, check=True
    )
    if "Socket errors" in done.stdout or "Non-2xx" in done.stdout:
        raise RuntimeError(f"not answered properly:\n{done.stdout}")
    return done.stdout


def measure(name: str, settings: Settings) -> Round:
    """A fresh server, warmed up and loaded once."""
    cores = sorted(os.sched_getaffinity(0))
    with Worker("experiments/asgi.py", "--serve", name, f"--core={cores[0]}") as server:
        port = server.answer()
        with running_on({cores[-1]}):
            ask(port, 1, settings.connections)
            before = cpu_seconds(server.pid)
            said = ask(port, settings.duration, settings.connections)
            spent = cpu_seconds(server.pid) - before
    (requests,) = re.findall(r"(\d+) requests in", said)
    (per_second,) = re.findall(r"Requests/sec:\s+([\d.]+)", said)
    latency = dict(re.findall(r"^\s+(50|99)%\s+(\S+)", said, re.MULTILINE))
    return Round(
        float(per_second), _seconds(latency["50"]), _seconds(latency["99"]), spent / int(requests)
    )


def table(found: dict[str, list[Round]], settings: Settings) -> Table:
    """Medians of rounds."""
    title = f"hypercorn, one-line application, wrk, {settings.connections} connections"
    shown = Table("server", "requests/s", "p50", "p99", "CPU/request", "ratio", title=title)
    trio = median(one.per_second for one in found[OWN])
    for name, rounds in found.items():
        mid = [median(column) for column in zip(*map(attrs.astuple, rounds), strict=True)]
        shown.add_row(
            name,
            f"{mid[0]:.0f}",
            f"{mid[1] * 1e3:.2f} ms",
            f"{mid[2] * 1e3:.2f} ms",
            f"{mid[3] * 1e6:.0f} µs",
            f"{mid[0] / trio:.2f}",
        )
    return shown


def main() -> None:
    options = parser("Measure hypercorn on either transport.")
    options.add_argument("--duration", type=int, default=3, help="seconds of one round")
    options.add_argument("--connections", type=int, default=64)
    arguments = options.parse_args()
    if arguments.serve:
        run_server(arguments.serve, arguments.core, serve)
        return
    settings = Settings(arguments.rounds, arguments.duration, arguments.connections)
    one, shown = partial(measure, settings=settings), partial(table, settings=settings)
    compare(arguments, settings, WANTED, one, shown)


if __name__ == "__main__":
    main()
