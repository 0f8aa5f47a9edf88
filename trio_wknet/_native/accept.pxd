from trio_wknet._native.conn cimport Slot
from trio_wknet._native.reactor cimport Reactor

cdef void on_acceptable(Reactor *reactor, Slot *port) noexcept nogil
cdef void accept_rest(Reactor *reactor, Slot *port) noexcept nogil
cdef void rearm(Reactor *reactor, Slot *port) noexcept nogil
cdef bint watch(Reactor *reactor, Slot *slot) noexcept nogil
