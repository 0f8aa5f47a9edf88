from .hub cimport Reactor
from .slot cimport Slot

cdef void on_acceptable(Reactor *reactor, Slot *port) noexcept nogil
cdef void close_port(Reactor *reactor, Slot *port) noexcept nogil
cdef void rearm(Reactor *reactor, Slot *port) noexcept nogil
cdef void watch(Reactor *reactor, Slot *slot) noexcept nogil
cdef void retry(Reactor *reactor, Slot *slot) noexcept nogil
