"""Two connections, relayed: ``python benchmarks/experiment.py relay``.

For each way of doing it: what the proxy's process takes of a processor's time, and the messages
that pass in a second. ``bulk`` is a stream of writes of 64 KiB to a target that reads all of it,
``ping-pong`` messages of 512 B, each of which is sent back before the next one is sent. Client and
target are other processes. ``pumps`` are two tasks that receive and send, on the same transport;
``trio`` are the same two tasks on Trio's own.
"""

from __future__ import annotations

import argparse
import socket
import sys
import threading
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import attrs
from rich.console import Console
from rich.table import Table

from harness.answers import answer_all, say
from harness.machine import Machine
from harness.rounds import take_turns
from harness.worker import Worker

HOST = "127.0.0.1"
SCRIPT = "experiments/relay.py"
WORK = {"bulk": 65536, "ping-pong": 512}
PUMPS = {"threaded-relay": "threaded-pumps", "inloop-relay": "inloop-pumps"}
WAYS = ("threaded-pumps", "threaded-relay", "inloop-pumps", "inloop-relay", "trio")


@attrs.frozen
class Round:
    """What one connection's messages took."""

    rate: float
    """Messages in a second."""
    cpu: float
    """Seconds of the proxy's process for each."""


# --- the proxies ------------------------------------------------------------------------


async def pump(source: Any, sink: Any) -> None:
    while data := await source.receive_some():
        await sink.send_all(data)
    await sink.send_eof()


async def by_pumps(client: Any, server: Any) -> None:
    import trio

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump, client, server)
        nursery.start_soon(pump, server, client)


async def serve(way: str, upstream: int) -> None:
    import trio

    from trio_wknet import open_engine, relay

    transport, _, how = way.partition("-")

    async with trio.open_nursery() as nursery:
        if transport == "trio":

            async def on_trio(client: trio.SocketStream) -> None:
                async with await trio.open_tcp_stream(HOST, upstream) as server:
                    await by_pumps(client, server)

            listeners = await trio.open_tcp_listeners(0, host=HOST)
            say(listeners[0].socket.getsockname()[1])
            nursery.start_soon(trio.serve_listeners, on_trio, listeners)
            await answer()
        else:
            async with open_engine(1 if transport == "threaded" else 0) as engine:

                async def on_engine(client: Any) -> None:
                    async with await engine.connect(f"tcp://{HOST}:{upstream}") as server:
                        if how == "relay":
                            await relay(client, server)
                        else:
                            await by_pumps(client, server)

                async with await engine.listen(f"tcp://{HOST}:0") as listener:
                    say(listener.address[1])
                    nursery.start_soon(listener.serve, on_engine)
                    await answer()
                    nursery.cancel_scope.cancel()
        nursery.cancel_scope.cancel()


async def answer() -> None:
    import trio

    await trio.to_thread.run_sync(answer_all, sys.stdin, {"cpu": cpu})


def cpu() -> float:
    return time.process_time()


# --- the other ends ---------------------------------------------------------------------


def be_target(work: str) -> None:
    """Read all, and say at its end how much it was; or send everything back."""

    def take(sock: socket.socket) -> None:
        size = 0
        with sock:
            while data := sock.recv(65536):
                size += len(data)
                if work == "ping-pong":
                    sock.sendall(data)
            if work == "bulk":
                sock.sendall(size.to_bytes(8, "big"))

    def accept() -> None:
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=take, args=(sock,), daemon=True).start()

    listener = socket.create_server((HOST, 0))
    threading.Thread(target=accept, daemon=True).start()
    say(listener.getsockname()[1])
    answer_all(sys.stdin, {})


def load(port: int, work: str, seconds: float) -> tuple[int, float]:
    """Messages, and seconds from the first to when the last has arrived."""
    message, count = bytes(WORK[work]), 0
    with socket.create_connection((HOST, port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        began = time.monotonic()
        while time.monotonic() < began + seconds:
            sock.sendall(message)
            count += 1
            if work == "ping-pong":
                receive(sock, len(message))
        if work == "bulk":
            sock.shutdown(socket.SHUT_WR)
            size = int.from_bytes(receive(sock, 8), "big")
            if size != count * len(message):
                raise OSError(f"{size} of {count * len(message)} bytes arrived")
        return count, time.monotonic() - began


def receive(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise OSError("the proxy has closed the connection")
        data += more
    return data


def be_client(port: int) -> None:
    say(port)
    answer_all(sys.stdin, {"load": partial(load, port)})


# --- measuring --------------------------------------------------------------------------


def measure(way: str, work: str, seconds: float) -> Round:
    with (
        Worker(SCRIPT, "--target", work) as target,
        Worker(SCRIPT, "--serve", way, "--upstream", str(target.answer())) as proxy,
        Worker(SCRIPT, "--client", str(proxy.answer())) as client,
    ):
        client.answer()
        client.ask("load", work, 0.1)  # memory is taken, and code is warm
        client.answer()
        proxy.ask("cpu")
        before = proxy.answer()
        client.ask("load", work, seconds)
        count, took = client.answer()
        proxy.ask("cpu")
        return Round(count / took, (proxy.answer() - before) / count)


def table(work: str, found: dict[str, list[Round]]) -> Table:
    """Medians of rounds, and how many times as much a relay does as the pumps beside it."""
    shown = Table(work, "messages/s", "MB/s", "µs of CPU each", "for the CPU", "in a second")
    rows = {
        way: (median(one.rate for one in rounds), median(one.cpu for one in rounds))
        for way, rounds in found.items()
    }
    for way, (rate, cost) in rows.items():
        pumps = rows.get(PUMPS.get(way, ""))
        ratios = ("", "") if pumps is None else (pumps[1] / cost, rate / pumps[0])
        shown.add_row(
            *(way, f"{rate:.0f}", f"{rate * WORK[work] / 1e6:.1f}", f"{cost * 1e6:.1f}"),
            *(f"{ratio:.2f}" if ratio else "" for ratio in ratios),
        )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure two connections that are relayed.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of load in a round")
    parser.add_argument("--work", action="append", choices=sorted(WORK), help="by default all")
    parser.add_argument("--way", action="append", choices=WAYS, help="by default all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to FILE")
    parser.add_argument("--serve", help="be a proxy instead")
    parser.add_argument("--upstream", type=int, metavar="PORT", help="the proxy's target")
    parser.add_argument("--target", help="be the target instead")
    parser.add_argument("--client", type=int, metavar="PORT", help="be the client instead")
    options = parser.parse_args()
    if options.serve:
        import trio

        trio.run(serve, options.serve, options.upstream)
    elif options.target:
        be_target(options.target)
    elif options.client:
        be_client(options.client)
    else:
        report(options)


def report(options: argparse.Namespace) -> None:
    console, machine = Console(), Machine.here()
    console.print(str(machine), highlight=False)
    everything: dict[str, Any] = {}
    for work in options.work or WORK:
        one = partial(measure, work=work, seconds=options.seconds)
        with console.status("") as status:
            found = take_turns(tuple(options.way or WAYS), options.rounds, one, status.update)
        console.print(table(work, found), highlight=False)
        everything[work] = {way: list(map(attrs.asdict, each)) for way, each in found.items()}
    if options.json:
        machine.save(options.json, everything)


if __name__ == "__main__":
    main()
