"""A stream's first bytes: the header of a handshake, and what came along with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from trio_wknet._errors import DelimiterNotFound, IncompleteRead

if TYPE_CHECKING:
    import trio


@attrs.define
class BufferedStream:
    """What a `Conn` has, and other streams have not: receiving up to a delimiter."""

    stream: trio.abc.Stream
    _buffer: bytearray = attrs.field(factory=bytearray, init=False)

    async def receive_until(self, delimiter: bytes, max_bytes: int) -> bytes:
        """As `Conn.receive_until`. No byte is searched twice, but for those that may begin a
        delimiter. A checkpoint."""
        buffer = self._buffer
        searched = 0
        while True:
            at = buffer.find(delimiter, searched, max_bytes + len(delimiter))
            if at >= 0:
                found = bytes(buffer[:at])
                del buffer[: at + len(delimiter)]
                return found
            if len(buffer) >= max_bytes + len(delimiter):
                raise DelimiterNotFound(delimiter, max_bytes)
            searched = max(0, len(buffer) - len(delimiter) + 1)
            data = await self.stream.receive_some()
            if not data:
                raise IncompleteRead(None, len(buffer))
            buffer += data

    async def receive_some(self) -> bytes:
        """What is there, or what comes next; empty at the end. A checkpoint."""
        return self.take() or bytes(await self.stream.receive_some())

    def take(self) -> bytes:
        """What is there."""
        data = bytes(self._buffer)
        self._buffer.clear()
        return data

    async def send_all(self, data: bytes) -> None:
        await self.stream.send_all(data)
