"""Trio's stream and listener classes, replaced: how `run` and `install` do it.

Facts. Code that has a connected socket calls ``trio.SocketStream(socket)``: Trio's own
functions do, and libraries with sockets of their own. Some look the class up in `trio`
at that time, others imported it long before. Both use it with isinstance.

Decision. The class object is not replaced. While `run` or `install` is in effect, its
metaclass is one whose ``__call__``, in runs that want it, moves the new stream to the
run's default engine. The result passes for an instance, because `Conn` is registered.

The code that made the socket may go on using it: hypercorn asks it for its name, others
close it. Its descriptor is the reactor's now, so it becomes a handle on the `Conn`.

Trade-off. ``type(stream) is trio.SocketStream`` and ``stream.socket is socket`` are no
longer true.

What the reactors cannot take stays Trio's own: everything in a run with a custom
`SocketFactory`, and sockets that are not connected.
"""

from __future__ import annotations

import errno
import socket
import threading
from typing import TYPE_CHECKING, Any

import trio

from trio_wknet._drop_in.bypass import bypassed, is_trios
from trio_wknet._engine import default_engine
from trio_wknet._options import ConnOptions, Limits
from trio_wknet._sockets.facade import make_handle
from trio_wknet._sockets.unix_connect import is_connected

if TYPE_CHECKING:
    from trio_wknet._engine import Engine

_lock = threading.Lock()
_uses = 0  # reasons to replace the classes: calls of `install`, runs of `run`
_installs = 0
_install_reactors: int | None = None

# Whether `run` runs this run.
in_run: trio.lowlevel.RunVar[bool] = trio.lowlevel.RunVar("trio_wknet.run", False)


# --- giving sockets to the default engine ---------------------------------------


def _engine() -> Engine:
    return default_engine(_install_reactors)


def adopt_stream(stream: trio.SocketStream) -> Any:
    """The same connection on the default engine; a custom factory's unchanged."""
    if not is_trios(stream.socket):
        return stream
    return _engine()._adopt_stream(stream, Limits(), ConnOptions())


def adopt_listener(listener: trio.SocketListener) -> Any:
    """The same listener on the default engine; a custom factory's unchanged."""
    if not is_trios(listener.socket):
        return listener
    return _engine()._adopt_listener(listener)


# --- the classes while they are replaced ----------------------------------------


def _wanted_for(sock: trio.socket.SocketType) -> bool:
    try:
        here = in_run.get() or _installs > 0
    except RuntimeError:  # outside of any run
        return False
    return here and not bypassed.get() and is_trios(sock)


def _refuse_full_queue(sock: trio.socket.SocketType) -> None:
    """Refuse a unix socket whose connect Trio took for done (`_sockets/unix_connect.py`)."""
    if sock.family == socket.AF_UNIX:
        sock.close()
        raise BlockingIOError(errno.EAGAIN, "the queue of the unix socket's server is full")


def _with_handle(taken: Any, sock: Any) -> Any:
    inside = getattr(sock, "_sock", None)
    if type(inside) is socket.socket:
        make_handle(inside, taken.socket)
    return taken


_Metaclass: Any = type(trio.SocketStream)


class _StreamClass(_Metaclass):  # type: ignore[misc]
    def __call__(cls, socket: trio.socket.SocketType) -> Any:
        stream = super().__call__(socket)
        if not _wanted_for(socket):
            return stream
        if not is_connected(socket):
            _refuse_full_queue(socket)
            return stream
        return _with_handle(adopt_stream(stream), socket)


class _ListenerClass(_Metaclass):  # type: ignore[misc]
    def __call__(cls, socket: trio.socket.SocketType) -> Any:
        listener = super().__call__(socket)
        if not _wanted_for(socket):
            return listener
        return _with_handle(adopt_listener(listener), socket)


def _set_metaclasses(stream: type, listener: type) -> None:
    trio.SocketStream.__class__ = stream  # type: ignore[method-assign]
    trio.SocketListener.__class__ = listener  # type: ignore[method-assign]


def _count_uses(change: int) -> None:
    global _uses
    _uses += change
    if _uses == 0:
        _set_metaclasses(_Metaclass, _Metaclass)
    elif _uses == change:
        _set_metaclasses(_StreamClass, _ListenerClass)


def replace() -> None:
    """Replace the classes, once for each `restore` to come."""
    with _lock:
        _count_uses(1)


def restore() -> None:
    with _lock:
        _count_uses(-1)


def replace_everywhere(reactors: int | None) -> None:
    """The same for all runs. Refuses a number of reactors that differs from an earlier one."""
    global _installs, _install_reactors
    with _lock:
        if None not in (reactors, _install_reactors) and reactors != _install_reactors:
            raise ValueError(
                f"reactors is {_install_reactors} since an earlier install(), and cannot "
                f"be {reactors}"
            )
        if reactors is not None:
            _install_reactors = reactors
        _installs += 1
        _count_uses(1)


def restore_everywhere() -> None:
    global _installs, _install_reactors
    with _lock:
        if _installs == 0:
            raise RuntimeError("uninstall() was called more often than install()")
        _installs -= 1
        if _installs == 0:
            _install_reactors = None
        _count_uses(-1)
