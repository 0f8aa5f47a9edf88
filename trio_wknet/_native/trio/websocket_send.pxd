from .websocket cimport WebSocketReceive

cdef const unsigned char *_next_key() except NULL


cdef class WebSocketSend(WebSocketReceive):
    cdef bint said_goodbye(self) noexcept
    cdef int ensure_may_send(self) except -1
    cdef object sending(self, object messages, bint single)
    cdef void count_sent(self, Py_ssize_t n, size_t size) noexcept
    cdef int send_now(self, object messages, bint single) except -1
    cdef int put(self, const char *data, Py_ssize_t n) except -1
