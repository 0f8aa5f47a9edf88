from ..reactor.framing cimport FrameScan
from ..reactor.pool cimport Pool
from ..reactor.ring cimport Ring
from .framed cimport CompiledFraming


cdef class StreamFrames:
    cdef CompiledFraming compiled
    cdef Pool *pool
    cdef Ring ring              # what was received, and not taken
    cdef FrameScan scan

    cdef bytes cut(self)
    cdef list each(self, object frames)
    cdef bytes checked(self, object frame, str name)
