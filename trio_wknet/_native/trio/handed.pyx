"""The open connections that a listener's `accept` gave out.

Who serves them is not known here: a loop around `accept`, `trio.serve_listeners`, with or
without TLS in between. What is known is when each of them is closed: it holds this from
`accept` until then.
"""


cdef class Handed:
    cdef void left(self) noexcept:
        """One of them is closed. A finalizer may say so in any thread, under the GIL."""
        self.count -= 1
        if self.count == 0 and self.on_none is not None:
            self.on_none()
