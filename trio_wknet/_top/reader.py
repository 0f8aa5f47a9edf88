"""Finding the pages of a process, and reading them."""

from __future__ import annotations

import json
import mmap
import os
import select
import struct
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from trio_wknet._top import layout
from trio_wknet._top.page import MEMFD, VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from trio_wknet._top.layout import Header, LoopRow, ReactorRow

_WORD = struct.Struct("=Q")
_TRIES = 1000
_POLL = 0.01  # seconds
_FIRST_WRITE = 2.0  # seconds: the writing thread looks ten times as often
_NO_PAGE = (
    "cannot be watched: it was not started with trio_wknet.run(..., top=True) or "
    f"{VARIABLE}=1, or has no engine open"
)


class WatchError(Exception):
    """A process cannot be watched; the message says why."""


class EnginePage:
    """The page of one engine, opened for reading, and for asking."""

    def __init__(self, pid: int, fd: int) -> None:
        self._memory = _map(pid, fd)
        try:
            self.header = self._check(pid)
        except BaseException:
            self.close()
            raise

    def _check(self, pid: int) -> Header:
        if len(self._memory) < layout.SECTIONS_AT:
            raise WatchError(f"process {pid} has a page that is too small to be one of trio_wknet")
        header = layout.parse_header(self._memory[: layout.HEADER.size])
        if header.magic != layout.MAGIC:
            raise WatchError(f"process {pid} has a page that is not one of trio_wknet")
        if header.version != layout.VERSION:
            raise WatchError(
                f"process {pid} uses another version of trio_wknet: its page is of version "
                f"{header.version}, this program reads version {layout.VERSION}"
            )
        sections = layout.SECTIONS_AT + max(header.reactors, 1) * layout.SECTION
        if header.size != len(self._memory) or sections != header.size:
            raise WatchError(f"process {pid} has a page whose sizes do not agree")
        return header

    def close(self) -> None:
        self._memory.close()

    @property
    def closed(self) -> bool:
        """Whether the engine is closed."""
        return self._word(layout.CLOSED_AT) != 0

    def _word(self, at: int) -> int:
        value: int = _WORD.unpack_from(self._memory, at)[0]
        return value

    def _change(self, at: int) -> int:
        """Give a word that we write another value."""
        value = time.monotonic_ns()
        _WORD.pack_into(self._memory, at, value)
        return value

    def beat(self) -> None:
        """Have the engine write for some seconds."""
        self._change(layout.BEAT_AT)

    def _read(self, at: int, size: int) -> bytes:
        """A record as its writer left it."""
        for _ in range(_TRIES):
            before = self._word(at)
            data = self._memory[at : at + size]
            if before % 2 == 0 and self._word(at) == before:
                return data
            time.sleep(0.0001)
        raise WatchError(f"the page of process {self.header.pid} is never complete")

    def loop(self) -> LoopRow:
        return layout.parse_loop(self._read(layout.LOOP_AT, layout.LOOP.size))

    def reactors(self) -> list[ReactorRow]:
        return [
            layout.parse_reactor(
                self._read(layout.SECTIONS_AT + i * layout.SECTION, layout.SECTION)
            )
            for i in range(max(self.header.reactors, 1))
        ]

    def tasks(self, patience: float) -> dict[int, dict[str, Any]] | None:
        """What Trio's loop says of the tasks of connections, by id; None if it does not answer
        within ``patience`` seconds."""
        asked = self._change(layout.ASKED_AT)
        if not _until(lambda: self._word(layout.ANSWERED_AT) == asked, patience):
            return None
        size = min(self._word(layout.TEXT_SIZE_AT), layout.TEXT_SIZE)
        try:
            found = json.loads(self._memory[layout.TEXT_AT : layout.TEXT_AT + size])
            return {int(number): task for number, task in found.items()}
        except (ValueError, AttributeError):  # another reader's answer was just written
            return None


class WatchedProcess:
    """The pages of a process, to be used as a context manager."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._pidfd = _open_pid(pid)
        self.pages: list[EnginePage] = []
        try:
            self.find_pages()
            if not self.pages:
                raise WatchError(f"process {pid} {_NO_PAGE}")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> WatchedProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        for page in self.pages:
            page.close()
        self.pages = []
        os.close(self._pidfd)

    @property
    def alive(self) -> bool:
        return not select.select([self._pidfd], [], [], 0)[0]

    def find_pages(self) -> None:
        """Look for the process's engines anew."""
        for page in self.pages:
            page.close()
        self.pages = _pages_of(self.pid)

    def beat(self) -> None:
        for page in self.pages:
            page.beat()

    def wait_until_written(self) -> None:
        """Have the engines write. A reactor whose loop is stuck does not, which is no
        reason to wait for it: an engine's own record is always written."""
        before = [page.loop().written_at for page in self.pages]
        self.beat()

        def written() -> bool:
            return not self.alive or all(
                page.closed or page.loop().written_at > at
                for page, at in zip(self.pages, before, strict=True)
            )

        _until(written, _FIRST_WRITE)


def find_process(target: str) -> int:
    """The process that a PID or a name means."""
    if target.isdecimal():
        return int(target)
    found = sorted({pid for pid in _all_pids() if target in _names_of(pid)})
    if not found:
        raise WatchError(f"no process that may be watched is named {target!r}")
    if len(found) > 1:
        numbers = ", ".join(map(str, found))
        raise WatchError(f"{target!r} is the name of several processes: {numbers}")
    return found[0]


def _all_pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdecimal()]


def _names_of(pid: int) -> set[str]:
    """The names of a process's engines; none if we may not look, or it has just ended."""
    try:
        pages = _pages_of(pid)
    except WatchError:
        return set()
    names = {page.header.name for page in pages}
    for page in pages:
        page.close()
    return names


def _open_pid(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except (ProcessLookupError, OverflowError, ValueError):
        raise WatchError(f"there is no process {pid}") from None
    except OSError as failure:
        raise WatchError(f"process {pid}: {failure.strerror}") from None


def _descriptors(pid: int) -> list[int]:
    """Those of a process that are pages."""
    folder = f"/proc/{pid}/fd"
    try:
        numbers = os.listdir(folder)
    except FileNotFoundError:
        raise WatchError(f"there is no process {pid}") from None
    except PermissionError:
        raise WatchError(
            f"process {pid} belongs to another user, or may not be looked into"
        ) from None
    found = []
    for number in numbers:
        with suppress(OSError):  # closed since
            if os.readlink(f"{folder}/{number}").startswith(f"/memfd:{MEMFD} "):
                found.append(int(number))
    return sorted(found)


def _pages_of(pid: int) -> list[EnginePage]:
    """Its own, not what it has from the process that forked it."""
    pages: list[EnginePage] = []
    try:
        for fd in _descriptors(pid):
            with suppress(FileNotFoundError):  # closed since
                page = EnginePage(pid, fd)
                known = {other.header.opened for other in pages}  # there may be duplicates
                if page.header.pid == pid and not page.closed and page.header.opened not in known:
                    pages.append(page)
                else:
                    page.close()
    except BaseException:
        for page in pages:
            page.close()
        raise
    return pages


def _map(pid: int, fd: int) -> mmap.mmap:
    try:
        opened = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    except PermissionError:
        raise WatchError(f"process {pid} belongs to another user") from None
    try:
        return mmap.mmap(opened, 0)
    except ValueError:  # it is empty
        raise WatchError(f"process {pid} has a page that is empty") from None
    finally:
        os.close(opened)


def _until(condition: Callable[[], bool], patience: float) -> bool:
    end = time.monotonic() + patience
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(_POLL)
    return True
