"""Awaitables by hand. operation.pxd says what they are.

The life of an operation:

    start     Arguments are checked; `enter` raises Cancelled where Trio would.
    complete  Done without waiting: one schedule point (a shielded checkpoint),
              then the result. Together with `enter` a full checkpoint.
    parked    Waiting, like any task in wait_task_rescheduled. A completion
              calls `wake`; Trio's abort function ends the wait with Cancelled.
    yield     At a schedule point, and has yet to proceed.
    proceed   After either: complete, or park again (a wake may be spurious).

The objects yielded are caught from Trio's public functions, not built here: each
function is run up to its first yield. One caught from wait_task_rescheduled
carries the abort function and may be yielded any number of times.
"""
from cpython.exc cimport PyErr_Fetch, PyErr_GivenExceptionMatches, PyErr_Occurred, PyErr_Restore
from cpython.object cimport PyObject
from cpython.ref cimport Py_XDECREF

import outcome
from trio.lowlevel import (
    Abort,
    cancel_shielded_checkpoint,
    checkpoint_if_cancelled,
    current_task,
    reschedule,
    wait_task_rescheduled,
)


cdef extern from "Python.h":
    enum:
        PYGEN_RETURN
    # Gives -1 with an exception set, PYGEN_RETURN or PYGEN_NEXT.
    int PyIter_Send(object iterator, object value, PyObject **result) except -1
    bint PyTuple_Check(object result)
    bint PyExceptionInstance_Check(object result)
    # Declared without their exceptions: that is what they are called for.
    void PyErr_SetObject(object kind, object value)
    bint PyErr_ExceptionMatches(object kind)


cdef extern from *:
    """
    #define wk_raise_what_is_set() NULL
    """
    object raise_what_is_set "wk_raise_what_is_set"()

cdef extern from *:
    """
    static void wk_set_finalizer(PyObject *type, destructor finalize)
    {
        ((PyTypeObject *)type)->tp_finalize = finalize;
    }
    """
    void set_finalizer "wk_set_finalizer"(object kind, void (*finalize)(PyObject *) noexcept)


# Shared by all wakes, and so never unwrapped: an Outcome may be unwrapped once.
WOKEN = outcome.Value(None)
ABORT_SUCCEEDED = Abort.SUCCEEDED
ABORT_FAILED = Abort.FAILED

cdef object _caught = cancel_shielded_checkpoint()
cdef object SCHEDULE_POINT = _caught.send(None)
_caught.close()
_caught = None


cdef object make_trap(object abort):
    """What a task yields to sleep until it is rescheduled or aborted."""
    waiting = wait_task_rescheduled(abort)
    trap = waiting.send(None)
    waiting.close()
    return trap


