from .conn cimport Load

# How a run ended. STOPPED and up say that it ended before its time.
cdef enum Ending:
    BY_DURATION
    BY_COUNT
    STOPPED
    UNREACHABLE  # no connection could be opened
    SERVER_GONE  # all connections were lost, or (churn) nothing succeeds any more


cdef int run_loop(Load *load, int timer) noexcept nogil
