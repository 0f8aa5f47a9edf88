"""The same program on either transport:
``python examples/either_transport.py trio_wknet|trio [port]``.

An application would have one import in place of the table, and exchange it:
``import trio as transport``, or ``import trio_wknet as transport``.
"""

import sys
from contextlib import suppress
from functools import partial

import trio
from ctrl_c import run_until_ctrl_c

import trio_wknet

TRANSPORTS = {"trio": trio, "trio_wknet": trio_wknet}


async def shout(stream: trio.SocketStream) -> None:
    who = type(stream).__module__.split(".")[0]
    with suppress(trio.BrokenResourceError):  # the peer reset the connection
        await stream.send_all(f"you are talking to {who}\n".encode())
        async for data in stream:
            await stream.send_all(data.upper())


async def main(name: str = "trio_wknet", port: int = 5100) -> None:
    transport = TRANSPORTS[name]
    async with trio.open_nursery() as nursery:
        serve = partial(transport.serve_tcp, shout, port, host="127.0.0.1")
        listeners: list[trio.SocketListener] = await nursery.start(serve)
        print("listening on", listeners[0].socket.getsockname(), flush=True)


if __name__ == "__main__":
    run_until_ctrl_c(main, *sys.argv[1:2], *map(int, sys.argv[2:]))
