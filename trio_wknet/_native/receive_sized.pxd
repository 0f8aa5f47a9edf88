from trio_wknet._native.receive cimport ReceiveHalf


cdef class ReceiveSized(ReceiveHalf):
    pass
