"""Sends the time every second, and reads nothing: ``python examples/ticker.py [port]``."""

import sys
import time
from contextlib import suppress

import trio
from ctrl_c import run_until_ctrl_c

from trio_wknet import Conn, open_wknet_listener


async def tick(conn: Conn) -> None:
    with conn.cancel_on_disconnect(), suppress(trio.BrokenResourceError):
        while True:
            await conn.send_all(f"{time.ctime()}\n".encode())
            await trio.sleep(1)
    print("left:", conn.close_reason, flush=True)


async def main(port: int = 5102) -> None:
    async with open_wknet_listener(f"tcp://127.0.0.1:{port}") as listener:
        print("listening on", listener.address, flush=True)
        await listener.serve(tick)


if __name__ == "__main__":
    run_until_ctrl_c(main, *map(int, sys.argv[1:]))
