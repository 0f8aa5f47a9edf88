
from .hub cimport Reactor
from .slot cimport Slot

cdef void close_gracefully(Reactor *reactor, Slot *slot) noexcept nogil
cdef void close_now(Reactor *reactor, Slot *slot) noexcept nogil
cdef void reset(Reactor *reactor, Slot *slot) noexcept nogil
cdef void leave_listener(Reactor *reactor, Slot *listener) noexcept nogil
cdef void forget(Reactor *reactor, Slot *slot) noexcept nogil
cdef void on_closing_event(Reactor *reactor, Slot *slot) noexcept nogil
cdef void on_closing_timeout(Reactor *reactor, Slot *slot) noexcept nogil
cdef void release(Reactor *reactor, Slot *slot) noexcept nogil
