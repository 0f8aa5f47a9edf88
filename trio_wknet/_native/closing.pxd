from libc.stdint cimport uint32_t

from trio_wknet._native.conn cimport Slot
from trio_wknet._native.reactor cimport Reactor

cdef void close_gracefully(Reactor *reactor, Slot *slot) noexcept nogil
cdef void close_now(Reactor *reactor, Slot *slot) noexcept nogil
cdef void reset(Reactor *reactor, Slot *slot) noexcept nogil
cdef void leave_listener(Reactor *reactor, Slot *listener) noexcept nogil
cdef void forget(Reactor *reactor, Slot *slot) noexcept nogil
cdef void on_closing_event(Reactor *reactor, Slot *slot) noexcept nogil
cdef void on_closing_timeout(Reactor *reactor, Slot *slot) noexcept nogil
cdef void release(Reactor *reactor, Slot *slot) noexcept nogil
