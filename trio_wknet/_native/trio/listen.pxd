from libc.stdint cimport uint32_t, uint64_t

from ..reactor.slot cimport Slot
from .admission cimport NativeAdmission
from .core cimport Endpoint, Server
from .handed cimport Handed
from .operation cimport Operation
from .proxy_gate cimport ProxyGate
from .totals cimport Totals


cdef class NativeListener(Endpoint):
    cdef Operation acceptor     # parked in accept
    cdef Server server          # serves connections in event mode, instead
    cdef ProxyGate gate         # what connections must pass first; None: nothing
    cdef NativeAdmission admission  # None: anybody may come in
    cdef uint64_t refused       # the gate's counter, as it was last seen
    cdef object trap
    cdef list ports             # addresses of their slots
    cdef bint closing           # the ports have been asked to close
    cdef object on_ended        # to be called when they have
    cdef Totals totals
    cdef Handed handed          # the open connections that `accept` returned
    cdef uint32_t accepts       # calls of `accept` in progress
    cdef uint64_t accepted      # counters, as they were last seen
    cdef uint32_t waiting
    cdef uint32_t starved
    cdef uint32_t shortages

    cdef list take(self, Py_ssize_t most)
    cdef object take_one(self)
    cdef Slot *take_slots(self, Py_ssize_t most, bint hold=*) except? NULL
    cdef int ensure_free(self) except -1
    cdef void hand_to(self, Server server)
    cdef void wake_acceptor(self) noexcept
    cdef void resume_ports(self) noexcept
    cdef uint32_t resume_mark(self) noexcept
    cdef uint32_t too_many(self) noexcept
    cdef void on_gate(self) noexcept
    cdef void end_shortage(self) noexcept
    cdef void remove_file(self) noexcept
    cdef void tell_if_ended(self) noexcept
    cdef void tell_ended(self) noexcept
    cdef void count(self) noexcept
