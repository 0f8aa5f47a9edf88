# A listener's admission, as the Trio side holds it.
from libc.stdint cimport uint32_t

from ..reactor.admission cimport Admission, Reason
from ..reactor.slot cimport Slot
from .core cimport Core


cdef class NativeAdmission:
    cdef Admission *table

    cdef Reason enter(self, Core core, Slot *slot, bytes peer) noexcept
    cdef void begin(self, Core core, Slot *slot, uint32_t size) noexcept
    cdef list refused(self)
