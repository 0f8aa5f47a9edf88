"""Who may come in: counts, a rate, and networks that are trusted. admission.pxd has the
rules.

The rate is a token bucket, kept as one time (GCRA): each connection moves `paid` by an
interval, and it may be ahead of the clock by `burst` at most. So a refill needs no timer.

Counts by address are in a hash table with chains. Its hash is keyed: a peer who has many
addresses must not be able to choose such as fall into one bucket.
"""
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from ..base.atomics cimport wk_u32_add, wk_u32_store_relaxed, wk_u32_sub
from ..base.linux cimport (
    getrandom, pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock,
    pthread_mutex_unlock,
)
from ..base.memory cimport FOR_PLACES, FOR_SETUP, memory_free, memory_zeroed

cdef extern from *:
    """
    #include <endian.h>
    #include <netinet/in.h>
    #include <string.h>
    #include <sys/socket.h>

    static inline uint64_t wk_be64(const void *bytes)
    {
        uint64_t word;
        memcpy(&word, bytes, sizeof(word));
        return be64toh(word);
    }

    /* The 4 bytes of an IPv4 address, mapped to IPv6: the lower half. */
    static inline uint64_t wk_mapped(const void *bytes)
    {
        uint32_t word;
        memcpy(&word, bytes, sizeof(word));
        return 0xffff00000000ull | be32toh(word);
    }

    static inline int wk_is_ipv4(const void *name)
    {
        return ((const struct sockaddr *)name)->sa_family == AF_INET;
    }

    static inline int wk_is_ipv6(const void *name)
    {
        return ((const struct sockaddr *)name)->sa_family == AF_INET6;
    }

    static inline const void *wk_ipv4(const void *name)
    {
        return &((const struct sockaddr_in *)name)->sin_addr;
    }

    static inline const void *wk_ipv6(const void *name)
    {
        return &((const struct sockaddr_in6 *)name)->sin6_addr;
    }

    /* Both halves of a product of 128 bits, folded. */
    static inline uint64_t wk_fold(uint64_t one, uint64_t other)
    {
        unsigned __int128 product = (unsigned __int128)one * other;
        return (uint64_t)product ^ (uint64_t)(product >> 64);
    }
    """
    uint64_t be64 "wk_be64"(const void *bytes) noexcept nogil
    uint64_t mapped "wk_mapped"(const void *bytes) noexcept nogil
    bint is_ipv4 "wk_is_ipv4"(const void *name) noexcept nogil
    bint is_ipv6 "wk_is_ipv6"(const void *name) noexcept nogil
    const void *ipv4_of "wk_ipv4"(const void *name) noexcept nogil
    const void *ipv6_of "wk_ipv6"(const void *name) noexcept nogil
    uint64_t fold "wk_fold"(uint64_t one, uint64_t other) noexcept nogil

cdef extern from "<stdint.h>" nogil:
    const uint64_t NEVER "UINT64_MAX"

cdef enum:
    FEWEST_BUCKETS = 64

cdef uint64_t MAPPED = 0xffff


# --- making and freeing ---------------------------------------------------------------


cdef Admission *admission_new(uint32_t networks) noexcept nogil:
    """One without limits, with room for so many trusted networks, and one reference. NULL
    without memory."""
    cdef Admission *admission = <Admission *>memory_zeroed(FOR_SETUP, 1, sizeof(Admission))
    cdef ssize_t ignored
    if admission == NULL:
        return NULL
    admission.trusted = <Network *>memory_zeroed(FOR_SETUP, max(networks, 1), sizeof(Network))
    admission.buckets = <AddressCount **>memory_zeroed(
        FOR_PLACES, FEWEST_BUCKETS, sizeof(AddressCount *)
    )
    admission.bucket_count = FEWEST_BUCKETS
    pthread_mutex_init(&admission.lock, NULL)
    wk_u32_store_relaxed(&admission.refs, 1)
    if admission.trusted == NULL or admission.buckets == NULL:
        admission_unref(admission)
        return NULL
    # It cannot fail for so few bytes; if it did, the hash would be predictable, and no more.
    ignored = getrandom(&admission.seeds, sizeof(admission.seeds), 0)
    return admission


cdef void admission_ref(Admission *admission) noexcept nogil:
    wk_u32_add(&admission.refs, 1)


cdef void admission_unref(Admission *admission) noexcept nogil:
    """The last one frees it: then it has no places, and so no counts of addresses."""
    if wk_u32_sub(&admission.refs, 1) > 1:
        return
    pthread_mutex_destroy(&admission.lock)
    memory_free(FOR_SETUP, admission.trusted)
    memory_free(FOR_PLACES, admission.buckets)
    memory_free(FOR_SETUP, admission)


