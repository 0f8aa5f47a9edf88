"""An echo server on a unix socket: ``python examples/unix_echo.py [path]``."""

import sys
from contextlib import suppress

import trio
from ctrl_c import run_until_ctrl_c

from trio_wknet import Conn, ConnOptions, open_wknet_listener


async def echo(conn: Conn) -> None:
    with suppress(trio.BrokenResourceError):
        async for data in conn:
            await conn.send_all(data)


async def main(path: str = "/tmp/trio_wknet-echo.sock") -> None:
    # Only this user may connect. The file is removed when the listener closes.
    options = ConnOptions(unix_mode=0o600)
    async with open_wknet_listener(f"unix://{path}", options=options) as listener:
        print("listening on", repr(listener.address), flush=True)
        await listener.serve(echo)


if __name__ == "__main__":
    run_until_ctrl_c(main, *sys.argv[1:])
