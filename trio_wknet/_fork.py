"""Engines in a forked child do nothing, so that the parent's are not disturbed.

Facts. A forked child has a copy of an engine without its threads, and shares every
descriptor with the parent: its epolls and eventfds, with their registrations and their
events. If a program forks in a Trio task and leaves in the child, for example by
`SystemExit`, Trio's loop goes on there until every task is cancelled. It waits with the epoll
that the parent uses, too: it takes events that are for the parent, and ends the
parent's waits with its own. With Trio's own transport, the parent loses what its tasks were
waiting for. An engine always waits.

Decision. In the child an engine is marked, refuses to be used, and touches no descriptor.
And if Trio's loop may go on there, the child gets an epoll of its own: another one takes
the number, with the same registrations except those of engines. Trio does not say which
descriptor that is; the kernel does, because the epoll waits for the engine's.

Trade-off. If the fork is in the same turn as the opening of the run's first engine, Trio does
not wait for the engine yet, and the epoll is not found.
"""

from __future__ import annotations

import os
import select
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trio_wknet._native.trio.core import Core

_EPOLL = "anon_inode:[eventpoll]"

_cores: weakref.WeakSet[Core] = weakref.WeakSet()
_hook_registered = False


def watch_forks(core: Core) -> None:
    """Make children that are forked from now on leave an engine alone."""
    global _hook_registered
    if not _hook_registered:
        _hook_registered = True
        os.register_at_fork(before=_before_fork, after_in_child=_after_fork)
    _cores.add(core)


def _before_fork() -> None:
    """The child will hold the descriptors, too: close(2) alone is not enough any more."""
    for core in _cores:
        core.mark_shared()


def _after_fork() -> None:
    engines = {core.fileno() for core in _cores if core.mark_forked()}
    if engines:
        with suppress(OSError):  # no descriptor left, or no /proc
            _part_from_parents_epoll(engines)


def _part_from_parents_epoll(engines: set[int]) -> None:
    for fd in sorted(map(int, os.listdir("/proc/self/fd"))):
        waits = _waits_of(fd)
        if not engines.isdisjoint(waits):
            _replace_epoll(fd, {at: events for at, events in waits.items() if at not in engines})
            return  # a thread has one Trio run


def _waits_of(fd: int) -> dict[int, int]:
    """What an epoll waits for: events by descriptor."""
    waits = {}
    with suppress(OSError):  # the descriptor that lists them is gone by now
        if os.readlink(f"/proc/self/fd/{fd}") == _EPOLL:
            with open(f"/proc/self/fdinfo/{fd}") as lines:
                for line in lines:
                    match line.split():
                        case ["tfd:", descriptor, "events:", events, *_]:
                            waits[int(descriptor)] = int(events, 16)
    return waits


def _replace_epoll(fd: int, waits: dict[int, int]) -> None:
    with select.epoll() as fresh:
        for descriptor, events in waits.items():
            if events & ~select.EPOLLONESHOT:  # else that shot was fired
                with suppress(OSError):  # closed since, while a duplicate lives
                    fresh.register(descriptor, events)
        os.dup2(fresh.fileno(), fd, inheritable=False)
