"""Ends gracefully on SIGTERM and Ctrl-C: ``python examples/graceful.py [port]``.

Each line is a request that takes a moment. A signal stops the server: requests
under way are answered, connections that wait for their next one are closed. A second
signal stops it at once.
"""

from __future__ import annotations

import sys
from contextlib import suppress

import trio

from trio_wknet import (
    Conn,
    IncompleteRead,
    Limits,
    Shutdown,
    drain_on_signal,
    open_wknet_listener,
)

GRACE = 10  # seconds for requests under way
LIMITS = Limits(linger_time=5)  # and for clients to take the last answers


async def handle(conn: Conn) -> None:
    with suppress(trio.BrokenResourceError, IncompleteRead):
        while True:
            with conn.idle_point() as waiting:
                request = await conn.receive_until(b"\n")
            if waiting.cancelled_caught:
                return
            await conn.send_all(b"working on %s\n" % request)
            await trio.sleep(0.3)
            await conn.send_all(b"done with %s\n" % request)


async def report(shutdown: Shutdown) -> None:
    await shutdown.wait()
    print("draining", flush=True)


async def main(port: int) -> None:
    async with drain_on_signal(grace=GRACE) as shutdown, trio.open_nursery() as nursery:
        nursery.start_soon(report, shutdown)
        async with open_wknet_listener(f"tcp://127.0.0.1:{port}", limits=LIMITS) as listener:
            shutdown.add(listener)
            print("listening on", listener.address, flush=True)
            await listener.serve(handle)


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 5104)
