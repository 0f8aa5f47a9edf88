from .bucket cimport Rate
from .hub cimport Reactor
from .slot cimport Slot

cdef Rate *rate_new() noexcept nogil
cdef void rate_free(Slot *slot) noexcept nogil
cdef void rate_changed(Reactor *reactor, Slot *slot) noexcept nogil
cdef void rate_look(Reactor *reactor, Slot *slot) noexcept nogil
cdef void rate_excuse(Reactor *reactor, Slot *slot) noexcept nogil