cdef class Operation:
    cdef object start(self):
        raise NotImplementedError

    cdef object proceed(self):
        raise NotImplementedError

    cdef void carry_out(self) noexcept:
        pass

    cdef bint tears(self) noexcept:
        return False

    cdef void finish(self) noexcept:
        pass

    cdef void lost(self) noexcept:
        pass

    cdef object enter(self):
        """checkpoint_if_cancelled: None, or what to yield on the way to raising."""
        cdef PyObject *yielded = NULL
        inner = checkpoint_if_cancelled()
        if PyIter_Send(inner, None, &yielded) == PYGEN_RETURN:
            Py_XDECREF(yielded)
            return None
        self.inner = inner
        self.state = RAISING
        trap = <object>yielded
        Py_XDECREF(yielded)
        return trap

    cdef object complete(self, object result):
        """Complete with a schedule point, for an operation that never slept."""
        self.result = result
        self.state = COMPLETING
        return SCHEDULE_POINT

    cdef object fail(self, object failure):
        """The same with an exception."""
        self.failure = failure
        self.state = COMPLETING
        return SCHEDULE_POINT

    cdef object yielding(self):
        """Come to a schedule point, and `proceed` behind it."""
        self.state = YIELDING
        return SCHEDULE_POINT

    cdef object parked(self, object trap):
        self.task = current_task()
        self.state = PARKED
        return trap

    cdef Wake wake(self) noexcept:
        """Reschedule the parked task. Once for each wait: the caller has removed the operation
        from where wakers find it, and puts it back if this returns UNDONE. If memory ran out
        in the middle of Trio's own code, the next try returns HALF_DONE."""
        try:
            reschedule(self.task, WOKEN)
        except MemoryError:
            return UNDONE
        except BaseException as failure:
            self.failure = failure
            return HALF_DONE
        self.task = None
        return WOKEN_UP

    cdef object _step(self, object sent):
        cdef object trap
        if self.state == COMPLETING:
            if self.failure is not None:
                failure, self.failure = self.failure, None
                raise failure
            trap = None
        elif self.state == CREATED:
            trap = self.start()
        elif self.state == PARKED:
            if sent is not WOKEN:
                sent.unwrap()       # raises Cancelled, or KeyboardInterrupt
            trap = self.proceed()
        elif self.state == YIELDING:
            trap = self.proceed()
        elif self.state == RAISING:
            return self.inner.send(sent)
        else:
            raise RuntimeError("cannot reuse already awaited operation")
        if trap is None:
            self.state = DONE
            self.finish()
        return trap

    cdef object resume(self, object sent):
        try:
            return self._step(sent)
        except BaseException:
            self._end()
            raise

    cdef void _end(self) noexcept:
        if self.state != DONE:
            self.state = DONE
            self.inner = None
            self.task = None
            self.finish()

    # --- the coroutine protocol ----------------------------------------------
    # collections.abc.Coroutine in full, so that nursery.start_soon takes it.

    def __await__(self):
        # Otherwise a second task, perhaps of another thread's run, would continue it.
        if self.state != CREATED and self.state != DONE:
            raise RuntimeError("operation is being awaited already")
        return self

    def __iter__(self):
        return self

    def __next__(self):
        trap = self.resume(None)
        if trap is None:
            self._return()
            return raise_what_is_set()
        return trap

    def send(self, value):
        trap = self.resume(value)
        if trap is None:
            self._return()
            return raise_what_is_set()
        return trap

    cdef void _return(self) noexcept:
        """Set StopIteration with the result. The result may be bytes that were taken out of
        their stream already. So if there is no memory for the exception, `lost` is called. (Up
        to Python 3.11 the exception is not made here.)"""
        result = self.result
        if PyTuple_Check(result) or PyExceptionInstance_Check(result):
            result = (result,)      # or it would be the exception's arguments, or itself
        PyErr_SetObject(StopIteration, result)
        if PyErr_ExceptionMatches(MemoryError):
            self.lost()

    def throw(self, kind, value=None, traceback=None):
        if self.state == RAISING:
            return self.inner.throw(kind if value is None else value)
        self._end()
        if value is None:
            value = kind() if isinstance(kind, type) else kind
        raise value if traceback is None else value.with_traceback(traceback)

    def close(self):
        self._end()


# What signal handlers raise: that of Ctrl-C, and those that end a program.
cdef tuple RAISED_BY_SIGNALS = (KeyboardInterrupt, SystemExit)


cdef void _finalize(PyObject *operation) noexcept:
    """Warn of an operation that was never awaited. But not if a signal handler raised
    between the call and its await, so that the operation is thrown away: a coroutine
    would have begun by then.

    Such an exception is set while the frame lets go of what it holds. Cython puts it
    aside for `__del__` and `__dealloc__`, hence a bare finalizer, which subclasses
    inherit."""
    cdef PyObject *kind = <PyObject *>PyErr_Occurred()
    cdef PyObject *value
    cdef PyObject *traceback
    if (<Operation>operation).state != CREATED:
        return
    if kind != NULL and PyErr_GivenExceptionMatches(<object>kind, RAISED_BY_SIGNALS):
        return
    PyErr_Fetch(&kind, &value, &traceback)
    _warn_never_awaited(type(<object>operation).__name__)
    PyErr_Restore(kind, value, traceback)


cdef void _warn_never_awaited(str name) noexcept:
    import warnings
    warnings.warn(f"operation {name!r} was never awaited", RuntimeWarning)


set_finalizer(Operation, _finalize)
