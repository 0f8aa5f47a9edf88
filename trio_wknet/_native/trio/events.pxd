from cpython.object cimport PyObject
from libc.stdint cimport uint32_t

from ..reactor.slot cimport Slot
from .core cimport Core, Server
from .listen cimport NativeListener
from .stream cimport Stream

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(object o)
    Py_ssize_t references "Py_REFCNT"(PyObject *o)      # of one that may be going

cdef extern from *:
    """
    static inline int wk_has_weakrefs(PyObject *o)
    {
        Py_ssize_t offset = Py_TYPE(o)->tp_weaklistoffset;
        return offset != 0 && *(PyObject **)((char *)o + offset) != NULL;
    }
    """
    bint has_weakrefs "wk_has_weakrefs"(object o)

# What a look at a connection found.
cdef enum Found:
    NOTHING = 0         # and the reactor will tell when that changes
    UNSEEN = 1          # bytes that no callback has seen
    OVER = 2            # the peer has ended, and every byte was seen


cdef class EventServer(Server):
    cdef Core core
    cdef NativeListener listener
    cdef object nursery
    cdef object base            # serve_events' context, as callbacks find it
    cdef object shared          # a copy for the next callback; None: it was kept
    cdef dict contexts          # of connections with one of their own, by handle
    cdef object on_data
    cdef object on_connect
    cdef object on_close
    cdef object on_error
    cdef object tell            # to be called when there is nothing left to serve
    cdef dict running           # cancel scopes of async callbacks, by connection
    cdef Stream spare           # an object that nobody has, for the next callback
    cdef Stream first_gone      # let go of while no callback of theirs ran: a list
    cdef Stream last_gone
    cdef object failure         # to end with, where there was no memory for its task
    cdef bint ending            # nothing but on_close is called any more
    cdef readonly Py_ssize_t open
    cdef readonly bint accepting

    cdef void accept_pending(self) except *
    cdef void admit_conn(self, Slot *slot) noexcept
    cdef void pump(self, Slot *slot) noexcept
    cdef int look(self, Slot *slot, uint32_t *arrived) noexcept
    cdef void call(self, Slot *slot, object callback) noexcept
    cdef object subject(self, Stream conn)
    cdef void run_callback(self, Stream conn, object callback, object subject,
                           list frames) noexcept
    cdef object shared_context(self)
    cdef object context_of(self, Slot *slot)
    cdef void keep_context(self, Stream conn, object context) noexcept
    cdef void keep_of_task(self, Stream conn) noexcept
    cdef Stream borrow_conn(self, Slot *slot)
    cdef int spawn(self, object runner, Stream conn, object awaitable) except -1
    cdef void callback_done(self, Stream conn) noexcept
    cdef void tell_waiter(self) noexcept
    cdef bint reported(self, Stream conn, object exception) noexcept
    cdef bint report(self, Stream conn, object exception) noexcept
    cdef void end(self, Stream conn, bint dealt_with) noexcept
    cdef void close(self, Slot *slot) noexcept
    cdef void run_on_close(self) noexcept
    cdef void ended(self, Stream conn) noexcept
    cdef object call_on_close(self, Stream conn)
    cdef bint call_last(self, Stream conn) except -1
    cdef void count_down(self) noexcept
    cdef void fail(self, object exception) noexcept
