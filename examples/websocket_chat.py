"""A chat in the browser: run ``python examples/websocket_chat.py [port]``, and open the page
that it names, more than once.

The page and the WebSocket share the port. The first message of a client is its name.
"""

from __future__ import annotations

import sys
from functools import partial

from ctrl_c import run_until_ctrl_c

from trio_wknet import Group, Request, Response, WebSocket, WebSocketOptions, open_engine

OPTIONS = WebSocketOptions(max_message=4096)
NAME = 32

PAGE = """<!doctype html><meta charset="utf-8"><title>chat</title>
<style>body { font: 16px sans-serif; max-width: 40em; margin: 2em auto }</style>
<form><input id="line" size="50" placeholder="your name" autocomplete="off" autofocus></form>
<div id="lines"></div>
<script>
const line = document.getElementById("line");
const socket = new WebSocket(location.href.replace("http", "ws") + "chat");
function show(text) {
    const shown = document.createElement("p");
    shown.textContent = text;
    document.getElementById("lines").prepend(shown);
}
socket.onmessage = event => show(event.data);
socket.onclose = event => show("closed: " + (event.reason || event.code));
document.forms[0].onsubmit = event => {
    event.preventDefault();
    socket.send(line.value);
    line.value = "";
    line.placeholder = "say something";
};
</script>
"""


def page(request: Request) -> Response | None:
    """The answer to a request that is not for the chat."""
    if request.path == "/":
        return Response(200, PAGE.encode(), {"Content-Type": "text/html; charset=utf-8"})
    if request.path != "/chat":
        return Response(404, b"there is nothing here\n")
    return None


async def chat(members: Group, member: WebSocket) -> None:
    name = str(await member.receive())[:NAME]
    members.add(member)
    try:
        await members.broadcast(f"* {name} is here", when_slow="close")
        async for text in member:
            await members.broadcast(f"{name}: {text!s}", when_slow="close")
    finally:
        members.discard(member)
        await members.broadcast(f"* {name} has left", when_slow="close")


async def main(port: int = 5200) -> None:
    async with open_engine() as engine:
        listener = await engine.listen(f"ws://127.0.0.1:{port}", websocket=OPTIONS)
        print("listening on", listener.address, flush=True)
        print(f"the page is http://127.0.0.1:{listener.address[1]}/", flush=True)
        await listener.serve(partial(chat, engine.group()), on_request=page)


if __name__ == "__main__":
    run_until_ctrl_c(main, *map(int, sys.argv[1:]))
