# Who may come in at a listener, and how many: what `Admission` of the Python side asks for,
# for one listener. It knows nothing of slots; places.pyx does what it says.
#
# All reactors of an engine share it, and Trio's thread behind a PROXY gate. What changes is
# under one lock, which is taken once when a connection comes and once when it goes, for some
# 50 ns, and never for a message: so the counts are exact, and no reactor waits for another
# one's system call.
#
# A Place is one connection's. It is made before the connection is accepted, with memory for
# the count of its address, so that what was accepted needs none. It belongs to the reactor
# until the connection gets its slot, and is left exactly once, when the reactor closes the
# descriptor: every way in which a connection ends goes through there (close_now).
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ..base.atomics cimport wk_u32, wk_u64
from ..base.linux cimport pthread_mutex_t

# Why a connection was not let in, or was ended. The Python side has the names, in this order.
cdef enum Reason:
    ADMITTED = 0
    MAX_CONNECTIONS = 1
    MAX_PER_ADDRESS = 2
    ACCEPT_RATE = 3
    PROXY_HEADER = 4        # counted by the gate
    FIRST_BYTE_TIME = 5     # of those that were let in (pace.pyx)
    MIN_RATE = 6
    BUDGET = 7              # of the engine, not of a listener (budget.pxd)
    REASONS = 8
    EXEMPT = 9              # let in, and not counted

# An address of 128 bits; that of IPv4 is mapped.
cdef struct Peer:
    uint64_t high
    uint64_t low

cdef struct Network:
    Peer prefix
    Peer mask

# The connections from an address: of IPv6, from a /64.
cdef struct AddressCount:
    Peer key
    uint32_t count
    AddressCount *following # in its bucket

cdef struct Admission:
    wk_u32 refs             # its ports, its places, and the Trio side
    # const
    uint32_t most           # connections; 0: no limit. So are the two below
    uint32_t most_per_address
    uint64_t interval       # ns between two connections
    uint64_t burst          # ns: so many of these intervals may be used at once
    bint waits              # for room, before it accepts; else it refuses
    uint64_t first_byte_ns  # within which the first byte must come; 0: whenever it likes
    uint32_t min_rate       # bytes a second; 0: no limit
    uint64_t half_window    # ns, over which that is judged
    bint gated              # an address is known only behind the gate
    uint32_t network_count
    Network *trusted
    uint64_t seeds[2]       # of the hash: peers choose their addresses
    # lock
    pthread_mutex_t lock
    uint32_t count
    uint64_t paid           # ns: the time up to which the rate is used up
    uint32_t waiting        # ports that wait for room
    AddressCount **buckets
    uint32_t bucket_count   # a power of 2
    uint32_t addresses
    # statistics
    wk_u64 refused[REASONS] # those that were ended included

cdef struct Place:
    Admission *admission    # NULL while it is spare
    AddressCount *spare     # memory for the count of its address
    # written once, before `since`, which publishes it: by the reactor that accepts, or by the
    # gate when the header has come
    uint64_t before         # bytes that have come before that: the header's
    wk_u64 since            # ns: from when on its pace counts; 0: not yet
    # the reactor's (pace.pyx)
    uint64_t look_at        # ns: the next look; NEVER: none
    uint64_t judged_at      # ns: the last look at the pace, and what was counted then:
    uint64_t received       # bytes
    uint64_t sent
    uint64_t acked          # by the peer
    uint64_t owed           # `acked` when all has arrived that was to be sent; 0: nothing was
    uint8_t slow_in         # looks in a row that found it too slow to send
    uint8_t slow_out        # and to read
    uint8_t ended_for       # slot's lock: the Reason for which it was ended, or 0
    # under the admission's lock
    AddressCount *address   # NULL: not counted by address
    bint counted

cdef Admission *admission_new(uint32_t networks) noexcept nogil
cdef void admission_ref(Admission *admission) noexcept nogil
cdef void admission_unref(Admission *admission) noexcept nogil
cdef bint admission_reserve(
    Admission *admission, uint64_t now, wk_u32 *waiting, uint64_t *again
) noexcept nogil
cdef bint admission_give_back(Admission *admission) noexcept nogil
cdef void admission_wait_no_more(Admission *admission, wk_u32 *waiting) noexcept nogil
cdef Reason admission_enter(
    Admission *admission, Place *place, Peer *peer, uint64_t now, bint *room
) noexcept nogil
cdef Reason admission_name(Place *place, Peer *peer, bint *room) noexcept nogil
cdef bint admission_leave(Place *place) noexcept nogil

cdef Place *place_new() noexcept nogil
cdef bint place_prepare(Place *place, Admission *admission) noexcept nogil
cdef void place_free(Place *place) noexcept nogil

cdef bint peer_of(const void *name, Peer *peer) noexcept nogil
cdef void peer_of_bytes(const unsigned char *address, Peer *peer) noexcept nogil