cdef Place *place_new() noexcept nogil:
    cdef Place *place = <Place *>memory_zeroed(FOR_PLACES, 1, sizeof(Place))
    if place != NULL:
        place.look_at = NEVER
    return place


cdef bint place_prepare(Place *place, Admission *admission) noexcept nogil:
    """Have all the memory that this admission may need for a place; False if there is none."""
    if admission.most_per_address and place.spare == NULL:
        place.spare = <AddressCount *>memory_zeroed(FOR_PLACES, 1, sizeof(AddressCount))
        return place.spare != NULL
    return True


cdef void place_free(Place *place) noexcept nogil:
    if place != NULL:
        memory_free(FOR_PLACES, place.spare)
        memory_free(FOR_PLACES, place)


# --- addresses ------------------------------------------------------------------------


cdef bint peer_of(const void *name, Peer *peer) noexcept nogil:
    """The address in a socket's name; False if that has none, as on a unix socket."""
    if is_ipv4(name):
        peer.high = 0
        peer.low = mapped(ipv4_of(name))
    elif is_ipv6(name):
        peer_of_bytes(<const unsigned char *>ipv6_of(name), peer)
    else:
        return False
    return True


cdef void peer_of_bytes(const unsigned char *address, Peer *peer) noexcept nogil:
    """The same, of an IPv6 address's 16 bytes."""
    peer.high = be64(address)
    peer.low = be64(address + 8)


cdef bint _trusts(Admission *admission, Peer *peer) noexcept nogil:
    cdef uint32_t i
    cdef Network *network
    for i in range(admission.network_count):
        network = &admission.trusted[i]
        if (peer.high & network.mask.high == network.prefix.high
                and peer.low & network.mask.low == network.prefix.low):
            return True
    return False


cdef Peer _key(Peer *peer) noexcept nogil:
    """What counts as one address: an IPv4 address, or a /64 of IPv6, whose hosts choose the
    rest themselves."""
    cdef Peer key
    cdef bint is_mapped = peer.high == 0 and peer.low >> 32 == MAPPED
    key.high = peer.high
    key.low = peer.low if is_mapped else 0
    return key


# --- counts by address, under the lock --------------------------------------------------


cdef AddressCount **_bucket(Admission *admission, Peer *key) noexcept nogil:
    cdef uint64_t number = fold(key.high ^ admission.seeds[0], key.low ^ admission.seeds[1])
    return &admission.buckets[number & (admission.bucket_count - 1)]


cdef AddressCount *_find(Admission *admission, Peer *key) noexcept nogil:
    cdef AddressCount *found = _bucket(admission, key)[0]
    while found != NULL and not (found.key.high == key.high and found.key.low == key.low):
        found = found.following
    return found


cdef void _hang(Admission *admission, AddressCount *count) noexcept nogil:
    cdef AddressCount **bucket = _bucket(admission, &count.key)
    count.following = bucket[0]
    bucket[0] = count


cdef void _spread(Admission *admission) noexcept nogil:
    """Twice as many buckets, if there is memory; else the chains become longer."""
    cdef uint32_t i, before = admission.bucket_count
    cdef AddressCount **old = admission.buckets
    cdef AddressCount **new = <AddressCount **>memory_zeroed(
        FOR_PLACES, 2 * before, sizeof(AddressCount *)
    )
    cdef AddressCount *count
    cdef AddressCount *following
    if new == NULL:
        return
    admission.buckets = new
    admission.bucket_count = 2 * before
    for i in range(before):
        count = old[i]
        while count != NULL:
            following = count.following
            _hang(admission, count)
            count = following
    memory_free(FOR_PLACES, old)


cdef Reason _join(Admission *admission, Place *place, Peer *peer) noexcept nogil:
    """Count a place by its address, unless that has as many as it may."""
    cdef Peer key = _key(peer)
    cdef AddressCount *count
    if admission.most_per_address == 0:
        return ADMITTED
    count = _find(admission, &key)
    if count == NULL:
        count = place.spare
        place.spare = NULL
        memset(count, 0, sizeof(AddressCount))
        count.key = key
        if admission.addresses >= admission.bucket_count:
            _spread(admission)
        _hang(admission, count)
        admission.addresses += 1
    elif count.count >= admission.most_per_address:
        return MAX_PER_ADDRESS
    count.count += 1
    place.address = count
    return ADMITTED


cdef void _part(Admission *admission, Place *place) noexcept nogil:
    cdef AddressCount *count = place.address
    cdef AddressCount **link
    place.address = NULL
    if count == NULL:
        return
    count.count -= 1
    if count.count:
        return
    link = _bucket(admission, &count.key)
    while link[0] != count:
        link = &link[0].following
    link[0] = count.following
    admission.addresses -= 1
    memory_free(FOR_PLACES, count)


