"""The classes of Trio's that `Conn`, `Listener`, `TLSStream` and `TLSListener` pass for.

Facts. `trio.SocketStream`, `trio.SocketListener`, `trio.SSLStream` and `trio.SSLListener` are
final, and their code is not needed here. But software uses isinstance with them, and handlers
are annotated with them.

Decision. At runtime ours derive from Trio's abstract classes, and are registered with the
final ones (in `_conn.py`, `_listener.py`, `_tls.py` and `_tls_listener.py`). A type checker knows
nothing of registering, so for type checkers they derive from the final classes. Then a handler of a
`trio.SocketStream` takes a `Conn`, and ``isinstance(stream, Conn)`` narrows to `Conn`. A
class unrelated to a final one would narrow to nothing, and the code below it would not be
checked.

Trade-off. To a type checker a `Listener` is a ``trio.abc.Listener[trio.SocketStream]``;
that ``accept`` returns a `Conn` is known only of the `Listener` itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:

    class StreamBase(trio.SocketStream):  # type: ignore[misc]  # final to everybody else
        def __init__(self) -> None: ...
        async def __anext__(self) -> bytes: ...

    class ListenerBase(trio.SocketListener):  # type: ignore[misc]
        def __init__(self) -> None: ...

    class TLSStreamBase(trio.SSLStream[Any]):  # type: ignore[misc]
        def __init__(self) -> None: ...
        async def __anext__(self) -> bytes: ...

    class TLSListenerBase(trio.SSLListener[Any]):  # type: ignore[misc]
        def __init__(self) -> None: ...

else:
    StreamBase = trio.abc.HalfCloseableStream
    ListenerBase = trio.abc.Listener
    TLSStreamBase = trio.abc.Stream
    TLSListenerBase = trio.abc.Listener
