# cython: boundscheck=True, nonecheck=True
"""Timers: callbacks on a timing wheel, the native half of `TimingWheel`.

What hangs on the wheel is an entry of a table, not a Timer. A Timer knows its entry's
place, and a serial number that tells whether the entry is still its own. So a Timer
can be dropped while it runs, and there is no cycle between it and the wheel. The
callbacks are in a list beside the table, where the garbage collector sees them.

Code of others (the clock, a callback, a finalizer) runs before or after the table and
the wheel are touched, never between.
"""
cimport cython
from cpython.object cimport PyObject
from cpython.pythread cimport PyThread_get_thread_ident
from cpython.ref cimport Py_DECREF
from libc.math cimport INFINITY, ceil, nextafter
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from ..base.memory cimport FOR_TIMERS, memory_free, memory_resize
from ..reactor.wheel cimport (
    MAX_NODES, MAX_SLOTS, NEVER, Wheel, WheelNode, wheel_add, wheel_free, wheel_linked,
    wheel_new, wheel_next, wheel_remove, wheel_take, wheel_turn,
)

from functools import partial

from trio import CancelScope


cdef extern from "Python.h":
    # By pointers: an error is left for the other to report.
    PyObject *PyObject_CallNoArgs(PyObject *callback)
    void PyErr_WriteUnraisable(PyObject *where)


cdef enum:
    FIRST_ENTRIES = 64

cdef double MAX_SECONDS = 18446744073.0    # in 64 bits of nanoseconds


# --- the table --------------------------------------------------------------------


cdef struct Entry:
    WheelNode node
    uint64_t due        # ns; while the entry is free, the next free one's index + 1
    uint64_t serial     # whose it is; 0 while it is free


cdef struct Table:
    Entry *entries
    uint32_t size
    uint32_t free       # index + 1 of the first free entry; 0 if there is none


cdef WheelNode *_locate(void *table, uint32_t index) noexcept nogil:
    return &(<Table *>table).entries[index].node


cdef uint64_t _due(void *table, uint32_t index) noexcept nogil:
    return (<Table *>table).entries[index].due


cdef int _grow(Table *table) except -1:
    """Double a table that has no free entry."""
    cdef uint32_t size = max(2 * table.size, <uint32_t>FIRST_ENTRIES)
    cdef Entry *grown = NULL
    cdef uint32_t index
    if size <= <uint32_t>MAX_NODES:
        grown = <Entry *>memory_resize(FOR_TIMERS, table.entries, size * sizeof(Entry))
    if grown == NULL:
        raise MemoryError
    memset(&grown[table.size], 0, (size - table.size) * sizeof(Entry))
    for index in range(table.size, size - 1):
        grown[index].due = index + 2
    table.free = table.size + 1
    table.entries = grown
    table.size = size
    return 0


# --- time -------------------------------------------------------------------------


cdef inline uint64_t _passed(double seconds) noexcept:
    """The whole nanoseconds that have passed."""
    if not seconds > 0:
        return 0
    return <uint64_t>(seconds * 1e9) if seconds < MAX_SECONDS else NEVER - 1


cdef inline uint64_t _not_before(double seconds) noexcept:
    """The first whole nanosecond that is not early."""
    if not seconds > 0:
        return 0
    return <uint64_t>ceil(seconds * 1e9) if seconds < MAX_SECONDS else NEVER


cdef double _seconds(str name, value) except -1:
    cdef double seconds
    try:
        if isinstance(value, bool):
            raise TypeError
        seconds = value
    except TypeError:
        raise TypeError(f"{name} must be a number of seconds, not {value!r}") from None
    except OverflowError:
        seconds = INFINITY
    if not 0 <= seconds < INFINITY:
        raise ValueError(f"{name} must be finite and not negative, not {value!r}")
    return seconds


