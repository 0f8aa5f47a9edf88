"""What each server is, in words, and what a target is: for pages that show their names."""

from __future__ import annotations

from collections.abc import Iterable

from harness.pages import markdown

WHERE = {
    "inloop": "its reactor runs in Trio's thread (`reactors=0`)",
    "threaded": "its reactor runs in a thread of its own (`reactors=1`)",
}
FORMS = {
    "": "a task for each connection: `receive_some` and `send_all`",
    "-nowait": "a task for each connection: `receive_some` and `send_nowait`",
    "-idle": "a task for each connection, with an idle timeout on each",
    "-events": "event mode: a callback with `receive_nowait` and `send_nowait`, no tasks",
    "-events-idle": "event mode, with an idle timeout on each connection",
    "-frames": "a task for each connection: `async for frame in channel` and `send`",
    "-frames-nowait": "a task for each connection: `async for frame in channel` and `send_nowait`",
    "-frames-many": "a task for each connection: `receive_many` and `send_many`",
    "-websocket": "WebSocket; a task for each connection: `async for` and `send`",
    "-websocket-many": "WebSocket; a task for each connection: `receive_many` and `send_many`",
    "-websocket-events": "WebSocket, by callbacks (`WebSocketListener.serve_messages`)",
    "-frames-events": "event mode for frames: a callback with `send_many_nowait`, no tasks",
}
OURS = {
    f"wknet-{where}{form}": f"this library; {reactor}; {what}"
    for where, reactor in WHERE.items()
    for form, what in FORMS.items()
}
PEERS = {
    "trio": "Trio's own sockets, `trio.SocketStream`; a task for each connection",
    "trio-deadline": "Trio's own sockets; a task for each connection moves the deadline of its "
    "cancel scope for each message",
    "trio-frames": "Trio's own sockets; a task for each connection splits frames by hand",
    "anyio-trio": "anyio on Trio; a task for each connection",
    "anyio-asyncio": "anyio on asyncio; a task for each connection",
    "asyncio-streams": "asyncio with its own loop; `StreamReader` and `StreamWriter`",
    "asyncio-protocol": "asyncio with its own loop; an `asyncio.Protocol`: callbacks, no tasks",
    "uvloop-streams": "asyncio on uvloop; `StreamReader` and `StreamWriter`",
    "uvloop-protocol": "asyncio on uvloop; an `asyncio.Protocol`: callbacks, no tasks",
    "uvloop-frames-readexactly": "asyncio on uvloop; `readexactly` for the length and for the rest",
    "uvloop-frames-protocol": "asyncio on uvloop; an `asyncio.Protocol` splits frames by hand, "
    "with a `write` for each",
    "uvloop-frames-writelines": "asyncio on uvloop; an `asyncio.Protocol` splits frames by hand, "
    "with one `writelines` for all that have come",
    "gevent": "gevent; a greenlet for each connection",
    "c-epoll": "a loop around epoll in C, one thread: the cost of the system calls",
    "trio-websocket": "trio-websocket on Trio's own sockets; a task for each connection",
    "websockets-uvloop": "websockets on uvloop; a task for each connection",
    "picows-uvloop": "picows on uvloop; callbacks, no tasks",
}
SERVERS = {**OURS, **PEERS}
"""By the names that `servers.py` has."""

TARGETS = (
    "A target is a ratio that this library is meant to reach: the best of its forms to the "
    "peer, at least that of throughput, at most that of latency or of CPU time. "
    "**Missed** means that the ratio of the medians did not reach "
    "it in this run, and nothing else: each message was answered correctly all the same. Where "
    "the range of the rounds includes the target, another run may say otherwise."
)


def legend(names: Iterable[str]) -> list[str]:
    """A table of the servers with these names, each once, ours first."""
    return markdown(
        ["server", "what it is"], [[f"`{n}`", SERVERS[n]] for n in dict.fromkeys(names)]
    )
