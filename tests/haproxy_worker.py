"""A worker behind haproxy: ``python haproxy_worker.py port reactors``.

Echoes what comes with a PROXY header, on a port that others may listen on, too. SIGTERM
drains it; then it says how many it served, as JSON.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress

import trio

from trio_wknet import Conn, drain_on_signal, open_wknet_listener

served = 0


async def echo(conn: Conn) -> None:
    global served
    assert conn.proxy_header is not None
    assert conn.proxy_header.source is not None
    with suppress(trio.BrokenResourceError):  # it was idle when all was over
        while True:
            data = b""
            with conn.idle_point():
                data = await conn.receive_some()
            if not data:
                break
            await conn.send_all(data)
        served += 1


async def main(port: int, reactors: int) -> None:
    async with open_wknet_listener(
        f"tcp://127.0.0.1:{port}", reactors=reactors, reuse_port=True, proxy_protocol=["127.0.0.1"]
    ) as listener:
        async with drain_on_signal(listener):
            print("ready", flush=True)
            await listener.serve(echo)
        print(json.dumps({"served": served, "refused": listener.statistics().refused}))


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), int(sys.argv[2]))
