"""What a listener's drain has to know of its connections, and its totals. Each open one that has
an object holds this one.

What serves the connections that `accept` returned is not known here: a loop around `accept`, or
`trio.serve_listeners`, with or without TLS in between. But such a connection counts from `accept`
until it is closed, so their number is known. (The handlers of `serve` are counted there.)
"""


cdef class Point:
    cdef int end(self) except -1:
        """End the wait, if nothing is against it. In Trio's thread."""
        return 0


cdef class Handed:
    def __cinit__(self, Totals totals not None):
        self.totals = totals

    cdef void left(self) noexcept:
        """One of them is closed. A finalizer may say so in any thread, under the GIL."""
        self.count -= 1
        if self.count == 0 and self.on_none is not None:
            self.on_none()

    cdef int enter(self, Point point) except -1:
        if self.points is None:
            self.points = set()
        self.points.add(point)
        return 0

    cdef void leave(self, Point point) noexcept:
        self.points.discard(point)

    def drain(self, on_none):
        """End all waits that there are, and those that begin from here on. `on_none` is called
        whenever the last connection that `accept` returned is closed."""
        self.on_none = on_none
        self.draining = True
        for point in list(self.points or ()):
            (<Point>point).end()