cdef uint64_t _tick_ns(tick) except 0:
    cdef double seconds = _seconds("tick", tick)
    if not 1e-9 <= seconds <= 1e9:
        raise ValueError(f"tick must be from 1e-9 to 1e9 seconds, not {tick!r}")
    return <uint64_t>(seconds * 1e9 + 0.5)


cdef uint32_t _slots(slots) except 0:
    if isinstance(slots, bool) or not isinstance(slots, int):
        raise TypeError(f"slots must be an integer, not {slots!r}")
    if not 2 <= slots <= MAX_SLOTS:
        raise ValueError(f"slots must be from 2 to {MAX_SLOTS}, not {slots!r}")
    return slots


# --- timers -----------------------------------------------------------------------


cdef class Timers:
    """The native half of a wheel. Who derives from it turns it (`_attach`, `_rouse`)."""
    cdef Wheel *wheel
    cdef Table table
    cdef list callbacks         # of each entry; None while it is free
    cdef object clock           # gives seconds; None before the first use, and at the end
    cdef double origin          # when the wheel's time began, on that clock
    cdef unsigned long thread
    cdef bint ended
    # When somebody will look at the wheel anyway (ns): 0 is now, or always, NEVER not
    # at all. Only a timer that is due before is told.
    cdef uint64_t watched_at
    cdef uint64_t serial
    cdef uint64_t fired
    cdef uint64_t cancelled
    cdef uint64_t turns

    def __cinit__(self, tick=0.010, slots=1000, *, clock=None):
        if clock is not None and not callable(clock):
            raise TypeError(f"clock must be callable, not {clock!r}")
        self.callbacks = []
        self.watched_at = NEVER
        self.wheel = wheel_new(_tick_ns(tick), _slots(slots), 0, &self.table, _locate, _due)
        if self.wheel == NULL:
            raise MemoryError
        if clock is not None:
            self.watched_at = 0
            self._start(clock)

    def __dealloc__(self):
        if self.wheel != NULL:
            wheel_free(self.wheel)
        memory_free(FOR_TIMERS, self.table.entries)

    # --- for the application ----------------------------------------------------------

    def call_later(self, delay, fn, *args):
        """Call ``fn(*args)`` once, in this thread, ``delay`` seconds from now. Not a
        checkpoint.

        The call is never early. It comes in a later tick than this one, and is late by
        at most one tick plus the time that the thread is busy. The function is
        called between the steps of tasks: it cannot await, and does not see the caller's
        context variables. If it raises, the exception goes to `sys.unraisablehook`, and
        has no other effect.

        Args:
          delay: in seconds, 0 or more.
          fn: a plain function.
          args: its arguments.

        Returns:
          A `Timer`. It need not be kept: the call is made even if it is dropped.

        Raises:
          TypeError: if ``delay`` is not a number, or ``fn`` is not callable.
          ValueError: if ``delay`` is negative, infinite or NaN.
          RuntimeError: outside of a Trio run, or if the wheel belongs to a run that
              has ended, or to another thread.
        """
        cdef double seconds = _seconds("delay", delay)
        if not callable(fn):
            raise TypeError(f"fn must be callable, not {fn!r}")
        return self.new_timer(seconds, partial(fn, *args) if args else fn)

    def move_on_after(self, delay):
        """Like `trio.move_on_after`: cancel a scope ``delay`` seconds after it is entered.
        Leaving it disarms the timer. Not a checkpoint.

        It is as exact as `call_later`. The scope's ``deadline`` is not used.

        Args:
          delay: in seconds, 0 or more.

        Returns:
          A context manager, whose value is a `trio.CancelScope`. It can be entered once.

        Raises:
          TypeError: if ``delay`` is not a number.
          ValueError: if ``delay`` is negative, infinite or NaN.
          RuntimeError: on entering, outside of a Trio run, or if the wheel belongs to a run
              that has ended, or to another thread.
        """
        return MoveOnAfter.__new__(MoveOnAfter, self, _seconds("delay", delay))

    cdef Timer new_timer(self, double delay, callback):
        cdef Timer timer = Timer.__new__(Timer)
        timer.wheel = self
        timer.callback = callback
        timer.delay = delay
        self.arm(timer)
        return timer

    # --- for timers -----------------------------------------------------------------

    cdef int check_thread(self) except -1:
        if self.clock is not None and self.thread != PyThread_get_thread_ident():
            raise RuntimeError(
                "this timing wheel belongs to another thread: use trio.from_thread.run_sync "
                "to call it from here, if that is a Trio run's"
            )
        return 0

    def _check_thread(self):
        self.check_thread()

    cdef int ensure_usable(self) except -1:
        if self.ended:
            raise RuntimeError("this timing wheel belongs to a Trio run that has ended")
        if self.clock is None:
            self._attach()
        return self.check_thread()

    cdef uint64_t due_after(self, double delay) except 0:
        """Later than this moment, so that it is not in this tick."""
        cdef double now = self.clock()
        return max(_not_before(now + delay - self.origin), _passed(now - self.origin) + 1)

    cdef double on_clock(self, uint64_t ns) noexcept:
        """The first moment of the clock at which so much has passed."""
        cdef double moment = self.origin + <double>ns / 1e9
        if ns == NEVER:
            return INFINITY
        while _passed(moment - self.origin) < ns:
            moment = nextafter(moment, INFINITY)
        return moment

    cdef int look_before(self, uint64_t due) except -1:
        """See to it that somebody turns the wheel in the tick of that time."""
        cdef uint64_t tick = self.wheel.tick_ns
        if due < self.watched_at:
            due += tick - 1
            due -= due % tick
            self._rouse(self.on_clock(due))
            self.watched_at = due
        return 0

    cdef bint holds(self, Timer timer) noexcept:
        return (timer.serial != 0
                and self.table.entries[timer.index].serial == timer.serial)

    cdef int take_entry(self, Timer timer) except -1:
        cdef uint32_t index
        if self.table.free == 0:
            _grow(&self.table)
        index = self.table.free - 1
        if index == len(self.callbacks):    # used for the first time
            self.callbacks.append(timer.callback)
        else:
            self.callbacks[index] = timer.callback
        self.table.free = <uint32_t>self.table.entries[index].due
        self.serial += 1
        self.table.entries[index].serial = self.serial
        timer.serial = self.serial
        timer.index = index
        return 0

    cdef object give_entry(self, uint32_t index):
        """Make an entry, which is not linked any more, free; returns the callback."""
        callback = self.callbacks[index]
        self.callbacks[index] = None
        self.table.entries[index].serial = 0
        self.table.entries[index].due = self.table.free
        self.table.free = index + 1
        return callback

    cdef int arm(self, Timer timer) except -1:
        """Let a timer be due after its delay, whether it waits already or not."""
        cdef Entry *entry
        cdef uint64_t due
        cdef bint moves
        self.ensure_usable()
        due = self.due_after(timer.delay)
        self.look_before(due)
        if not self.holds(timer):
            self.take_entry(timer)
        entry = &self.table.entries[timer.index]
        # The wheel finds out by itself about a time that has moved later.
        moves = not wheel_linked(&entry.node) or due < entry.due
        entry.due = due
        if moves:
            wheel_add(self.wheel, timer.index)
        return 0

    cdef int disarm(self, Timer timer) except -1:
        self.check_thread()
        if self.holds(timer):
            wheel_remove(self.wheel, timer.index)
            self.cancelled += 1
            self.give_entry(timer.index)
        return 0

    # --- for who turns the wheel ------------------------------------------------------

    def _attach(self):
        """Called at the first use of a wheel without a clock: to call `_start`, or
        raise RuntimeError."""
        raise NotImplementedError

    def _rouse(self, double moment):
        """Called when nobody would look at the wheel at a moment of the clock."""
        raise NotImplementedError

    def _start(self, clock):
        """Belong to this thread, and go by that clock."""
        self.origin = clock()
        self.clock = clock
        self.thread = PyThread_get_thread_ident()

    def _watch(self):
        """The moment at which to look at the wheel next; None if it is empty. Until
        then `_rouse` is called for what is due before."""
        self.watched_at = wheel_next(self.wheel)
        return self.on_clock(self.watched_at) if self.wheel.count else None

    def _unwatch(self):
        """Nobody looks at the wheel any more: call `_rouse` for the next timer."""
        self.watched_at = NEVER

    def _run_due(self):
        """Turn the wheel, and run what is due; false if there may be more."""
        cdef uint64_t passed
        cdef uint32_t index
        cdef double now
        self.check_thread()
        now = self.clock()
        passed = _passed(now - self.origin)
        self.watched_at = 0
        self.turns += 1
        wheel_turn(self.wheel, passed)
        while wheel_take(self.wheel, &index):
            self.fired += 1
            _call(self.give_entry(index))
        return wheel_next(self.wheel) > passed

    def _end(self):
        """The run has ended: forget all timers, and refuse new ones."""
        cdef uint32_t index
        self.ended = True
        self.clock = None
        for index in range(self.table.size):
            wheel_remove(self.wheel, index)
            self.table.entries[index].serial = 0
        self.callbacks = []

    def _counters(self):
        """(pending, fired, cancelled, turns, visits)"""
        return (self.wheel.count, self.fired, self.cancelled, self.turns, self.wheel.visits)


