"""What `send_file` sends: a plain file by its descriptor, or whatever can be read.

The descriptor is used only where the object surely shows the file's own bytes: `gzip.GzipFile`
has a ``fileno``, too, but of the compressed file. Anything else is read by its ``read``.

Reading may take as long as a disk takes, so it is done in worker threads. A plain file is read
by position, by a descriptor of our own. So neither its position nor closing it meanwhile
matters, and a thread may be abandoned.
"""

from __future__ import annotations

import errno
import io
import operator
import os
import stat
import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

import trio

from trio_wknet._native.trio.send_file import read_resident

if TYPE_CHECKING:
    import sys

    if sys.version_info >= (3, 12):
        from collections.abc import Buffer
    else:
        from typing_extensions import Buffer

MOST = (1 << 63) - 1  # bytes, of a file
PIECE = 1 << 16  # bytes that are read, and encrypted, at a time
BUFFER = 1 << 18  # bytes that a worker thread reads at a time
_AsyncFile = type(trio.wrap_file(io.BytesIO()))
_TemporaryFile = tempfile._TemporaryFileWrapper


class BinaryFile(Protocol):
    """What `open` and `trio.open_file` give in binary mode, and what is like it."""

    def read(self, n: int, /) -> Any: ...


class PlainFile:
    """A range of a file by its descriptor, which is closed with the last reference."""

    def __init__(self, fd: int, offset: int, count: int) -> None:
        self.fd = os.dup(fd)
        self.offset = offset
        self.count = count
        self.buffer = memoryview(b"")

    def __del__(self) -> None:
        with suppress(AttributeError):  # there was no descriptor left
            os.close(self.fd)

    async def read_ahead(self, offset: int, n: int) -> None:
        """Have a part in memory."""
        await trio.to_thread.run_sync(self._read_ahead, offset, n, abandon_on_cancel=True)

    def _read_ahead(self, offset: int, n: int) -> None:
        buffer = memoryview(bytearray(min(n, BUFFER)))
        end = offset + n
        while offset < end and (got := os.preadv(self.fd, [buffer[: end - offset]], offset)):
            offset += got

    async def read(self, offset: int, n: int) -> bytes:
        """A part; fewer bytes, or none, at the end."""
        return await trio.to_thread.run_sync(self._read, offset, n, abandon_on_cancel=True)

    def _read(self, offset: int, n: int) -> bytes:
        return os.pread(self.fd, n, offset)

    async def next_piece(self) -> Buffer:
        """What comes next; nothing at the end. It is valid until the next one is asked for."""
        if not self.buffer:
            self.buffer = memoryview(bytearray(min(PIECE, self.count)))
        piece: Buffer = self.buffer[: self.count]
        got = read_resident(self.fd, piece, self.offset)
        if got >= 0:
            piece = self.buffer[:got]
        else:
            piece = await self.read(self.offset, min(BUFFER, self.count))
            got = len(piece)
        self.offset += got
        self.count -= got
        return piece


class Readable:
    """A number of bytes of an object that can only be read."""

    fd = -1
    offset = 0

    def __init__(self, file: Any, offset: int, count: int) -> None:
        self.file = file
        self.count = count
        seekable = getattr(file, "seekable", None)
        if seekable is not None and seekable():
            self.start: int | None = offset
            self.read_some = file.read
        elif offset:
            raise ValueError(f"offset must be 0 for a file that cannot seek, not {offset}")
        else:
            self.start = None
            # What a pipe has, as soon as it has it.
            self.read_some = getattr(file, "read1", file.read)

    async def read(self, _: int, n: int) -> bytes:
        """What comes next; nothing at the end."""
        return await trio.to_thread.run_sync(self._read, n)

    def _read(self, n: int) -> bytes:
        start, self.start = self.start, None
        if start is not None:
            self.file.seek(start)
        data = self.read_some(n)
        if data is None:
            raise BlockingIOError(errno.EAGAIN, "file is non-blocking, and has nothing to read")
        try:
            size = memoryview(data).nbytes
        except TypeError:
            kind = type(data).__name__
            raise TypeError(f"file must be binary, but its read returned {kind}") from None
        if size > n:
            raise ValueError(f"file is invalid: asked for {n} bytes, its read returned {size}")
        return bytes(data)

    async def next_piece(self) -> Buffer:
        """What comes next; nothing at the end."""
        piece = await self.read(0, min(BUFFER, self.count)) if self.count else b""
        self.count -= len(piece)
        return piece


def open_source(file: Any, offset: object, count: object) -> PlainFile | Readable:
    """What `send_file` is to send.

    Raises:
      TypeError, ValueError: an argument is invalid.
      OSError: there is no descriptor left.
    """
    first = _checked("offset", offset)
    most = MOST - first
    if count is not None:
        most = min(most, _checked("count", count))
    if isinstance(file, _AsyncFile):
        file = file.wrapped
    if isinstance(file, _TemporaryFile):
        file = file.file
    if isinstance(file, io.TextIOBase):
        raise TypeError(f"file must be opened in binary mode, not {file!r}")
    if not callable(getattr(file, "read", None)):
        raise TypeError(f"file must be a binary file object, not {file!r}")
    if getattr(file, "closed", False):
        raise ValueError(f"file must not be closed: {file!r}")
    if not getattr(file, "readable", lambda: True)():
        raise ValueError(f"file must be opened for reading, not {file!r}")
    fd = _descriptor(file)
    return Readable(file, first, most) if fd is None else PlainFile(fd, first, most)


def _checked(name: str, value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, not {value}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {value!r}") from None
    if number < 0:
        raise ValueError(f"{name} must be at least 0, not {number}")
    return min(number, MOST)


def _descriptor(file: Any) -> int | None:
    """The descriptor of a plain file, if reading the object would give just that file's bytes."""
    raw = file
    if type(file) in (io.BufferedReader, io.BufferedRandom):
        file.flush()  # what was written to it; usually nothing
        raw = file.raw
    if type(raw) is not io.FileIO:
        return None
    fd = raw.fileno()
    return fd if stat.S_ISREG(os.fstat(fd).st_mode) else None
