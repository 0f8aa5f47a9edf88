"""What it costs to be watched: ``python benchmarks/experiment.py sight``.

A closed loop of 100 connections on an echo server in event mode, which is not watched, in turn
with one that measures (`Engine.measure`), one that `trio-wknet top` watches each second, one whose
metrics are scraped each second over HTTP, and one that looks out for stalls. It takes less than
three minutes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING
from urllib.request import urlopen

import attrs
from rich.console import Console
from rich.table import Table

from harness.answers import say
from harness.machine import Machine
from harness.rounds import take_turns
from harness.worker import Worker
from trio_wknet._load.cpu import CpuMeter
from trio_wknet._load.options import LoadOptions
from trio_wknet._load.run import run_load
from trio_wknet._top.reader import WatchedProcess

if TYPE_CHECKING:
    import trio

    from trio_wknet import Conn, Engine

HOST = "127.0.0.1"
SCRIPT = "experiments/sight.py"
WAYS = ("alone", "measure", "top", "scrape", "stalls")
INTERVAL = 1.0  # seconds between scrapes
WANTED = 0.99
PATIENCE = 30.0  # seconds


def serve(way: str, reactors: int) -> None:
    """Echo, watched in one of the ways."""
    import trio

    import trio_wknet

    def answer(conn: Conn) -> None:
        conn.send_nowait(conn.receive_nowait())

    async def main() -> None:
        on_stall = "log" if way == "stalls" else None
        async with (
            trio_wknet.open_engine(reactors, on_stall=on_stall, stall_after=0.5) as engine,
            trio.open_nursery() as nursery,
        ):
            if way == "measure":
                engine.measure()
            listener = await engine.listen(f"tcp://{HOST}:0")
            await nursery.start(listener.serve_events, answer)
            ports = [listener.address[1]]
            if way == "scrape":
                ports.append(await serve_metrics(engine, nursery))
            say(ports)
            await trio.to_thread.run_sync(sys.stdin.read)  # until the parent closes it
            nursery.cancel_scope.cancel()

    trio_wknet.run(main, top=way == "top")


async def serve_metrics(engine: Engine, nursery: trio.Nursery) -> int:
    """The port that it is at: an answer to whatever is asked."""
    from prometheus_client import CollectorRegistry, generate_latest

    from trio_wknet.contrib.prometheus import WknetCollector

    registry = CollectorRegistry()
    registry.register(WknetCollector(engine))

    async def answer(conn: Conn) -> None:
        await conn.receive_until(b"\r\n\r\n")
        head = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n"
        await conn.send_all(head + generate_latest(registry))

    listener = await engine.listen(f"tcp://{HOST}:0")
    await nursery.start(listener.serve, answer)
    port: int = listener.address[1]
    return port


@contextmanager
def scraped(port: int) -> Iterator[None]:
    """By a thread of this process, at once and then each second."""
    over = threading.Event()
    pages: list[bytes] = []

    def scrape() -> None:
        while True:
            with urlopen(f"http://{HOST}:{port}/metrics", timeout=PATIENCE) as page:
                pages.append(page.read())
            if over.wait(INTERVAL):
                return

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if not any(b"wknet_received_bytes_total" in page for page in pages):
        raise SystemExit("nothing was scraped")


@contextmanager
def watched(way: str, pid: int, ports: list[int]) -> Iterator[None]:
    if way == "scrape":
        with scraped(ports[1]):
            yield
        return
    if way != "top":
        yield
        return
    command = [sys.executable, "-m", "trio_wknet", "top", str(pid), "--interval", "1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as top:
        try:
            _wait_until_watched(pid)
            yield
            if top.poll() is not None:
                raise SystemExit(f"top ended before the load, with {top.returncode}")
        finally:
            top.kill()


def _wait_until_watched(pid: int) -> None:
    """Starting it is not what is measured."""
    until = time.monotonic() + PATIENCE
    with WatchedProcess(pid) as server:
        while server.pages[0].loop().written_at == 0:
            if time.monotonic() > until:
                raise SystemExit("top does not watch the server")
            time.sleep(0.05)


def one(way: str, reactors: int, connections: int, seconds: float) -> tuple[float, float]:
    """Messages a second, and the server's CPU time for each, in seconds."""
    with Worker(SCRIPT, "--serve", way, "--reactors", str(reactors)) as worker:
        ports = worker.answer()
        meter = CpuMeter(worker.pid)
        options = LoadOptions(HOST, ports[0], connections=connections, duration=seconds, warmup=0.5)
        with watched(way, worker.pid, ports):
            result = run_load(options, on_progress=meter.note)
    if not result.ok:
        raise SystemExit(f"the load failed: {result.errors}")
    return result.messages_per_second, meter.per_message or 0.0


@attrs.frozen(kw_only=True)
class Row:
    """A way, compared with none, by the median of the rounds' ratios."""

    reactors: int
    way: str
    rate: float
    cpu: float


def compare(
    reactors: int, rounds: int, connections: int, seconds: float, report: Callable[[str], object]
) -> list[Row]:
    found = take_turns(WAYS, rounds, lambda way: one(way, reactors, connections, seconds), report)
    alone = found["alone"]
    return [
        Row(
            reactors=reactors,
            way=way,
            rate=median(a[0] / b[0] for a, b in zip(found[way], alone, strict=True)),
            cpu=median(
                b[1] / a[1] if a[1] else 0.0 for a, b in zip(found[way], alone, strict=True)
            ),
        )
        for way in WAYS[1:]
    ]


def table(rows: list[Row]) -> Table:
    shown = Table("reactors", "way", "messages a second", "messages by CPU", "wanted")
    for row in rows:
        form = str(row.reactors) if row.reactors else "in-loop"
        shown.add_row(form, row.way, f"{row.rate:.3f}", f"{row.cpu:.3f}", f"{WANTED}")
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what it costs to be watched.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=100)
    parser.add_argument("--duration", type=float, default=1.5, help="seconds of a round")
    parser.add_argument("--reactors", type=int, help="only so many (default: 0, then 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to FILE")
    parser.add_argument("--serve", help="be a server instead")
    given = parser.parse_args()
    if given.serve:
        serve(given.serve, given.reactors)
        return
    console = Console()
    rows: list[Row] = []
    with console.status("") as status:
        for reactors in (0, 1) if given.reactors is None else (given.reactors,):
            rows += compare(
                reactors, given.rounds, given.connections, given.duration, status.update
            )
    console.print(table(rows))
    if given.json:
        Machine.here().save(given.json, [attrs.asdict(row) for row in rows])


if __name__ == "__main__":
    main()
