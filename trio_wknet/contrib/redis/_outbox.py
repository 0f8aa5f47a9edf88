"""What waits to be published."""

from __future__ import annotations

from collections import deque


class Outbox:
    """Messages in order, in a bounded number of bytes. If one more would be too many, the oldest
    are dropped: in a conversation the newest are worth most."""

    # What a message costs beside its bytes: they are bounded in number, too.
    OVERHEAD = 100

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._messages: deque[tuple[bytes, bytes]] = deque()
        self.size = 0

    def __len__(self) -> int:
        return len(self._messages)

    @classmethod
    def size_of(cls, message: tuple[bytes, bytes]) -> int:
        channel, envelope = message
        return len(channel) + len(envelope) + cls.OVERHEAD

    def put(self, message: tuple[bytes, bytes]) -> int:
        """Put it last, and return how many were dropped for it. One that is larger than all may
        be is taken if it is alone."""
        self._messages.append(message)
        self.size += self.size_of(message)
        return self._shrink()

    def put_back(self, messages: list[tuple[bytes, bytes]]) -> int:
        """Put those first that were taken, and return how many were dropped for them."""
        self._messages.extendleft(reversed(messages))
        self.size += sum(map(self.size_of, messages))
        return self._shrink()

    def _shrink(self) -> int:
        dropped = 0
        while self.size > self._max_bytes and len(self._messages) > 1:
            self.size -= self.size_of(self._messages.popleft())
            dropped += 1
        return dropped

    def take(self, max_count: int, max_bytes: int) -> list[tuple[bytes, bytes]]:
        """Take the oldest."""
        taken: list[tuple[bytes, bytes]] = []
        size = 0
        while self._messages and len(taken) < max_count and size < max_bytes:
            taken.append(self._messages.popleft())
            size += self.size_of(taken[-1])
        self.size -= size
        return taken

    def take_all(self) -> list[tuple[bytes, bytes]]:
        """Take what is there."""
        return self.take(len(self._messages), self.size + 1)
