"""The classes of Trio's that `Conn` and `Listener` pass for.

Facts. `trio.SocketStream` and `trio.SocketListener` are final, and nothing that they do is
wanted here. But software asks isinstance of them, and handlers are annotated with them.

Decision. At runtime ours derive from Trio's abstract classes, and are registered with the
final ones (at the end of `_conn.py` and `_listener.py`). A type checker knows nothing of
registering, so it is told that they derive from them. Then a handler of a
`trio.SocketStream` takes a `Conn`, and ``isinstance(stream, Conn)`` leaves a `Conn`. A
class unrelated to a final one would leave nothing there, and what follows unchecked.

Trade-off. To a type checker a `Listener` is a ``trio.abc.Listener[trio.SocketStream]``;
that its ``accept`` gives a `Conn` is known of the `Listener` alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:

    class StreamBase(trio.SocketStream):  # type: ignore[misc]  # final to everybody else
        def __init__(self) -> None: ...
        async def __anext__(self) -> bytes: ...

    class ListenerBase(trio.SocketListener):  # type: ignore[misc]
        def __init__(self) -> None: ...

else:
    StreamBase = trio.abc.HalfCloseableStream
    ListenerBase = trio.abc.Listener
