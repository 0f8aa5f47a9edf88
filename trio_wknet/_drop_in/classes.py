"""Trio's stream and listener classes, replaced: how `run` and `install` do it.

Facts. Code that has a connected socket calls ``trio.SocketStream(socket)``: Trio's own
functions do, and libraries with sockets of their own. Some look the class up in `trio`
at that time, others imported it long before. Both use it with isinstance.

Decision. The class object is not replaced. While `run` or `install` is in effect, its
metaclass is one whose ``__call__``, in runs that want it, moves the new stream to the
run's default engine. The result passes for an instance, because `Conn` is registered.

`trio.SSLStream` and `trio.SSLListener` are replaced alike, over what is ours (`tls.py`): what
Trio's functions and libraries build of them is compiled TLS. ``trio.SSLStream[...](...)`` calls
the class, too. Patching ``__new__`` would not do: once it was set and deleted again, a class
refuses arguments.

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
import ssl
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from trio_wknet._drop_in.bypass import bypassed, is_trios
from trio_wknet._drop_in.tls import SSLListener, is_for_ours, is_listener_for_ours
from trio_wknet._engine import default_admission, default_engine
from trio_wknet._options import ConnOptions, Limits
from trio_wknet._sockets.facade import make_handle
from trio_wknet._sockets.unix_connect import is_connected
from trio_wknet._tls import TLSStream

if TYPE_CHECKING:
    from trio_wknet._engine import Engine

_lock = threading.Lock()
_uses = 0  # reasons to replace the classes: calls of `install`, runs of `run`
_installs = 0
_settings: dict[str, Any] = {}  # of default engines, by calls of `install`

# Whether `run` runs this run.
in_run: trio.lowlevel.RunVar[bool] = trio.lowlevel.RunVar("trio_wknet.run", False)


# --- giving sockets to the default engine ---------------------------------------


def _engine() -> Engine:
    return default_engine(_settings.get("reactors"), _settings.get("max_buffered"))


def adopt_stream(stream: trio.SocketStream) -> Any:
    """The same connection on the default engine; a custom factory's unchanged."""
    if not is_trios(stream.socket):
        return stream
    return _engine()._adopt_stream(stream, Limits(), ConnOptions())


def adopt_listener(listener: trio.SocketListener) -> Any:
    """The same listener on the default engine; a custom factory's unchanged."""
    if not is_trios(listener.socket):
        return listener
    admission = default_admission.get() or _settings.get("admission")
    return _engine()._adopt_listener(listener, admission)


# --- the classes while they are replaced ----------------------------------------


def _wanted(cls: type) -> bool:
    if cls not in _REPLACED:  # somebody's own, in spite of Trio
        return False
    try:
        here = in_run.get() or _installs > 0
    except RuntimeError:  # outside of any run
        return False
    return here and not bypassed.get()


def _wanted_for(cls: type, sock: trio.socket.SocketType) -> bool:
    return _wanted(cls) and is_trios(sock)


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

# The classes below call it by name. `super` would refuse when another thread has restored the
# class since the call began.


class _StreamClass(_Metaclass):  # type: ignore[misc]
    def __call__(cls, socket: trio.socket.SocketType) -> Any:
        stream = _Metaclass.__call__(cls, socket)
        if not _wanted_for(cls, socket):
            return stream
        if not is_connected(socket):
            _refuse_full_queue(socket)
            return stream
        return _with_handle(adopt_stream(stream), socket)


class _ListenerClass(_Metaclass):  # type: ignore[misc]
    def __call__(cls, socket: trio.socket.SocketType) -> Any:
        listener = _Metaclass.__call__(cls, socket)
        if not _wanted_for(cls, socket):
            return listener
        return _with_handle(adopt_listener(listener), socket)


# As Trio's ``__init__``: `inspect.signature` of a class is that of its metaclass's call.
class _SSLStreamClass(_Metaclass):  # type: ignore[misc]
    def __call__(
        cls,
        transport_stream: trio.abc.Stream,
        ssl_context: ssl.SSLContext,
        *,
        server_hostname: str | bytes | None = None,
        server_side: bool = False,
        https_compatible: bool = False,
    ) -> Any:
        make: Any = partial(_Metaclass.__call__, cls)
        if _wanted(cls) and is_for_ours(transport_stream, ssl_context):
            make = TLSStream
        return make(
            transport_stream,
            ssl_context,
            server_hostname=server_hostname,
            server_side=server_side,
            https_compatible=https_compatible,
        )


class _SSLListenerClass(_Metaclass):  # type: ignore[misc]
    def __call__(
        cls,
        transport_listener: trio.abc.Listener[Any],
        ssl_context: ssl.SSLContext,
        *,
        https_compatible: bool = False,
    ) -> Any:
        make: Any = partial(_Metaclass.__call__, cls)
        if _wanted(cls) and is_listener_for_ours(transport_listener, ssl_context):
            make = SSLListener
        return make(transport_listener, ssl_context, https_compatible=https_compatible)


_REPLACED: dict[Any, type] = {
    trio.SocketStream: _StreamClass,
    trio.SocketListener: _ListenerClass,
    trio.SSLStream: _SSLStreamClass,
    trio.SSLListener: _SSLListenerClass,
}


def _count_uses(change: int) -> None:
    global _uses
    _uses += change
    for cls, metaclass in _REPLACED.items():
        if _uses == 0:
            cls.__class__ = _Metaclass
        elif _uses == change:
            cls.__class__ = metaclass


def replace() -> None:
    """Replace the classes, once for each `restore` to come."""
    with _lock:
        _count_uses(1)


def restore() -> None:
    with _lock:
        _count_uses(-1)


def replace_everywhere(**settings: object) -> None:
    """The same for all runs. Refuses a setting that differs from an earlier one."""
    global _installs
    with _lock:
        chosen = {name: value for name, value in settings.items() if value is not None}
        for name, value in chosen.items():
            if value != _settings.get(name, value):
                raise ValueError(
                    f"{name} is {_settings[name]} since an earlier install(), and cannot be {value}"
                )
        _settings.update(chosen)
        _installs += 1
        _count_uses(1)


def restore_everywhere() -> None:
    global _installs
    with _lock:
        if _installs == 0:
            raise RuntimeError("uninstall() was called more often than install()")
        _installs -= 1
        if _installs == 0:
            _settings.clear()
        _count_uses(-1)
