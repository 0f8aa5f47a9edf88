"""run, install, uninstall: software that was written for Trio, on the reactors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import trio

from trio_wknet._drop_in import classes
from trio_wknet._engine import check_reactors, default_reactors

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")


class _RunStart(trio.abc.Instrument):
    """Marks a run before its main task starts."""

    def __init__(self, reactors: int | None) -> None:
        self._reactors = reactors

    def before_run(self) -> None:
        classes.in_run.set(True)
        default_reactors.set(self._reactors)


def run(
    async_fn: Callable[..., Awaitable[T]], *args: Any, reactors: int | None = None, **options: Any
) -> T:
    """Like `trio.run`, and what the program and its libraries get from Trio's own
    functions for TCP and unix sockets is driven by reactors::

        trio_wknet.run(main)        # instead of trio.run(main)

    In this run ``trio.SocketStream(socket)`` and ``trio.SocketListener(socket)`` give a
    `Conn` and a `Listener` on the run's default engine, which is opened at first use and
    closed, its threads joined, when the run has ended. Connections that still linger then
    are closed at once. A socket that is not connected, and any in a run with a custom
    `trio.abc.SocketFactory`, gets Trio's own stream. Other runs, in other threads, are
    not affected.

    Args:
      reactors: how many reactor threads the default engine has, as in `open_engine`.

    Everything else is passed to `trio.run`.

    Raises:
      TypeError, ValueError: for ``reactors`` out of range.

    In addition it raises what `trio.run` raises.
    """
    check_reactors(reactors)
    instruments = [*options.pop("instruments", ()), _RunStart(reactors)]
    classes.replace()
    try:
        return trio.run(async_fn, *args, instruments=instruments, **options)
    finally:
        classes.restore()


def install(*, reactors: int | None = None) -> None:
    """Do for every run of this process, in any thread, what `run` does for one. Streams
    and listeners that exist already stay what they are.

    It may be called by several parts of a program: each call is taken back by one of
    `uninstall`.

    Args:
      reactors: how many reactor threads default engines have, as in `open_engine`. It
          holds until everything is taken back. Not for runs that `run` gives a number.

    Raises:
      TypeError, ValueError: for ``reactors`` out of range, or different from what an
          earlier call chose.
    """
    check_reactors(reactors)
    classes.replace_everywhere(reactors)


def uninstall() -> None:
    """Take one `install` back. The last one makes Trio's functions give Trio's own
    streams again; those that exist already stay what they are.

    Raises:
      RuntimeError: there is no `install` to take back.
    """
    classes.restore_everywhere()
