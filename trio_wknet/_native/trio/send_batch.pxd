# Sends that wait until the tasks of a turn have run. See send_batch.pyx for why.
from libc.stdint cimport uint32_t



cdef class SendBatch:
    cdef list due
    cdef list other             # empty; the two change places
    cdef uint32_t woken         # by the bridge, for this turn: tasks, or about as many
    cdef public uint32_t threshold  # so many are many

    cdef bint is_worthwhile(self) noexcept
    cdef int make_room(self) except -1
    cdef void carry_out(self) noexcept
