from .send_file cimport FileHalf


cdef class Rated(FileHalf):
    cdef object rates(self)
