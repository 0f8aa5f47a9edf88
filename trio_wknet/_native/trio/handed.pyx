"""The open connections that a listener's `accept` returned.

What serves them is not known here: a loop around `accept`, or `trio.serve_listeners`, with or
without TLS in between. But each connection holds this object from `accept` until it is
closed, so the count is known.
"""


cdef class Handed:
    cdef void left(self) noexcept:
        """One of them is closed. A finalizer may say so in any thread, under the GIL."""
        self.count -= 1
        if self.count == 0 and self.on_none is not None:
            self.on_none()
