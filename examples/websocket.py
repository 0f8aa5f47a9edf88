"""WebSockets by trio-websocket: ``python examples/websocket.py [port]`` serves, and
``python examples/websocket.py ws://127.0.0.1:5100`` sends the lines of its input there.
"""

import sys

import trio
from ctrl_c import run_until_ctrl_c
from trio_websocket import (
    ConnectionClosed,
    WebSocketRequest,
    open_websocket_url,
    serve_websocket,
)

import trio_wknet


async def shout(request: WebSocketRequest) -> None:
    socket = await request.accept()
    try:
        while True:
            message = await socket.get_message()
            await socket.send_message(message.upper())
    except ConnectionClosed as exc:
        print("closed:", exc.reason and exc.reason.name, flush=True)


async def serve(port: int) -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(serve_websocket, shout, "127.0.0.1", port, None)
        print("listening on", ("127.0.0.1", server.port), flush=True)


async def talk(url: str) -> None:
    async with open_websocket_url(url) as socket:
        async for line in trio.wrap_file(sys.stdin):
            await socket.send_message(line.rstrip("\n"))
            print(await socket.get_message(), flush=True)


async def main(where: str = "5100") -> None:
    if where.startswith("ws"):
        await talk(where)
    else:
        await serve(int(where))


if __name__ == "__main__":
    trio_wknet.install()  # everything that is Trio's runs on reactors from here on
    run_until_ctrl_c(main, *sys.argv[1:])
