from libc.stdint cimport uint32_t, uint64_t

from ..reactor.broadcast cimport BroadcastJob, Payload
from ..reactor.handles cimport HandleSet
from ..reactor.slot cimport Slot
from .core cimport Audience, Core


# A form of messages, and the members that get it.
cdef class Form:
    cdef object key             # a CompiledFraming, or a name (group.pyx)
    cdef HandleSet *members     # by reactor
    cdef uint32_t reactors
    cdef uint32_t count

    cdef bint discard(self, uint64_t handle) noexcept
    cdef bint has(self, uint64_t handle) noexcept
    cdef Payload *write(self, const char *data, size_t n, bint text) except NULL
    cdef bint is_framed(self) noexcept


# A broadcast that was begun, and what came of it. The base of `Broadcast`.
cdef class Broadcasting:
    cdef uint32_t sent
    cdef uint32_t queued
    cdef uint32_t skipped
    cdef uint32_t closed
    cdef uint32_t jobs              # that are not done
    cdef size_t size                # bytes that it holds until all are
    cdef bint closes_slow
    cdef object on_done             # called once, when all are

    cdef void count(self, BroadcastJob *job) noexcept


# The base of `Group`.
cdef class Members(Audience):
    cdef Core core
    cdef dict forms                 # by key
    cdef uint32_t count
    cdef size_t pending_bytes       # bytes of broadcasts that are not done
    cdef size_t max_pending
    cdef object on_room             # called when some are
    cdef object on_empty            # called when the last member has left; or None

    cdef tuple _look_at(self, object member)
    cdef int _put(self, Slot *slot, uint64_t handle, object key) except -1
    cdef uint32_t _reactor_of(self, Slot *slot) noexcept
    cdef int _note_membership(self, uint64_t handle) except -1
    cdef Form _form_of(self, uint64_t handle)
    cdef void _discard_from(self, Form form, uint64_t handle) noexcept
    cdef void _forget(self, uint64_t handle) noexcept
    cdef uint64_t _handle_of(self, object member) except? 0
    cdef int _give(self, Broadcasting broadcast, const char *data, size_t n, bint text,
                   list excluded) except -1
    cdef int _prepare(self, Broadcasting broadcast, BroadcastJob **jobs, Form form,
                      const char *data, size_t n, bint text, list excluded) except -1
    cdef BroadcastJob *_new_job(self, Broadcasting broadcast, Form form, uint32_t reactor,
                                Payload *payload, list excluded) except NULL
    cdef void _close_slow(self, BroadcastJob *job) noexcept
    cdef void _close_one(self, Slot *slot) noexcept
