from libc.stdint cimport uint32_t

from ..reactor.framing cimport FrameFound, FrameScan
from ..reactor.slot cimport Slot
from .frame_parts cimport FrameParts
from .receive cimport Receive
from .send cimport SendHalf

cdef enum:
    MAX_FRAMES = 1 << 30

# What is to be done where the first frame is not READY.
cdef enum Step:
    STEP_WAIT = 0
    STEP_MOVE = 1               # a part of it out of the ring
    STEP_END = 2                # more will not come


cdef class Frames(FrameParts):
    cdef int ensure_linked(self) except -1
    cdef bint nothing_yet(self) noexcept
    cdef object take_one(self, bint wait)
    cdef list take_many(self, Py_ssize_t most, bint wait)
    cdef uint32_t cut_many(self, list frames, Py_ssize_t most, FrameFound *found) except? 1
    cdef object cut(self, Slot *slot, uint32_t base)
    cdef void count(self, uint32_t n) noexcept
    cdef bint go_on(self, FrameFound found, Step step, bint wait, bint *direct) except -1
    cdef object end(self)
    cdef int _succeed(self, SendHalf conn) except -1
    cdef int _add_large(self, list frames) except -1
    cdef int _ensure_turn(self) except -1


cdef Step frame_step(Slot *slot, bint wait, bint direct, bint *resume) noexcept
cdef object frame_refusal(FrameScan *scan, FrameFound found)
cdef tuple frame_counts(FrameScan *scan)


cdef class ReceiveFrames(Receive):
    cdef Frames frames
