from .send_vector cimport VectorHalf


cdef class FileHalf(VectorHalf):
    pass
