"""An echo server on the sockets that systemd has opened. Its units, for example
``echo.socket`` and ``echo.service``::

    [Socket]
    ListenStream=5100
    ListenStream=/run/echo

    [Service]
    ExecStart=/usr/bin/python3 /srv/systemd_echo.py

To try it: ``systemd-socket-activate -l 5100 python examples/systemd_echo.py``. The
sockets outlive the server: who connects while it is restarted waits in their queues.
"""

from __future__ import annotations

import socket
import sys
from contextlib import suppress

import trio
from ctrl_c import run_until_ctrl_c

from trio_wknet import Conn, Listener, open_engine, systemd_sockets


async def echo(conn: Conn) -> None:
    with suppress(trio.BrokenResourceError):  # the peer reset the connection
        async for data in conn:
            await conn.send_all(data)


async def main(sockets: list[tuple[str, socket.socket]]) -> None:
    async with open_engine() as engine, trio.open_nursery() as nursery:
        for name, sock in sockets:
            listener = engine.adopt(sock)
            assert isinstance(listener, Listener), f"{name} does not listen"
            nursery.start_soon(listener.serve, echo)
            print("listening on", listener.address, flush=True)


if __name__ == "__main__":
    passed = systemd_sockets()
    if not passed:
        sys.exit("systemd has passed no sockets")
    run_until_ctrl_c(main, passed)
