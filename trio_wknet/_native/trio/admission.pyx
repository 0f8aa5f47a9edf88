"""A listener's admission, as the Trio side holds it: made from the options, asked by the PROXY
gate, and read for statistics. What decides is reactor/admission.pyx."""
cimport cython
from libc.stdint cimport uint32_t, uint64_t

from ..base.atomics cimport wk_u64_add, wk_u64_load_relaxed, wk_u64_store
from ..reactor.admission cimport (
    ADMITTED, EXEMPT, REASONS, Peer, Place, Reason, admission_name, admission_new,
    admission_unref, peer_of_bytes,
)
from ..reactor.places cimport place_wake
from ..reactor.slot cimport WATCH, Slot
from .core cimport Core


@cython.final
cdef class NativeAdmission:
    """One listener's.

    Args:
      most: connections; 0: no limit.
      most_per_address: the same, for each address.
      interval: nanoseconds between two connections; 0: no limit.
      burst: nanoseconds of that which may be used at once, at least one interval.
      first_byte: nanoseconds within which it must come; 0: no limit.
      min_rate: bytes a second; 0: no limit.
      half_window: nanoseconds, over which that is judged.
      waits: leave what cannot come in to the kernel, instead of refusing it.
      gated: addresses are known behind a PROXY gate only.
      trusted: networks, as pairs of bytes: 16 of the prefix and of the mask.
    """

    def __cinit__(
        self, uint32_t most, uint32_t most_per_address, uint64_t interval, uint64_t burst,
        uint64_t first_byte, uint32_t min_rate, uint64_t half_window, bint waits, bint gated,
        list trusted,
    ):
        cdef uint32_t i
        self.table = admission_new(<uint32_t>len(trusted))
        if self.table == NULL:
            raise MemoryError
        self.table.most = most
        self.table.most_per_address = most_per_address
        self.table.interval = interval
        self.table.burst = burst
        self.table.first_byte_ns = first_byte
        self.table.min_rate = min_rate
        self.table.half_window = half_window
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

    cdef void begin(self, Core core, Slot *slot, uint32_t size) noexcept:
        """A connection's header, of `size` bytes, has come: from here on its pace counts, unless
        it is exempt."""
        cdef Place *place = slot.door.place
        if place == NULL or not place.counted:
            return
        if not (self.table.first_byte_ns or self.table.min_rate):
            return
        place.before = size
        wk_u64_store(&place.since, max(core.now(), <uint64_t>1))
        core.post(slot, WATCH)

    cdef list refused(self):
        """Counts of refused connections, by Reason."""
        cdef int i
        return [wk_u64_load_relaxed(&self.table.refused[i]) for i in range(<int>REASONS)]
