"""WebSocket's decoder: from the peer's bytes to messages. websocket.pxd has its rules.

The steps: a header, judged as soon as its bytes are there; its payload, unmasked as it is
copied to where it will stay; the frame's end. Whatever is forbidden ends the connection with
a code, in `decoder_fail`.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset, strlen

from ..base.atomics cimport wk_u32_load_relaxed, wk_u32_store
from ..base.linux cimport iovec
from ..base.mask cimport wk_mask
from ..base.utf8 cimport wk_utf8_check
from .pool cimport Pool
from .ring cimport (
    Ring, ring_clear, ring_free_spans, ring_len, ring_patch, ring_reserve, ring_retract,
    ring_write,
)

cdef extern from *:
    """
    /* What a ping of the reactor's own says; other pings of ours have a number behind it. */
    static const unsigned char KEEP_ALIVE[] = "trio-wknet";
    """
    const unsigned char KEEP_ALIVE[11]

cdef enum:
    FRAMES_AT_ONCE = 1024       # of a visit to the lock
    AHEAD = 16                  # times what has come, up to
    MAX_AHEAD = 1 << 20         # bytes
    FINAL = 0x80
    RESERVED = 0x70
    MASKED = 0x80


# --- the end -------------------------------------------------------------------------------


cdef bint is_close_code(uint32_t code) noexcept nogil:
    """Whether a close frame may hold it (7.4, and IANA's registry)."""
    if code >= 3000:
        return code < 5000
    return 1000 <= code <= 1014 and not 1004 <= code <= 1006


cdef bint decoder_say_goodbye(Decoder *ws, uint32_t code, const void *reason,
                              size_t size) noexcept nogil:
    """Have our close frame sent, under the lock. False if one was already, or will be."""
    if wk_u32_load_relaxed(&ws.goodbye):
        return False
    wk_u32_store(&ws.goodbye, True)
    ws.goodbye_size = 0
    if code != NO_CODE:
        ws.goodbye_payload[0] = <unsigned char>(code >> 8)
        ws.goodbye_payload[1] = <unsigned char>code
        memcpy(ws.goodbye_payload + 2, reason, size)
        ws.goodbye_size = <uint8_t>(2 + size)
    ws.scan.answer_due |= CLOSE_DUE
    return True


cdef void _drop_unfinished(Decoder *ws, Ring *ring, Pool *pool) noexcept nogil:
    if ws.opened:
        ring_retract(ring, pool, RECORD_HEADER + ws.size)
        ws.opened = False


cdef void decoder_fail(Decoder *ws, Ring *ring, Pool *pool, CloseCode code,
                       const char *reason) noexcept nogil:
    """The peer has done what the protocol forbids, or more than is allowed; under the lock."""
    cdef size_t size = strlen(reason)
    _drop_unfinished(ws, ring, pool)
    ws.over = FAILED
    ws.close_code = code
    ws.reason_size = <uint8_t>size
    memcpy(ws.reason, reason, size)
    decoder_say_goodbye(ws, code, reason, size)


cdef void _take_close(Decoder *ws, Ring *ring, Pool *pool) noexcept nogil:
    """The peer's close frame is there. It is answered with its code."""
    cdef uint32_t code = NO_CODE
    cdef uint32_t size = ws.control_size
    cdef wk_utf8 utf8
    memset(&utf8, 0, sizeof(utf8))
    if size == 1:
        decoder_fail(ws, ring, pool, PROTOCOL_ERROR, "close frame of 1 byte")
        return
    if size:
        code = <uint32_t>ws.control[0] << 8 | ws.control[1]
        if not is_close_code(code):
            decoder_fail(ws, ring, pool, PROTOCOL_ERROR, "invalid close code")
            return
        if not wk_utf8_check(&utf8, ws.control + 2, size - 2) or utf8.missing:
            decoder_fail(ws, ring, pool, BAD_TEXT, "close reason is not UTF-8")
            return
        ws.reason_size = <uint8_t>(size - 2)
        memcpy(ws.reason, ws.control + 2, size - 2)
    _drop_unfinished(ws, ring, pool)
    ws.over = CLOSED_BY_PEER
    ws.close_code = <uint16_t>code
    ws.scan.answer_due &= ~<uint8_t>(PING_DUE | KEEP_ALIVE_DUE)
    decoder_say_goodbye(ws, code, NULL, 0)


# --- pings ---------------------------------------------------------------------------------


cdef bint _take_pong(Decoder *ws) noexcept nogil:
    """Whether it answers a ping of ours."""
    cdef Ping *ping = ws.pings
    while ping != NULL:
        if (ping.sent and ping.number > ws.confirmed and ping.size == ws.control_size
                and memcmp(ping.payload, ws.control, ping.size) == 0):
            ws.confirmed = ping.number
            return True
        ping = ping.next
    return False


cdef void _take_control(Decoder *ws, Ring *ring, Pool *pool, bint *news) noexcept nogil:
    if ws.opcode == CLOSING:
        _take_close(ws, ring, pool)
    elif ws.opcode == PONG:
        news[0] = _take_pong(ws) or news[0]
    elif not wk_u32_load_relaxed(&ws.goodbye):
        ws.pong_size = ws.control_size
        memcpy(ws.pong, ws.control, ws.control_size)
        ws.scan.answer_due |= PONG_DUE


# --- headers -------------------------------------------------------------------------------


cdef inline const char *_refusal(Decoder *ws, const unsigned char *header,
                                 uint32_t n) noexcept nogil:
    """What forbids a header of which `n` bytes, 1 or more, are there; NULL: nothing yet."""
    cdef uint8_t opcode = header[0] & 0x0F
    cdef uint8_t reserved = header[0] & RESERVED
    if reserved and (reserved != COMPRESSED or not ws.may_compress
                     or not TEXT <= opcode <= BINARY):
        return "reserved bits are set"
    if opcode >= CLOSING:
        if opcode > PONG:
            return "reserved opcode"
        if not header[0] & FINAL:
            return "fragmented control frame"
        if n > 1 and header[1] & 0x7F > MAX_CONTROL:
            return "control frame of more than 125 bytes"
    elif opcode > BINARY:
        return "reserved opcode"
    elif opcode == CONTINUATION and not ws.kind:
        return "continuation of no message"
    elif opcode != CONTINUATION and ws.kind:
        return "message inside a fragmented message"
    if n > 1 and (header[1] & MASKED != 0) == ws.client:
        return "masked frame" if ws.client else "frame is not masked"
    return NULL


cdef inline uint32_t _header_size(const unsigned char *header) noexcept nogil:
    """By its first two bytes."""
    cdef uint32_t length = header[1] & 0x7F
    return (2 + (0 if length < 126 else 2 if length == 126 else 8)
            + (4 if header[1] & MASKED else 0))


cdef inline bint _read_length(const unsigned char *header, uint64_t *length) noexcept nogil:
    """False if a shorter form would have done, or it has more than 63 bits."""
    cdef uint64_t n = header[1] & 0x7F
    cdef int i
    if n == 126:
        n = <uint64_t>header[2] << 8 | header[3]
        if n < 126:
            return False
    elif n == 127:
        n = 0
        for i in range(8):
            n = n << 8 | header[2 + i]
        if n < 65536 or n >> 63:
            return False
    length[0] = n
    return True


cdef inline void _begin_frame(Decoder *ws, Ring *ring, Pool *pool, const unsigned char *header,
                              uint32_t size) noexcept nogil:
    """A header is there, whole."""
    cdef uint64_t length = 0
    if not _read_length(header, &length):
        decoder_fail(ws, ring, pool, PROTOCOL_ERROR, "length is not in its shortest form")
        return
    ws.opcode = header[0] & 0x0F
    ws.final = header[0] & FINAL
    if ws.opcode >= CLOSING:
        ws.control_size = <uint8_t>length
    else:
        if ws.opcode != CONTINUATION:
            ws.kind = ws.opcode
            ws.compressed = (header[0] & COMPRESSED) != 0
            ws.size = 0
            ws.fragments = 0
            memset(&ws.utf8, 0, sizeof(ws.utf8))
        ws.fragments += 1
        if length > ws.max_message - ws.size:
            decoder_fail(ws, ring, pool, TOO_BIG, "message is too big")
            return
        if ws.fragments > ws.max_fragments:
            decoder_fail(ws, ring, pool, TOO_BIG, "message has too many fragments")
            return
    if not ws.client:
        memcpy(ws.key, header + size - 4, 4)
    ws.left = <uint32_t>length
    ws.done = 0
    ws.in_payload = True


cdef inline uint32_t _take_header(Decoder *ws, Ring *ring, Pool *pool,
                                  const unsigned char *data, uint32_t n) noexcept nogil:
    """Read a header, which begins here, or of which some bytes came before. How many of these
    bytes, 1 or more, belong to it."""
    cdef const unsigned char *header = data
    cdef const char *refusal
    cdef uint32_t taken = 0
    cdef uint32_t there = n
    cdef uint32_t size
    if ws.header_size:
        taken = min(n, <uint32_t>MAX_HEADER - ws.header_size)
        memcpy(ws.header + ws.header_size, data, taken)
        header = ws.header
        there = ws.header_size + taken
    refusal = _refusal(ws, header, there)
    if refusal != NULL:
        decoder_fail(ws, ring, pool, PROTOCOL_ERROR, refusal)
        return n
    size = _header_size(header) if there > 1 else <uint32_t>MAX_HEADER
    if there < size:
        if not ws.header_size:
            memcpy(ws.header, data, n)
        ws.header_size = <uint8_t>there
        return n
    _begin_frame(ws, ring, pool, header, size)
    taken = size - ws.header_size
    ws.header_size = 0
    return taken


# --- payloads ------------------------------------------------------------------------------


cdef inline uint32_t _ahead(Decoder *ws, uint32_t come) noexcept nogil:
    """Room to take behind what has come of a message."""
    return min(ws.left, max(come, min(AHEAD * come, <uint32_t>MAX_AHEAD)))


cdef inline bint _open_record(Decoder *ws, Ring *ring, Pool *pool, uint32_t n) noexcept nogil:
    """Begin a record, with room for the first `n` bytes. Its size is what this frame says,
    which is not the last word if others follow."""
    cdef Record record
    if not ring_reserve(ring, pool, RECORD_HEADER + n, _ahead(ws, n)):
        return False
    memset(&record, 0, sizeof(record))
    record.size = ws.left
    record.kind = ws.kind
    record.compressed = ws.compressed
    ring_write(ring, pool, &record, RECORD_HEADER)
    ws.opened = True
    return True


cdef inline bint _append(Decoder *ws, Ring *ring, Pool *pool, const unsigned char *data,
                         uint32_t n) noexcept nogil:
    """Add payload to the message. False without memory. Bytes that are in no message are
    refused text by now, or nothing."""
    cdef iovec spans[2]
    cdef int count, i
    cdef uint32_t at = 0
    if not ws.opened and not _open_record(ws, ring, pool, n):
        return False
    if n == 0:
        return True
    if not ring_reserve(ring, pool, n, _ahead(ws, ws.size + n)):
        return False
    count = ring_free_spans(ring, spans, n)
    for i in range(count):
        if ws.client:
            memcpy(spans[i].iov_base, data + at, spans[i].iov_len)
        else:
            wk_mask(<unsigned char *>spans[i].iov_base, data + at, spans[i].iov_len, ws.key,
                    ws.done + at)
        if ws.kind == TEXT and not ws.compressed and not wk_utf8_check(
                &ws.utf8, <unsigned char *>spans[i].iov_base, spans[i].iov_len):
            decoder_fail(ws, ring, pool, BAD_TEXT, "text is not UTF-8")
            return True
        at += <uint32_t>spans[i].iov_len
    ring.tail += n
    return True


cdef inline void _end_message(Decoder *ws, Ring *ring, Pool *pool) noexcept nogil:
    if ws.utf8.missing:
        decoder_fail(ws, ring, pool, BAD_TEXT, "text is not UTF-8")
        return
    ws.kind = 0
    if not ws.opened:
        return
    ws.opened = False
    ws.whole += 1
    if ws.fragments > 1:
        ring_patch(ring, ring_len(ring) - RECORD_HEADER - ws.size, &ws.size, sizeof(ws.size))


cdef inline void _take_control_bytes(Decoder *ws, const unsigned char *data,
                                     uint32_t n) noexcept nogil:
    if ws.client:
        memcpy(ws.control + ws.done, data, n)
    else:
        wk_mask(ws.control + ws.done, data, n, ws.key, ws.done)


cdef uint32_t decoder_feed(Decoder *ws, Ring *ring, Pool *pool, const unsigned char *data,
                           uint32_t n, bint *news, bint *no_memory) noexcept nogil:
    """Decode bytes, under the lock. How many of them: fewer than `n` for the sake of others
    who want it, or without memory; then the stream has a hole in it. `news` if a ping was
    answered, or the connection is over."""
    cdef uint32_t at = 0
    cdef uint32_t piece
    cdef int frames = FRAMES_AT_ONCE
    if ws.over:
        return n
    while at < n and not ws.over:
        if not ws.in_payload:
            if frames == 0:
                return at
            frames -= 1
            at += _take_header(ws, ring, pool, data + at, n - at)
            if not ws.in_payload:
                continue
        piece = min(ws.left, n - at)
        if ws.opcode >= CLOSING:
            _take_control_bytes(ws, data + at, piece)
        elif not ws.discards:
            if not _append(ws, ring, pool, data + at, piece):
                no_memory[0] = True
                return at
            if ws.over:
                break
        at += piece
        ws.left -= piece
        ws.done += piece
        if ws.opcode < CLOSING:
            ws.size += piece
        if ws.left == 0:
            ws.in_payload = False
            if ws.opcode >= CLOSING:
                _take_control(ws, ring, pool, news)
            elif ws.final:
                _end_message(ws, ring, pool)
    if ws.over:
        news[0] = True
        return n
    return at


cdef void decoder_discard(Decoder *ws, Ring *ring, Pool *pool) noexcept nogil:
    """Drop all messages, under the lock, and those that are still to come."""
    ws.discards = True
    ws.whole = 0
    ws.opened = False
    memset(&ws.utf8, 0, sizeof(ws.utf8))
    ring_clear(ring, pool)


# --- what is sent --------------------------------------------------------------------------


cdef uint32_t put_header(unsigned char *out, uint8_t opcode, uint64_t size,
                         const unsigned char *key) noexcept nogil:
    """Write the header of a frame that is a whole message, masked with a key if there is one.
    How long it is, at most MAX_HEADER."""
    cdef uint8_t masked = MASKED if key != NULL else 0
    cdef uint32_t n = 2
    cdef int i
    out[0] = FINAL | opcode
    if size < 126:
        out[1] = masked | <uint8_t>size
    elif size < 65536:
        out[1] = masked | 126
        out[2] = <unsigned char>(size >> 8)
        out[3] = <unsigned char>size
        n = 4
    else:
        out[1] = masked | 127
        for i in range(8):
            out[2 + i] = <unsigned char>(size >> (56 - 8 * i))
        n = 10
    if key != NULL:
        memcpy(out + n, key, 4)
        n += 4
    return n


cdef uint32_t _put_control(Decoder *ws, unsigned char *out, Opcode opcode,
                           const unsigned char *payload, uint32_t size,
                           const unsigned char *key) noexcept nogil:
    cdef uint32_t n
    if not ws.client:
        n = put_header(out, opcode, size, NULL)
        memcpy(out + n, payload, size)
        return n + size
    n = put_header(out, opcode, size, key)
    wk_mask(out + n, payload, size, key, 0)
    return n + size


cdef uint32_t decoder_answer(Decoder *ws, unsigned char *out, const unsigned char *key,
                             Due *what, uint64_t *number) noexcept nogil:
    """Write the next frame that is due, of at most MAX_ANSWER bytes, under the lock; a client's
    is masked with the key. Its size; 0 if none is due. It is due until `decoder_answered`:
    the Trio side, which looks at that as it lets go of the sending side, must not miss what
    could not be queued meanwhile. A ping is known by its number, as Trio may free it."""
    cdef Ping *ping = ws.pings
    if ws.scan.answer_due & PONG_DUE:
        what[0] = PONG_DUE
        return _put_control(ws, out, PONG, ws.pong, ws.pong_size, key)
    if ws.scan.answer_due & PING_DUE:
        what[0] = PING_DUE
        while ping != NULL and ping.sent:
            ping = ping.next
        if ping != NULL:
            number[0] = ping.number
            return _put_control(ws, out, PING, ping.payload, ping.size, key)
        ws.scan.answer_due &= ~<uint8_t>PING_DUE
    if ws.scan.answer_due & KEEP_ALIVE_DUE:
        what[0] = KEEP_ALIVE_DUE
        return _put_control(ws, out, PING, KEEP_ALIVE, sizeof(KEEP_ALIVE) - 1, key)
    if ws.scan.answer_due & CLOSE_DUE:
        what[0] = CLOSE_DUE
        return _put_control(ws, out, CLOSING, ws.goodbye_payload, ws.goodbye_size, key)
    return 0


cdef void decoder_answered(Decoder *ws, Due what, uint64_t number) noexcept nogil:
    """It is queued, or sent, or never will be. Under the lock."""
    cdef Ping *ping = ws.pings
    if what == PING_DUE:
        while ping != NULL and ping.number != number:
            ping = ping.next
        if ping != NULL:
            ping.sent = True
        return
    if what == PONG_DUE:
        ws.pings_answered += 1
    ws.scan.answer_due &= ~<uint8_t>what
