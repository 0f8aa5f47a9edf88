"""The scanners of frames. Their rules stand in framing.pxd."""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from .ring cimport Ring, ring_at, ring_find, ring_len

cdef enum:
    # Lengths of more bits than this are not allowed, whatever is added to them; with others
    # no sum overflows.
    LENGTH_BITS = 32


cdef FrameFound frame_scan(FrameScan *scan, Ring *ring, uint32_t base) noexcept nogil:
    """Look at the first frame that was not taken, which begins at `base`, or has been moved
    out of the ring up to there."""
    cdef uint32_t held = ring_len(ring) - base
    cdef FrameFound found = FRAME_READY
    if scan.failure:
        return <FrameFound>scan.failure
    if scan.total == 0:
        found = _find_end(scan, ring, base, held)
        if found == FRAME_WAIT:
            return FRAME_WAIT
        if found != FRAME_READY:
            scan.failure = found
            return found
    if scan.total - scan.moved <= held:
        return FRAME_READY
    scan.needed = scan.total - scan.moved
    return FRAME_WAIT


cdef inline FrameFound _find_end(FrameScan *scan, Ring *ring, uint32_t base,
                                 uint32_t held) noexcept nogil:
    """Find out how long the frame is. READY if that is known now; the frame need not be
    there."""
    if scan.spec.kind == LENGTH_PREFIXED:
        return _read_length(scan, ring, base, held)
    if scan.spec.kind == DELIMITED:
        return _find_delimiter(scan, ring, base, held)
    if scan.spec.kind == VARINT_PREFIXED:
        return _read_varint(scan, ring, base, held)
    scan.total = scan.spec.max_frame
    scan.skip = 0
    scan.tail = 0
    return FRAME_READY


cdef inline FrameFound _read_length(FrameScan *scan, Ring *ring, uint32_t base,
                                    uint32_t held) noexcept nogil:
    cdef const FramingSpec *spec = scan.spec
    cdef uint32_t header = spec.offset + spec.size
    cdef uint32_t first = base + spec.offset
    cdef uint64_t length = 0
    cdef uint32_t i
    if held < header:
        scan.needed = header
        return FRAME_WAIT
    for i in range(spec.size):
        if spec.little_endian:
            length |= <uint64_t>ring_at(ring, first + i) << (8 * i)
        else:
            length = length << 8 | ring_at(ring, first + i)
    return _announce(scan, header, length, spec.strip)


cdef inline FrameFound _read_varint(FrameScan *scan, Ring *ring, uint32_t base,
                                    uint32_t held) noexcept nogil:
    """Protobuf's: seven bits in each byte, the lowest first, of 64 in all."""
    cdef uint64_t length = 0
    cdef uint32_t i
    cdef unsigned char byte
    for i in range(<uint32_t>MAX_VARINT):
        if i == held:
            scan.needed = i + 1
            return FRAME_WAIT
        byte = ring_at(ring, base + i)
        if i == MAX_VARINT - 1 and byte > 1:
            break
        length |= <uint64_t>(byte & 0x7f) << (7 * i)
        if byte < 0x80:
            return _announce(scan, i + 1, length, i + 1)
    return FRAME_MALFORMED


cdef inline FrameFound _announce(FrameScan *scan, uint32_t header, uint64_t length,
                                 uint32_t strip) noexcept nogil:
    """Judge an announced length: behind the header follow so many bytes, by the adjustment
    more or fewer, and all but `strip` are delivered."""
    cdef int64_t total
    scan.announced = length
    scan.knows_announced = True
    if length >> LENGTH_BITS:
        return FRAME_TOO_LONG
    total = <int64_t>length + scan.spec.adjustment + header
    if total < header:
        return FRAME_MALFORMED
    # What is stripped is in every frame: in the header, or in what the adjustment adds.
    if total - strip > scan.spec.max_frame:
        return FRAME_TOO_LONG
    scan.total = <uint32_t>total
    scan.skip = strip
    scan.tail = 0
    return FRAME_READY


cdef inline FrameFound _find_delimiter(FrameScan *scan, Ring *ring, uint32_t base,
                                       uint32_t held) noexcept nogil:
    """What was searched stays searched, less what may begin a delimiter."""
    cdef const FramingSpec *spec = scan.spec
    cdef uint32_t length = spec.delimiter_length
    cdef uint32_t allowed = spec.max_frame - (length if spec.keep else 0)
    cdef long at = -1
    if scan.looked + length <= held:
        at = ring_find(ring, spec.delimiter, length, base + scan.looked)
        scan.looked = held - length + 1 if at < 0 else <uint32_t>at - base
    if scan.moved + scan.looked > allowed:
        return FRAME_TOO_LONG
    if at < 0:
        scan.needed = scan.looked + length
        return FRAME_WAIT
    scan.total = scan.moved + scan.looked + length
    scan.skip = 0
    scan.tail = 0 if spec.keep else length
    return FRAME_READY


cdef uint32_t frame_least(const FramingSpec *spec, uint32_t inbound) noexcept nogil:
    """How many bytes the ring holds at least before an unfinished frame leaves it: what the
    connection's bound allows, up to 1 MiB, or what cannot be looked at in parts."""
    cdef uint32_t least = min(inbound, <uint32_t>MAX_WHOLE_FRAME)
    if spec.kind == LENGTH_PREFIXED:
        return max(least, max(spec.offset + spec.size, spec.strip))
    if spec.kind == VARINT_PREFIXED:
        return max(least, <uint32_t>MAX_VARINT)
    return max(least, spec.delimiter_length)


cdef uint32_t frame_lowat(FrameScan *scan, Ring *ring, uint32_t inbound) noexcept nogil:
    """How many bytes the ring must hold for the Trio side to have something to do: a frame
    to take, or a refused one, or a part that must leave the ring. 0: it has."""
    cdef uint32_t least
    if frame_scan(scan, ring, 0) != FRAME_WAIT:
        return 0
    least = frame_least(scan.spec, inbound)
    return 0 if ring_len(ring) >= least else min(scan.needed, least)
