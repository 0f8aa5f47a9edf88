"""Greets clients of a load balancer by their own address:
``python examples/behind_proxy.py [port [network...]]``.

The balancer tells it by the PROXY protocol. For haproxy that is, in a backend::

    server greeter 127.0.0.1:5105 send-proxy-v2

Who does not come from one of the networks (127.0.0.0/8 by default), or sends no valid
header, is refused. To try it without a balancer::

    printf 'PROXY TCP4 192.0.2.7 192.0.2.1 40000 443\\r\\n' | nc 127.0.0.1 5105
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress

import trio
from ctrl_c import run_until_ctrl_c

from trio_wknet import Conn, open_wknet_listener


async def greet(conn: Conn) -> None:
    header = conn.proxy_header
    assert header is not None, "there is one, or nobody would be here"
    if not isinstance(header.source, tuple):
        return  # it is None: the balancer looks whether we are well
    with suppress(trio.BrokenResourceError):  # the peer reset the connection
        host, port, *_ = header.source
        await conn.send_all(f"hello {host}, you come through port {port}\n".encode())


async def main(port: int = 5105, *networks: str) -> None:
    address = f"tcp://127.0.0.1:{port}"
    trusted = networks or ["127.0.0.0/8"]
    async with open_wknet_listener(address, proxy_protocol=trusted) as listener:
        print("listening on", listener.address, flush=True)
        await listener.serve(greet)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)  # says who is refused, and why
    run_until_ctrl_c(main, *map(int, sys.argv[1:2]), *sys.argv[2:])
