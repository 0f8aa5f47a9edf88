"""A listener's admission, as the Trio side holds it: made from the options, asked by the PROXY
gate, and read for statistics. What decides is reactor/admission.pyx."""
cimport cython
from libc.stdint cimport uint32_t, uint64_t

from ..base.atomics cimport wk_u64_add, wk_u64_load_relaxed
from ..reactor.admission cimport (
    ADMITTED, EXEMPT, MAX_PER_ADDRESS, REASONS, Admission, Peer, Reason, admission_name,
    admission_new, admission_unref, peer_of_bytes,
)
from ..reactor.places cimport place_wake
from ..reactor.slot cimport Slot
from .core cimport Core


@cython.final
cdef class NativeAdmission:
    """One listener's.

    Args:
      most: connections; 0: no limit.
      most_per_address: the same, for each address.
      interval: nanoseconds between two connections; 0: no limit.
      burst: nanoseconds of that which may be used at once, at least one interval.
      waits: leave what cannot come in to the kernel, instead of refusing it.
      gated: addresses are known behind a PROXY gate only.
      trusted: networks, as pairs of bytes: 16 of the prefix and of the mask.
    """

    def __cinit__(
        self, uint32_t most, uint32_t most_per_address, uint64_t interval, uint64_t burst,
        bint waits, bint gated, list trusted,
    ):
        cdef uint32_t i
        self.table = admission_new(<uint32_t>len(trusted))
        if self.table == NULL:
            raise MemoryError
        self.table.most = most
        self.table.most_per_address = most_per_address
        self.table.interval = interval
        self.table.burst = burst
        # Without such a limit there is nothing to wait for.
        self.table.waits = waits and (most or interval)
        self.table.gated = gated
        for i, (prefix, mask) in enumerate(trusted):
            peer_of_bytes(<bytes?>prefix, &self.table.trusted[i].prefix)
            peer_of_bytes(<bytes?>mask, &self.table.trusted[i].mask)
        self.table.network_count = <uint32_t>len(trusted)

    def __dealloc__(self):
        if self.table != NULL:
            admission_unref(self.table)

    cdef Reason enter(self, Core core, Slot *slot, bytes peer) noexcept:
        """The gate knows now who a connection's peer is: the 16 bytes of its address, or None if
        it has none. Returns ADMITTED or EXEMPT if it may come in. The Trio side holds the
        connection, so its place stays."""
        cdef Peer address
        cdef Reason reason
        cdef bint wanted = False
        if peer is None or slot.door.place == NULL:
            return ADMITTED
        peer_of_bytes(peer, &address)
        reason = admission_name(slot.door.place, &address, &wanted)
        if wanted:
            place_wake(core.hub)
        if reason != ADMITTED and reason != EXEMPT:
            wk_u64_add(&self.table.refused[<int>reason], 1)
            wk_u64_add(&core.hub.refused[<int>reason], 1)
        return reason

    cdef list refused(self):
        """Counts of refused connections, by Reason."""
        cdef int i
        return [wk_u64_load_relaxed(&self.table.refused[i]) for i in range(REASONS)]
