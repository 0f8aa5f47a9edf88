"""TLS echo on this library beside Trio's: ``python benchmarks/experiment.py tls``.

The server is `trio.serve_ssl_over_tcp` each time, so what is measured is OpenSSL,
`trio.SSLStream` and the transport; of these only the last differs. Servers are measured
in turn, round by round, each time in a fresh process, the server on a core of its own and
the load on another. Needs trustme.
"""

from __future__ import annotations

import select
import socket
import ssl
import sys
from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import Any

import attrs
from rich.table import Table

from harness import python_load
from harness.answers import answer_all, say
from harness.python_load import PythonLoad, Round
from harness.transports import OWN, compare, parser, run_server

HOST = "127.0.0.1"
WANTED = 1.3  # times Trio's messages a second


# --- the server ---------------------------------------------------------------------


async def echo(stream: Any) -> None:
    try:
        async for data in stream:
            await stream.send_all(data)
    except Exception:
        pass  # the load leaves in the middle of a message


async def serve() -> None:
    """Until standard input ends."""
    import trio
    import trustme

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    async with trio.open_nursery() as nursery:
        server = partial(trio.serve_ssl_over_tcp, echo, 0, context, host=HOST)
        (listener,) = await nursery.start(server)
        say(listener.transport_listener.socket.getsockname()[1])
        await trio.to_thread.run_sync(answer_all, sys.stdin, {})
        nursery.cancel_scope.cancel()


# --- the load -----------------------------------------------------------------------


class Load(PythonLoad):
    """Connections, each with a message under way."""

    def __init__(self, connections: int, size: int, port: int, stack: ExitStack) -> None:
        super().__init__(stack)
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self._message = bytes(size)
        self._socks: dict[int, ssl.SSLSocket] = {}
        self._missing: dict[int, int] = {}
        for _ in range(connections):
            plain = socket.create_connection((HOST, port), timeout=60)
            sock = stack.enter_context(context.wrap_socket(plain))
            sock.setblocking(False)
            self._poll.register(sock, select.EPOLLIN)
            self._socks[sock.fileno()] = sock
            self._missing[sock.fileno()] = 0
        for fd in self._socks:
            self._send(fd)

    def _send(self, fd: int) -> None:
        # One message fits into any socket's buffer.
        if self._socks[fd].send(self._message) != len(self._message):
            raise RuntimeError("a message was sent in part")
        self._missing[fd] = len(self._message)

    def _receive(self, fd: int) -> None:
        try:
            data = self._socks[fd].recv(1 << 14)
        except ssl.SSLWantReadError:
            return  # not a message: TLS speaks for itself
        if not data:
            raise ConnectionError("the server has closed a connection")
        self._missing[fd] -= len(data)
        if self._missing[fd] == 0:
            self._answered += 1
            self._send(fd)


@attrs.frozen
class Settings:
    rounds: int
    duration: float
    connections: int
    size: int
    warmup: float = 0.5


def measure(name: str, settings: Settings) -> Round:
    connect = partial(Load, settings.connections, settings.size)
    return python_load.measure(
        "experiments/tls.py", name, settings.warmup, settings.duration, connect
    )


def table(found: dict[str, list[Round]], settings: Settings) -> Table:
    """Medians of rounds."""
    title = f"TLS echo, {settings.size} B, {settings.connections} connections"
    shown = Table("server", "messages/s", "CPU/message", "load's cores", "ratio", title=title)
    trio = median(one.per_second for one in found[OWN])
    for name, rounds in found.items():
        rate, cpu, busy = (
            median(column) for column in zip(*map(attrs.astuple, rounds), strict=True)
        )
        cells = (f"{rate:,.0f}", f"{cpu * 1e6:.1f} µs", f"{busy:.2f}", f"{rate / trio:.2f}")
        shown.add_row(name, *cells)
    return shown


def main() -> None:
    options = parser("Measure TLS on either transport.")
    options.add_argument("--duration", type=float, default=2.0, help="seconds of one round")
    options.add_argument("--connections", type=int, default=100)
    options.add_argument("--size", type=int, default=64, help="bytes of a message")
    arguments = options.parse_args()
    if arguments.serve:
        run_server(arguments.serve, arguments.core, serve)
        return
    settings = Settings(arguments.rounds, arguments.duration, arguments.connections, arguments.size)
    one, shown = partial(measure, settings=settings), partial(table, settings=settings)
    compare(arguments, settings, WANTED, one, shown)


if __name__ == "__main__":
    main()
