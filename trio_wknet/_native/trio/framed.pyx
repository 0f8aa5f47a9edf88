"""A framing as the scanners know it, and linking its state to a connection's slot.

The state of a scan is memory of its own, so that a connection without frames pays for a
pointer. Its slot refers to it, and so do the channel that was made for it and, in event mode,
the object of a connection that was let go of; the last of them frees it. The Trio side alone
counts, under the GIL. The reactor looks at it under the slot's lock, through the slot, so
unlinking under the lock is enough: from there on the reactor knows nothing of it.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint32_t

from ..base.linux cimport pthread_mutex_lock, pthread_mutex_unlock
from ..base.memory cimport FOR_SCANS, memory_free, memory_zeroed
from ..reactor.budget cimport budget_collect
from ..reactor.framing cimport MESSAGES, FrameScan
from ..reactor.hub cimport Hub, Reactor
from ..reactor.slot cimport Slot
from ..reactor.websocket cimport Decoder


@cython.final
cdef class CompiledFraming:
    """The parameters of a framing, as numbers. They have been checked."""

    def __cinit__(self, kind, size=0, little_endian=False, offset=0, adjustment=0, strip=0,
                  bytes delimiter=b"", keep=False, max_frame=0):
        self.delimiter = delimiter
        self.spec.kind = kind
        self.spec.size = size
        self.spec.little_endian = little_endian
        self.spec.offset = offset
        self.spec.adjustment = adjustment
        self.spec.strip = strip
        self.spec.delimiter = <const unsigned char *>PyBytes_AS_STRING(delimiter)
        self.spec.delimiter_length = <uint32_t>len(delimiter)
        self.spec.keep = keep
        self.spec.max_frame = max_frame


cdef int framed_link(Slot *slot, CompiledFraming framing) except -1:
    """Have a connection's bytes looked at as frames."""
    cdef FrameScan *scan = <FrameScan *>memory_zeroed(FOR_SCANS, 1, sizeof(FrameScan))
    if scan == NULL:
        raise MemoryError
    scan.spec = &framing.spec
    scan.framing = <void *>framing
    Py_INCREF(framing)
    scan.users = 1
    scan.hub = (<Reactor *>slot.reactor).hub
    pthread_mutex_lock(&slot.lock)
    slot.by_kind.scan = scan
    pthread_mutex_unlock(&slot.lock)
    return 0


cdef void framed_unlink(Slot *slot) noexcept:
    """The connection is framed no more, or let go of. What was moved out of its ring for an
    unfinished frame goes."""
    cdef FrameScan *scan = slot.by_kind.scan
    pthread_mutex_lock(&slot.lock)
    slot.by_kind.scan = NULL
    pthread_mutex_unlock(&slot.lock)
    framed_forget_part(scan)
    framed_drop(scan)


cdef void framed_forget_part(FrameScan *scan) noexcept:
    """Let go of the memory of an unfinished frame. There is none once the connection is let go
    of, and so none when its engine is closed."""
    cdef void *partial = scan.partial
    cdef void *head = scan.head
    if partial != NULL:
        budget_collect(<Hub *>scan.hub, -PyBytes_GET_SIZE(<object>partial))
    scan.partial = NULL
    scan.head = NULL
    scan.filled = 0
    if partial != NULL:
        Py_DECREF(<object>partial)
    if head != NULL:
        Py_DECREF(<object>head)


cdef void framed_drop(FrameScan *scan) noexcept:
    """Let go of a reference to a scan."""
    cdef void *agreed = NULL
    scan.users -= 1
    if scan.users == 0:
        if scan.spec.kind == MESSAGES:
            agreed = (<Decoder *>scan).agreed
        framed_forget_part(scan)
        Py_DECREF(<object>scan.framing)
        memory_free(FOR_SCANS, scan)
        if agreed != NULL:
            Py_DECREF(<object>agreed)