cdef void _call(callback) noexcept:
    cdef PyObject *result = PyObject_CallNoArgs(<PyObject *>callback)
    if result == NULL:
        PyErr_WriteUnraisable(<PyObject *>callback)
    else:
        Py_DECREF(<object>result)


@cython.final
@cython.freelist(256)
cdef class Timer:
    """A pending call of a `TimingWheel`; `TimingWheel.call_later` returns one."""
    cdef Timers wheel
    cdef object callback
    cdef double delay
    cdef uint64_t serial        # 0 before it has ever had an entry
    cdef uint32_t index

    def __init__(self):
        raise TypeError("a Timer cannot be constructed; TimingWheel.call_later returns one")

    def __repr__(self):
        state = "pending" if self.wheel.holds(self) else "not pending"
        return f"<trio_wknet.Timer {state}>"

    def cancel(self):
        """Cancel the call. No effect on a timer that has fired or was cancelled before. Not
        a checkpoint.

        Raises:
          RuntimeError: if the wheel belongs to another thread.
        """
        self.wheel.disarm(self)

    def reset(self, delay=None):
        """Restart the timer: make the call ``delay`` seconds from now, instead of when it
        was due. A timer that has fired or was cancelled is armed again. Not a checkpoint.

        Args:
          delay: in seconds, 0 or more; by default that of last time.

        Raises:
          TypeError: if ``delay`` is not a number. Then, as with the other errors, the timer
              is left unchanged.
          ValueError: if ``delay`` is negative, infinite or NaN.
          RuntimeError: if the wheel belongs to a run that has ended, or to another thread.
        """
        cdef double before = self.delay
        if delay is not None:
            self.delay = _seconds("delay", delay)
        try:
            self.wheel.arm(self)
        except BaseException:
            self.delay = before
            raise


@cython.final
cdef class MoveOnAfter:
    """What `TimingWheel.move_on_after` returns."""
    cdef Timers wheel
    cdef double delay
    cdef object scope
    cdef Timer timer

    def __cinit__(self, Timers wheel not None, double delay):
        self.wheel = wheel
        self.delay = delay

    def __enter__(self):
        if self.scope is not None:
            raise RuntimeError("this context manager was already entered")
        self.scope = CancelScope()
        self.timer = self.wheel.new_timer(self.delay, self.scope.cancel)
        try:
            return self.scope.__enter__()
        except BaseException:
            self.timer.cancel()
            raise

    def __exit__(self, kind, value, traceback):
        self.timer.cancel()
        return self.scope.__exit__(kind, value, traceback)
