"""Ends gracefully on SIGTERM and Ctrl-C: ``python examples/graceful.py [port]``.

Each line is a request that takes a moment. A signal stops the server: requests
under way are answered, connections that wait for their next one are closed.
"""

from __future__ import annotations

import signal
import sys
from contextlib import suppress

import trio

from trio_wknet import Conn, IncompleteRead, Listener, open_wknet_listener

GRACE = 10  # seconds for requests under way, and for clients to take the answers

waiting: set[trio.CancelScope] = set()  # one for each connection between requests
stopping = False


async def next_request(conn: Conn) -> bytes | None:
    """The next line; None when there will be none."""
    with trio.CancelScope() as scope, suppress(IncompleteRead):
        if not stopping:
            waiting.add(scope)
            try:
                return await conn.receive_until(b"\n")
            finally:
                waiting.discard(scope)
    return None


async def handle(conn: Conn) -> None:
    with suppress(trio.BrokenResourceError):
        while (request := await next_request(conn)) is not None:
            await conn.send_all(b"working on %s\n" % request)
            await trio.sleep(0.3)
            await conn.send_all(b"done with %s\n" % request)


async def stop_on_signal(
    listener: Listener, everything: trio.CancelScope, *, task_status: trio.TaskStatus[None]
) -> None:
    global stopping
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        await anext(signals)
        stopping = True
        for scope in list(waiting):
            scope.cancel()
        everything.deadline = trio.current_time() + GRACE
        print("draining", flush=True)
        await listener.drain()


async def main(port: int) -> None:
    async with (
        trio.open_nursery() as nursery,
        open_wknet_listener(f"tcp://127.0.0.1:{port}") as listener,
    ):
        await nursery.start(stop_on_signal, listener, nursery.cancel_scope)
        print("listening on", listener.address, flush=True)
        await listener.serve(handle)


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 5104)
