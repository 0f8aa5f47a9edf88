# A framing as the scanners know it, and its state in a connection's slot.
from ..reactor.framing cimport FrameScan, FramingSpec
from ..reactor.slot cimport Slot


cdef class CompiledFraming:
    cdef FramingSpec spec
    cdef bytes delimiter


cdef int framed_link(Slot *slot, CompiledFraming framing) except -1
cdef void framed_unlink(Slot *slot) noexcept
cdef void framed_forget_part(FrameScan *scan) noexcept
cdef void framed_drop(FrameScan *scan) noexcept