# --- the count of all, and the rate, under the lock ---------------------------------------


cdef Reason _room(Admission *admission, uint64_t now) noexcept nogil:
    """Whether one more may come now; if not, why."""
    if admission.most and admission.count >= admission.most:
        return MAX_CONNECTIONS
    if admission.paid > now + (admission.burst - admission.interval):
        return ACCEPT_RATE
    return ADMITTED


cdef void _count_up(Admission *admission, uint64_t now) noexcept nogil:
    admission.count += 1
    if admission.interval:
        admission.paid = max(admission.paid, now) + admission.interval


cdef void _count_down(Admission *admission) noexcept nogil:
    """One came that does not count after all."""
    admission.count -= 1
    admission.paid -= admission.interval


# --- coming and going ---------------------------------------------------------------------


cdef bint admission_reserve(
    Admission *admission, uint64_t now, wk_u32 *waiting, uint64_t *again
) noexcept nogil:
    """Before a port accepts: take a place for what may be there. If there is none, the port
    waits from here on: until `again`, or until a place is left.

    No wake is lost: that there is no place is seen, and that a port waits is noted, under one
    lock. So who leaves a place later sees that it does. `waiting` counts the ports of its
    reactor that do."""
    cdef Reason reason
    pthread_mutex_lock(&admission.lock)
    reason = _room(admission, now)
    if reason == ADMITTED:
        _count_up(admission, now)
    else:
        admission.waiting += 1
        wk_u32_add(waiting, 1)
        again[0] = NEVER
        if reason == ACCEPT_RATE:
            again[0] = admission.paid - (admission.burst - admission.interval)
    pthread_mutex_unlock(&admission.lock)
    return reason == ADMITTED


cdef bint admission_give_back(Admission *admission) noexcept nogil:
    """Nobody was there for the place that was reserved. True if ports wait for it: another
    reactor's may have found none meanwhile."""
    cdef bint wanted
    pthread_mutex_lock(&admission.lock)
    _count_down(admission)
    wanted = admission.waiting > 0
    pthread_mutex_unlock(&admission.lock)
    return wanted


cdef void admission_wait_no_more(Admission *admission, wk_u32 *waiting) noexcept nogil:
    pthread_mutex_lock(&admission.lock)
    admission.waiting -= 1
    wk_u32_sub(waiting, 1)
    pthread_mutex_unlock(&admission.lock)


cdef Reason admission_enter(
    Admission *admission, Place *place, Peer *peer, uint64_t now, bint *room
) noexcept nogil:
    """Somebody was accepted, from `peer`; NULL if that is not known, or has no address. If it
    may come in (ADMITTED), the place is its own. If not, or if it is EXEMPT, the place stays
    spare, and `room` says whether ports wait for what was reserved."""
    cdef Reason reason = ADMITTED
    cdef bint exempt = peer != NULL and _trusts(admission, peer)
    pthread_mutex_lock(&admission.lock)
    if not exempt and not admission.waits:
        reason = _room(admission, now)
    if not exempt and reason == ADMITTED and peer != NULL:
        reason = _join(admission, place, peer)
    if exempt:
        reason = EXEMPT
    if admission.waits and reason != ADMITTED:
        _count_down(admission)
        room[0] = admission.waiting > 0
    elif reason == ADMITTED and not admission.waits:
        _count_up(admission, now)
    place.counted = reason == ADMITTED
    pthread_mutex_unlock(&admission.lock)
    if reason == ADMITTED:
        place.admission = admission
        admission_ref(admission)
    return reason


cdef Reason admission_name(Place *place, Peer *peer, bint *room) noexcept nogil:
    """Behind the gate: the peer is known now. The place stays its own, whatever the answer is;
    if that is EXEMPT, it counts no longer, and `room` says whether ports wait."""
    cdef Admission *admission = place.admission
    cdef Reason reason
    cdef bint exempt = _trusts(admission, peer)
    pthread_mutex_lock(&admission.lock)
    if exempt:
        reason = EXEMPT
        admission.count -= 1
        place.counted = False
        room[0] = admission.waiting > 0
    else:
        reason = _join(admission, place, peer)
    pthread_mutex_unlock(&admission.lock)
    return reason


cdef bint admission_leave(Place *place) noexcept nogil:
    """The connection is over: free its place. True if ports wait for it."""
    cdef Admission *admission = place.admission
    cdef bint wanted
    pthread_mutex_lock(&admission.lock)
    _part(admission, place)
    admission.count -= place.counted
    wanted = place.counted and admission.waiting > 0
    pthread_mutex_unlock(&admission.lock)
    place_free(place)
    admission_unref(admission)
    return wanted
