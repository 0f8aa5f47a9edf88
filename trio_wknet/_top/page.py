"""An engine's page of shared memory, from the engine's side.

Facts. Watching a program must work while its loop is stuck, and must leave nothing behind when
it crashes. A memfd is memory with a descriptor and no name in any file system; other processes
of the same user reach it through ``/proc/PID/fd``, where the kernel applies the rule that it
has for debuggers.

Decision. An engine that may be watched has one memfd, named `trio_wknet`, whose size is
sealed: a reader cannot shrink it under the writers. native trio/page.pyx writes it.

A forked child has a copy of the descriptor and of the mapping, but none of the threads that
write. The page says whose it is, so a reader does not find it under the child.
"""

from __future__ import annotations

import fcntl
import json
import logging
import mmap
import os
import signal
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from trio_wknet._native.trio.page import Page, page_size
from trio_wknet._tasks import tasks_of

if TYPE_CHECKING:
    from trio_wknet._native.trio.core import Core

logger = logging.getLogger("trio_wknet.top")

MEMFD = "trio_wknet"
VARIABLE = "WKNET_TOP"
MAX_NAME = 63
# Not in Python's fcntl before 3.13 or so on every platform; from <linux/fcntl.h>.
_ADD_SEALS, _SEAL_SEAL, _SEAL_SHRINK, _SEAL_GROW = 1033, 1, 2, 4


def check_top(top: object, argument: str = "top") -> None:
    """Refuse what is neither True nor False nor a name."""
    if isinstance(top, bool):
        return
    if not isinstance(top, str):
        raise TypeError(f"{argument} must be True, False or a name, not {top!r}")
    if not top or not top.isprintable() or top.isdecimal():
        raise ValueError(f"{argument} must be a printable name that is not a number, not {top!r}")
    if len(top.encode(errors="replace")) > MAX_NAME:
        raise ValueError(f"{argument} must have at most {MAX_NAME} bytes, not {top!r}")


def wanted_name(top: bool | str | None) -> str | None:
    """The name of an engine's page, perhaps empty; None if there shall be no page. What `run`
    was given comes first, then the environment."""
    if top is None:
        value = os.environ.get(VARIABLE, "")
        if value in ("", "0"):
            return None
        top = True if value == "1" else value
        check_top(top, f"the environment variable {VARIABLE}")
    if isinstance(top, str):
        return top
    return "" if top else None


class TopPage:
    """An engine's page, and the thread that keeps it up to date. It belongs to Trio's thread."""

    def __init__(self, core: Core, reactors: int, name: str) -> None:
        self._core = core
        self._token = trio.lowlevel.current_trio_token()
        self._memory = _make_memory(page_size(reactors))
        try:
            self._bell = os.eventfd(0, os.EFD_CLOEXEC)
        except BaseException:
            self._memory.close()
            raise
        try:
            self._page = Page(core, self._memory, name.encode(), self._bell)
            self._thread = threading.Thread(target=self._run, name="wknet-top", daemon=True)
            _start_without_signals(self._thread)
        except BaseException:
            os.close(self._bell)  # the memory goes with the page
            raise

    def _run(self) -> None:
        while self._page.run():
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._answer, idempotent=True)

    def _answer(self) -> None:
        """Tell the reader that asked about the tasks of connections."""
        if self._core.closed or self._core.forked:
            return
        try:
            text = _fitting(_describe_tasks(self._core))
        except Exception:  # Trio would end the run
            logger.exception("cannot describe the tasks of connections")
            text = b"{}"
        self._page.answer(text)

    def stop(self) -> None:
        """End the thread. The engine's reactors may still finish what it gave them."""
        os.eventfd_write(self._bell, 1)
        self._thread.join()

    def close(self) -> None:
        """When the engine is closed."""
        self._page.close()
        self._memory.close()
        os.close(self._bell)


def _describe_tasks(core: Core) -> dict[int, dict[str, object]]:
    return {
        one.conn.id or 0: {
            "name": one.name,
            "waits_for": one.waits_for,
            "stack": [f"{at.filename}:{at.lineno} in {at.name}" for at in one.stack()],
        }
        for one in tasks_of(core)
    }


def _make_memory(size: int) -> mmap.mmap:
    """Shared memory, with a descriptor of its own."""
    fd = os.memfd_create(MEMFD, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.fchmod(fd, 0o600)
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, _ADD_SEALS, _SEAL_SHRINK | _SEAL_GROW | _SEAL_SEAL)
        return mmap.mmap(fd, size)
    finally:
        os.close(fd)


def _start_without_signals(thread: threading.Thread) -> None:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _fitting(found: dict[int, dict[str, object]], size: int = 65536) -> bytes:
    """As JSON, without the last ones if there is no room for them."""
    entries, used = [], 2
    for number, task in found.items():
        entry = f'"{number}":{json.dumps(task)}'
        used += len(entry) + 1
        if used > size:
            break
        entries.append(entry)
    return ("{" + ",".join(entries) + "}").encode()
