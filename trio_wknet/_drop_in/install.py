"""run, install, uninstall: software that was written for Trio, on the reactors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import trio

from trio_wknet._drop_in import classes
from trio_wknet._engine import (
    check_admission,
    check_max_buffered,
    check_reactors,
    default_admission,
    default_max_buffered,
    default_on_stall,
    default_reactors,
    default_top,
)
from trio_wknet._options import check_some_seconds
from trio_wknet._stall import check_on_stall
from trio_wknet._top.page import check_top

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_wknet._admission import Admission
    from trio_wknet._stall import OnStall

T = TypeVar("T")


class _RunStart(trio.abc.Instrument):
    """Marks a run before its main task starts."""

    def __init__(
        self,
        reactors: int | None,
        max_buffered: int | None,
        admission: Admission | None,
        on_stall: tuple[OnStall | None, float],
        top: bool | str | None,
    ) -> None:
        self._on_stall = on_stall
        self._top = top
        self._reactors = reactors
        self._max_buffered = max_buffered
        self._admission = admission

    def before_run(self) -> None:
        classes.in_run.set(True)
        default_reactors.set(self._reactors)
        default_max_buffered.set(self._max_buffered)
        default_admission.set(self._admission)
        default_on_stall.set(self._on_stall)
        default_top.set(self._top)


def run(
    async_fn: Callable[..., Awaitable[T]],
    *args: Any,
    reactors: int | None = None,
    max_buffered: int | None = None,
    admission: Admission | None = None,
    on_stall: OnStall | None = None,
    stall_after: float = 1.0,
    top: bool | str | None = None,
    **options: Any,
) -> T:
    """Like `trio.run`, with the program's TCP and unix sockets driven by reactors: those
    that it, or a library that it uses, gets from Trio's own functions::

        trio_wknet.run(main)        # instead of trio.run(main)

    In this run ``trio.SocketStream(socket)`` and ``trio.SocketListener(socket)`` return a
    `Conn` and a `Listener` on the run's default engine, which is opened at first use and
    closed, its threads joined, when the run has ended. Connections that still linger then
    are closed at once. A socket that is not connected, and any socket in a run with a custom
    `trio.abc.SocketFactory`, gets Trio's own stream. Other runs, in other threads, are
    not affected. It is called outside of a Trio run, so checkpoints do not apply.

    Args:
      async_fn: the main task's function.
      args: its arguments.
      reactors: the number of reactor threads of the default engine, as in `open_engine`.
      max_buffered: bytes that it may hold for its connections, as in `open_engine`; None, the
          default: no limit.
      admission: bounds on which connections each listener lets in, an `Admission`, as in
          `open_wknet_listener`.
      on_stall: what is called when Trio's loop does not come round, or ``"log"``, as in
          `open_engine`; from when the default engine is opened. None, the default: nobody looks.
      stall_after: after how many seconds; default 1.
      top: True, or a name, lets ``python -m trio_wknet top`` watch every engine of the run, by
          the process's number or that name. None, the default, does so if the environment
          variable ``WKNET_TOP`` is ``1`` or a name, and False does not.
      options: all other keyword arguments are passed to `trio.run`.

    Returns:
      What ``async_fn`` returns.

    Raises:
      TypeError, ValueError: if ``reactors``, ``max_buffered``, ``admission``, ``on_stall``,
          ``stall_after`` or ``top`` is invalid.
      Exception: what `trio.run` and ``async_fn`` raise.
    """
    check_reactors(reactors)
    check_max_buffered(max_buffered)
    check_admission(admission)
    check_on_stall(on_stall)
    check_some_seconds("stall_after", stall_after)
    if top is not None:
        check_top(top)
    start = _RunStart(reactors, max_buffered, admission, (on_stall, stall_after), top)
    instruments = [*options.pop("instruments", ()), start]
    classes.replace()
    try:
        return trio.run(async_fn, *args, instruments=instruments, **options)
    finally:
        classes.restore()


def install(
    *,
    reactors: int | None = None,
    max_buffered: int | None = None,
    admission: Admission | None = None,
) -> None:
    """Do for every run of this process, in any thread, what `run` does for one. Streams
    and listeners that exist already stay what they are. Not a checkpoint.

    Several parts of a program may call it: each call is reverted by one call of
    `uninstall`.

    Args:
      reactors: the number of reactor threads of default engines, as in `open_engine`,
          until every call is reverted. A number that `run` is given takes precedence.
      max_buffered: bytes that each of them may hold for its connections, in the same way;
          None, the default: no limit.
      admission: bounds on which connections each listener lets in, an `Admission`, in the same
          way; None, the default: all are let in.

    Raises:
      TypeError, ValueError: if an argument is invalid, or differs from that of an earlier call.
    """
    check_reactors(reactors)
    check_max_buffered(max_buffered)
    check_admission(admission)
    classes.replace_everywhere(reactors=reactors, max_buffered=max_buffered, admission=admission)


def uninstall() -> None:
    """Revert one call of `install`. After the last one, Trio's functions return Trio's own
    streams again; streams that exist already stay what they are. Not a checkpoint.

    Raises:
      RuntimeError: if there is no call of `install` to revert.
    """
    classes.restore_everywhere()
