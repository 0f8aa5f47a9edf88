from ..reactor.slot cimport Slot
from .events cimport EventServer
from .framed cimport CompiledFraming
from .frames cimport Frames
from .stream cimport Stream


cdef class FrameServer(EventServer):
    cdef object framing         # as the application gave it
    cdef CompiledFraming compiled
    cdef object make_channel    # called without arguments, gives a channel over nothing
    cdef Frames spare_channel   # that nobody has, nor its connection's object

    cdef Frames borrow_channel(self, Slot *slot)
    cdef void give_back(self, Frames channel) noexcept
    cdef Frames channel_of(self, Stream conn)
    cdef void end_frames(self, Stream conn, object failure) noexcept
