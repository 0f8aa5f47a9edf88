"""An echo server written for AnyIO: ``python examples/anyio_echo.py [port]``.

Its handler knows of nothing but AnyIO, and the run is Trio's.
"""

import sys
from contextlib import suppress

import anyio
from anyio.abc import SocketStream
from ctrl_c import run_until_ctrl_c

from trio_wknet import open_wknet_listener
from trio_wknet.contrib.anyio import SocketListener


async def echo(stream: SocketStream) -> None:
    async with stream:
        with suppress(anyio.BrokenResourceError):  # the peer reset the connection
            async for data in stream:
                await stream.send(data)


async def main(port: int = 5100) -> None:
    async with open_wknet_listener(f"tcp://127.0.0.1:{port}") as listener:
        print("listening on", listener.address, flush=True)
        await SocketListener(listener).serve(echo)


if __name__ == "__main__":
    run_until_ctrl_c(main, *map(int, sys.argv[1:]))
