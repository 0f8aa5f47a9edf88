"""A TCP proxy: ``python examples/proxy.py [port [upstream]]``.

By default it forwards to ``examples/echo.py``.
"""

import sys
from functools import partial

import trio
from ctrl_c import run_until_ctrl_c

from trio_wknet import Conn, Engine, open_engine, relay


async def forward(engine: Engine, upstream: str, client: Conn) -> None:
    try:
        server = await engine.connect(upstream)
    except OSError as exc:
        print("upstream:", exc, flush=True)
        client.abort()
        return
    async with server:
        try:
            await relay(client, server)
        except trio.BrokenResourceError:  # one of them: the other one is to know
            client.abort()
            server.abort()


async def main(port: str = "5103", upstream: str = "tcp://127.0.0.1:5100") -> None:
    async with open_engine() as engine:
        listener = await engine.listen(f"tcp://127.0.0.1:{port}")
        print("listening on", listener.address, flush=True)
        await listener.serve(partial(forward, engine, upstream))


if __name__ == "__main__":
    run_until_ctrl_c(main, *sys.argv[1:])
