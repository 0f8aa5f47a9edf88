"""A chat in the browser: run ``python examples/websocket_chat.py [port]``, and open the page
that it names, more than once.

The page and the WebSocket share the port. The first message of a client is its name.
"""

from __future__ import annotations

import sys

import trio
from ctrl_c import run_until_ctrl_c

from trio_wknet import Request, Response, WebSocket, WebSocketOptions, open_wknet_listener

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

members: dict[WebSocket, str] = {}


def page(request: Request) -> Response | None:
    """The answer to a request that is not for the chat."""
    if request.path == "/":
        return Response(200, PAGE.encode(), {"Content-Type": "text/html; charset=utf-8"})
    if request.path != "/chat":
        return Response(404, b"there is nothing here\n")
    return None


def tell_all(text: str) -> None:
    for member in list(members):
        try:
            member.send_nowait(text)
        except trio.WouldBlock:
            member.conn.abort()  # does not read
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # its own handler learns of it, too


async def chat(member: WebSocket) -> None:
    name = str(await member.receive())[:NAME]
    members[member] = name
    tell_all(f"* {name} is here")
    try:
        async for text in member:
            tell_all(f"{name}: {text!s}")
    finally:
        del members[member]
        tell_all(f"* {name} has left")


async def main(port: int = 5200) -> None:
    address = f"ws://127.0.0.1:{port}"
    async with open_wknet_listener(address, websocket=OPTIONS) as listener:
        print("listening on", listener.address, flush=True)
        print(f"the page is http://127.0.0.1:{listener.address[1]}/", flush=True)
        await listener.serve(chat, on_request=page)


if __name__ == "__main__":
    run_until_ctrl_c(main, *map(int, sys.argv[1:]))
