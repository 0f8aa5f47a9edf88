from libc.stdint cimport uint32_t, uint64_t

from .hub cimport Hub

cdef Hub *hub_new(
    uint32_t reactors, bint in_loop, bint round_robin, uint64_t most
) noexcept nogil
cdef void hub_free(Hub *hub) noexcept nogil
