# files.h says what each function does.
from libc.stdint cimport int64_t

cdef extern from "base/files.h" nogil:
    ssize_t wk_read_resident(int fd, void *out, size_t n, int64_t offset)
    bint wk_all_cached(int fd, int64_t offset, int64_t n)
    bint wk_in_memory(int fd)
    int64_t wk_file_size(int fd)
    ssize_t wk_sendfile(int sock, int fd, int64_t offset, size_t n)
    ssize_t wk_splice_to_socket(int pipe, int sock, size_t n)
