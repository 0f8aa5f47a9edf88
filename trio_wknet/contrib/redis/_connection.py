"""Connections to a broker: coredis', without its pools and its clients, which wait and try again
for as long as they like, and queue without a bound.

A connection lives in a nursery of ours, and everything that is done with it has an end.
"""

from __future__ import annotations

import logging
import sys
from contextvars import ContextVar
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeAlias

import trio
from anyio import BrokenResourceError, ClosedResourceError
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from coredis.connection import (
    BaseConnection,
    Location,
    TCPConnection,
    UnixDomainSocketConnection,
    UnixDomainSocketLocation,
)
from coredis.exceptions import BusyLoadingError, ConnectionError, InvalidResponse, RedisError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    if sys.version_info >= (3, 11):
        from typing import Self
    else:
        from typing_extensions import Self

    OnPush: TypeAlias = "Callable[[list[Any]], None]"

Settings: TypeAlias = "Mapping[str, Any]"
# What goes wrong with a connection. TimeoutError, an OSError, is what coredis raises; AnyIO's two
# are raised while coredis takes a connection down that it still calls usable.
FAILURES = (RedisError, OSError, trio.TooSlowError, BrokenResourceError, ClosedResourceError)

_ours: ContextVar[bool] = ContextVar("a connection of trio_wknet's", default=False)


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """coredis logs a traceback for each attempt to connect that fails, or is cancelled. Ours are
    raised, or logged once for each outage."""
    return not (_ours.get() and record.levelno <= logging.ERROR)


logging.getLogger("coredis").addFilter(_is_worth_a_line)


class _Pushes:
    """What the server pushes is taken where coredis has parsed it. coredis would put it into a
    queue without a bound, from which a task gets one message for each turn of Trio's loop; under
    load that queue grows. Taking a message never waits, so none is needed: what the server sends
    too fast stays in the kernel's buffers, and the server knows."""

    def __init__(self, on_push: OnPush) -> None:
        self.send_nowait = on_push

    def statistics(self) -> SimpleNamespace:
        return SimpleNamespace(current_buffer_used=0)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


def ignore(push: list[Any]) -> None:
    pass


def make_connection(
    location: Location, settings: Settings, on_push: OnPush = ignore
) -> BaseConnection:
    if isinstance(location, UnixDomainSocketLocation):
        connection: BaseConnection = UnixDomainSocketConnection(location, **settings)
    else:
        connection = TCPConnection(location, **settings)  # type: ignore[arg-type]
    connection._push_message_buffer_in.close()
    connection._push_message_buffer_in = _Pushes(on_push)  # type: ignore[assignment]
    return connection


async def hold(
    connection: BaseConnection,
    on_end: Callable[[BaseException], None],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Connect, and stay until the connection is lost.

    Raises:
      RedisError: it could not be opened.
    """
    _ours.set(True)
    opened = False

    class Status:
        def started(self, value: None = None) -> None:
            nonlocal opened
            opened = True
            task_status.started()

    try:
        await connection.run(task_status=Status())
    except RedisError as exc:
        if not opened:
            # coredis raises this in place of the cancellation, too.
            await trio.lowlevel.checkpoint_if_cancelled()
            raise
        on_end(exc)
    else:
        on_end(ConnectionResetError(f"the connection to {connection.location!r} was lost"))
    finally:
        _close_queues(connection)


def _close_queues(connection: BaseConnection) -> None:
    """coredis leaves them open, and AnyIO warns of that, where connecting failed."""
    for it in vars(connection).values():
        if isinstance(it, (MemoryObjectSendStream, MemoryObjectReceiveStream)):
            it.close()


def is_answer(failure: BaseException) -> bool:
    """Whether the server said so; otherwise the connection was lost, or it took too long."""
    if isinstance(failure, ConnectionError):
        return isinstance(failure, BusyLoadingError)
    return isinstance(failure, RedisError) and not isinstance(failure, InvalidResponse)


async def request(
    connection: BaseConnection,
    name: bytes,
    *arguments: bytes | str | int,
    seconds: float | None = None,
    disconnect: bool = False,
) -> Any:
    """Have a command carried out, and wait for the answer, for so many seconds at most.

    When a connection is lost coredis has requests fail with whatever it was lost by: if it was
    not the protocol that was received, a ValueError, for example.

    Raises:
      RedisError: it is the answer.
      OSError: there was none.
    """
    try:
        return await connection.create_request(
            name, *arguments, timeout=seconds, disconnect_on_cancellation=disconnect
        )
    except OSError:
        raise
    except Exception as exc:
        if is_answer(exc):
            raise
        raise ConnectionResetError(describe(exc)) from exc


async def ask(location: Location, settings: Settings, *command: bytes | str | int) -> Any:
    """One command on a connection of its own.

    Raises:
      FAILURES: it had no answer, or a bad one.
    """
    failure: BaseException | None = None
    answer: Any = None
    async with trio.open_nursery() as nursery:
        connection = make_connection(location, settings)
        try:
            await nursery.start(hold, connection, lambda exc: None)
            name, *arguments = command
            assert isinstance(name, bytes)
            answer = await request(connection, name, *arguments)
        except FAILURES as exc:
            failure = exc
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return answer


def describe(failure: BaseException) -> str:
    """It, and what it came from: coredis says that it could not connect, and the cause why."""
    reason = str(failure) or type(failure).__name__
    cause = failure.__cause__
    while cause is not None:
        if str(cause) and str(cause) not in reason:
            reason += f": {cause}"
        cause = cause.__cause__
    return reason
