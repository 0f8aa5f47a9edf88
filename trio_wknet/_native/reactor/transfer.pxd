from libc.stdint cimport int32_t, uint32_t, uint64_t

from .hub cimport Reactor
from .slot cimport Slot

cdef void on_readable(Reactor *reactor, Slot *slot, uint32_t events) noexcept nogil
cdef void on_writable(Reactor *reactor, Slot *slot) noexcept nogil
cdef void look_at_socket(Reactor *reactor, Slot *slot) noexcept nogil
cdef void resume_reading(Reactor *reactor, Slot *slot) noexcept nogil
cdef void watch_rate(Reactor *reactor, Slot *slot) noexcept nogil
cdef void flush(Reactor *reactor, Slot *slot) noexcept nogil
cdef void end_of_input(Reactor *reactor, Slot *slot, int32_t error) noexcept nogil
cdef void cannot_flush(Reactor *reactor, Slot *slot, int32_t error) noexcept nogil
cdef void note_received(Reactor *reactor, Slot *slot) noexcept nogil
cdef uint64_t stamp(Reactor *reactor, Slot *slot) noexcept nogil
cdef void note_pending_error(Slot *slot) noexcept nogil
