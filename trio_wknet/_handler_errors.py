"""What becomes of an exception that a handler raises, where there is an ``on_error``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any

import trio

from trio_wknet._errors import is_only
from trio_wknet._usage_errors import call_handler

if TYPE_CHECKING:
    from trio_wknet._conn import Conn

OnError = Callable[[Any, Exception], object]


def is_of_the_end(conn: Conn, exc: BaseException) -> bool:
    """Whether a handler raised no more than what it must, because its connection was ended for
    being idle or too slow."""
    if conn._ended_here:
        return is_only(exc, (trio.BrokenResourceError, trio.ClosedResourceError))
    return conn._timed_out and is_only(exc, trio.ClosedResourceError)


def report(on_error: OnError, subject: object, exc: BaseException) -> None:
    """Give `on_error` what is its to deal with, and raise what is not: a cancellation, alone or
    in a group, and anything else that is no Exception."""
    cancelled: BaseException | None = None
    rest: BaseException | None = exc
    if not isinstance(exc, Exception) and hasattr(exc, "split"):  # a BaseExceptionGroup
        cancelled, rest = exc.split(trio.Cancelled)
    if not isinstance(rest, Exception):
        raise exc
    given = on_error(subject, rest)
    if isinstance(given, Coroutine):
        given.close()
        raise TypeError(f"on_error must be a plain function, not {on_error!r}")
    if cancelled is not None:
        raise cancelled


async def run_handler(
    handler: Callable[[Any], Awaitable[object]],
    subject: object,
    conn: Conn,
    on_error: OnError | None,
) -> bool:
    """Run a handler of `subject`, which is a connection or is over one. False if it raised, and
    that was reported."""
    try:
        await call_handler(handler, subject)
    except BaseException as exc:
        if on_error is None or is_of_the_end(conn, exc):
            raise
        report(on_error, subject, exc)
        return False
    return True
