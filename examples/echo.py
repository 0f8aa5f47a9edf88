"""An echo server: ``python examples/echo.py [port]``."""

import sys
from contextlib import suppress

import trio
from ctrl_c import run_until_ctrl_c

from trio_wknet import Conn, open_wknet_listener


async def echo(conn: Conn) -> None:
    with suppress(trio.BrokenResourceError):  # the peer reset the connection
        async for data in conn:
            await conn.send_all(data)


async def main(port: int = 5100) -> None:
    async with open_wknet_listener(f"tcp://127.0.0.1:{port}") as listener:
        print("listening on", listener.address, flush=True)
        await listener.serve(echo)


if __name__ == "__main__":
    run_until_ctrl_c(main, *map(int, sys.argv[1:]))
