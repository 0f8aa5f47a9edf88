from .receive cimport ReceiveHalf


cdef class ReceiveSized(ReceiveHalf):
    pass
