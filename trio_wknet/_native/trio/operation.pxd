# An operation is an awaitable written by hand: what the async methods of a
# connection or listener return. It speaks Trio's own protocol with its scheduler
# (it yields the very objects that trio.lowlevel's functions yield), so every
# checkpoint is a real one, and does without a coroutine frame for each layer.
cdef object WOKEN               # what a parked operation is rescheduled with
cdef object ABORT_SUCCEEDED
cdef object ABORT_FAILED


cdef enum:
    CREATED
    RAISING         # running Trio's own coroutine, which ends in an exception
    PARKED
    YIELDING        # at a schedule point, with more to do behind it
    COMPLETING      # at the last schedule point
    DONE


# What came of waking a task.
cdef enum Wake:
    WOKEN_UP
    UNDONE          # there was no memory: it still waits
    HALF_DONE       # Trio has raised for another reason, which is in `failure`


cdef class Operation:
    cdef object task            # while parked
    cdef object result          # what the await returns
    cdef object failure         # or raises, after a last checkpoint
    cdef object inner           # Trio's own coroutine, when it is to raise Cancelled
    cdef int state

    # For subclasses: begin, and go on after a wake. Each returns what to yield
    # next, or None when the operation is complete.
    cdef object start(self)
    cdef object proceed(self)
    # A deferred send is due (send_batch.pyx). Called between tasks, or in another task's step.
    cdef void carry_out(self) noexcept
    # Its connection is let go of. Whether that leaves half a message behind.
    cdef bint tears(self) noexcept
    # Called exactly once, however the operation ends.
    cdef void finish(self) noexcept
    # Its result cannot be handed to the awaiting task, for lack of memory.
    cdef void lost(self) noexcept

    cdef object enter(self)
    cdef object complete(self, object result)
    cdef object fail(self, object failure)
    cdef object yielding(self)
    cdef object parked(self, object trap)
    cdef Wake wake(self) noexcept
    cdef object resume(self, object sent)
    cdef void _return(self) noexcept
    cdef object _step(self, object sent)
    cdef void _end(self) noexcept


cdef object make_trap(object abort)
