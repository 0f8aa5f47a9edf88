"""Receiving a WebSocket's messages: all that are whole, in one visit.

The reactor decodes (reactor/websocket.pxd), and wakes Trio for whole messages. Small ones are
taken under the lock, as many as AT_ONCE bytes hold, each copied once, from the ring to the
object that is delivered. A larger one is copied outside of it: its bytes stay where they are
until this side takes them out, and its block is kept by a reference. Text was checked by the
reactor.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.ref cimport Py_INCREF
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from ..base.atomics cimport wk_u32_add, wk_u32_load
from ..base.linux cimport ENOMEM, pthread_mutex_lock, pthread_mutex_unlock
from ..base.memory cimport (
    FOR_MESSAGES, FOR_PINGS, FOR_SCANS, memory_free, memory_take, memory_zeroed,
)
from ..reactor.framing cimport MESSAGES
from ..reactor.idle cimport idle_ms
from ..reactor.pool cimport Block, block_data, pool_drop
from ..reactor.ring cimport Ring, ring_clear, ring_copy, ring_discard, ring_len, ring_wraps
from ..reactor.sender cimport SHUT, sender_state
from ..reactor.slot cimport ANSWER, RESUME, WATCH, Slot
from ..reactor.websocket cimport (
    BINARY, CLOSE_DUE, CLOSED_BY_PEER, NO_CODE, PING_DUE,
    RECORD_HEADER, TEXT, CloseCode, Decoder, Ping, Record, decoder_discard,
    decoder_fail, decoder_feed, decoder_say_goodbye,
)
from .framed cimport CompiledFraming, framed_drop
from .latch cimport Latch
from .receive cimport AT_ONCE, Receive, positive
from .send cimport SendHalf
from .stream cimport broken
from .text cimport text_of

import trio

from trio_wknet._errors import ConnectionClosed, connection_closed
from trio_wknet._websocket.deflate import Unacceptable

cdef enum:
    MESSAGES_AT_ONCE = 256      # that are taken in one visit
    LOST = 1006                 # no close frame came

# Text that wraps in the ring, and is small. Under the GIL.
cdef char _scratch[AT_ONCE]
# What marks a decoder among the scans of frames (framed.pyx).
cdef CompiledFraming _FRAMING = CompiledFraming(MESSAGES)


cdef tuple _goodbye_of(Decoder *ws):
    """What our close frame says, which was the first."""
    cdef unsigned char *payload = ws.goodbye_payload
    if ws.goodbye_size == 0:
        return NO_CODE, "", "local"
    text = PyUnicode_DecodeUTF8(<char *>payload + 2, ws.goodbye_size - 2, NULL)
    return payload[0] << 8 | payload[1], text, "local"


@cython.final
cdef class Agreed:
    """What the handshake has agreed on. It is the connection's: objects come and go."""


# Freeing it takes its connection, so the collector lets that be.
@cython.no_gc_clear
cdef class WebSocketReceive(Observer):

    def __cinit__(self):
        self.latches = []

    def __dealloc__(self):
        if self.ws != NULL:
            self.leave()

    # --- in event mode, one object for many connections ----------------------

    cdef void attach(self, SendHalf conn, Decoder *ws) noexcept:
        """Become the object of a connection, which has none."""
        self.conn = conn
        self.ws = ws
        self.agreed = <Agreed>ws.agreed
        self.inflater = self.agreed.inflater
        self.deflater = self.agreed.deflater
        ws.observer = <void *>self
        ws.scan.users += 1

    cdef void leave(self) noexcept:
        """Be it no longer. Pings that were sent through this object nobody waits for."""
        cdef Decoder *ws = self.ws
        if ws.observer == <void *>self:
            ws.observer = NULL
            self.free_pings(<uint64_t>-1)
        self.ws = NULL
        framed_drop(&ws.scan)

    cdef bint unmarked(self) noexcept:
        """Whether this object differs from a new one only by its connection."""
        return (not self.closing and not self.latches and self.ws.pings == NULL
                and not self.is_undone)

    # --- its begin -----------------------------------------------------------

    def _begin(self, SendHalf conn not None, bint client, uint32_t max_message,
               uint32_t max_fragments, bytes unread not None, inflater, deflater):
        """Have this connection's bytes decoded: first `unread`, which were taken from it, then
        those that it holds, and then what comes. Without an inflater no message may be
        compressed, and without a deflater none is."""
        conn.ensure_usable()
        if conn.slot == NULL:
            raise conn.closed_error()
        conn.ensure_no_receiver()
        conn.ensure_unframed()
        self.ws = <Decoder *>memory_zeroed(FOR_SCANS, 1, sizeof(Decoder))
        if self.ws == NULL:
            raise MemoryError
        self.ws.client = client
        self.ws.max_message = max_message
        self.ws.max_fragments = max_fragments
        self.ws.may_compress = inflater is not None
        self.inflater = inflater
        self.deflater = deflater
        self.ws.observer = <void *>self
        self.ws.scan.spec = &_FRAMING.spec
        self.ws.scan.framing = <void *>_FRAMING
        Py_INCREF(_FRAMING)
        self.ws.scan.users = 2      # the slot, and this
        self.conn = conn
        self.link(unread)

    def _agree(self, request, subprotocol, double close_timeout):
        """Note what the handshake has agreed on, once."""
        cdef Agreed agreed = Agreed.__new__(Agreed)
        agreed.request = request
        agreed.subprotocol = subprotocol
        agreed.close_timeout = close_timeout
        agreed.inflater = self.inflater
        agreed.deflater = self.deflater
        Py_INCREF(agreed)
        self.ws.agreed = <void *>agreed
        self.agreed = agreed

    def _keep_alive(self, double interval, double timeout):
        """Have the reactor send pings to a silent peer, from now on. In seconds."""
        cdef Slot *slot = self.conn.slot
        pthread_mutex_lock(&slot.lock)
        self.ws.ping_ms = idle_ms(<uint64_t>(interval * 1e9))
        self.ws.pong_ms = idle_ms(<uint64_t>(timeout * 1e9))
        self.ws.silent_since = self.conn.core.now()
        pthread_mutex_unlock(&slot.lock)
        self.conn.core.post(slot, WATCH)

    cdef int link(self, bytes unread) except -1:
        """What is in the ring is decoded here, under the lock: from there on the reactor
        decodes what it receives. What that asks to be sent the reactor sends."""
        cdef Slot *slot = self.conn.slot
        cdef Ring raw
        cdef uint32_t first
        cdef bint no_memory, resume, due
        pthread_mutex_lock(&slot.lock)
        raw = slot.inbound
        memset(&slot.inbound, 0, sizeof(Ring))
        slot.by_kind.scan = &self.ws.scan
        no_memory = not self.feed(<const unsigned char *>PyBytes_AS_STRING(unread),
                                  <uint32_t>len(unread))
        if ring_len(&raw) and not no_memory:
            first = raw.head & (raw.block.capacity - 1)
            if ring_wraps(&raw, ring_len(&raw)):
                first = raw.block.capacity - first
                no_memory = not self.feed(
                    block_data(raw.block) + raw.block.capacity - first, first)
                if not no_memory:
                    no_memory = not self.feed(block_data(raw.block), ring_len(&raw) - first)
            else:
                no_memory = not self.feed(block_data(raw.block) + first, ring_len(&raw))
        if no_memory and slot.error == 0:
            slot.error = ENOMEM
        ring_clear(&raw, self.conn.core.hub.pool)
        resume = self.conn.resumes()
        due = self.ws.scan.answer_due != 0
        pthread_mutex_unlock(&slot.lock)
        if resume or due:
            self.conn.core.post(slot, (RESUME if resume else 0) | (ANSWER if due else 0))
        return 0

    cdef bint feed(self, const unsigned char *data, uint32_t n) noexcept:
        cdef bint news = False
        cdef bint no_memory = False
        cdef uint32_t at = 0
        while at < n and not no_memory:
            at += decoder_feed(self.ws, &self.conn.slot.inbound, self.conn.core.hub.pool,
                               data + at, n - at, &news, &no_memory)
        return not no_memory

    cdef bint is_linked(self) noexcept:
        return self.conn.slot != NULL and self.conn.slot.by_kind.scan == &self.ws.scan

    cdef int ensure_ready(self) except -1:
        """Refuse what is asked of it after its end here."""
        if self.closing or not self.is_linked():
            raise self.why_closed(False)
        return 0

    # --- its end -------------------------------------------------------------

    cdef bint is_over(self, Slot *slot, bint wait) noexcept:
        """No whole message is there; under the lock: whether none will come. Else a wake is
        arranged if `wait`."""
        if self.ws.over or slot.ended or slot.error:
            return True
        if wait:
            slot.rcvlowat = 1
            slot.open_ended = False
        return False

    cdef bint is_over_now(self) except -1:
        """Whether it is closed, or broken, or was told to be."""
        return (self.closing or wk_u32_load(&self.ws.goodbye) != 0
                or self._close_state()[0] is not None)

    cdef bint is_told(self, bint wait) noexcept:
        """Whether it is for a server to tell that nothing more comes."""
        return self.ws.scan.served and not wait

    cdef object why_closed(self, bint sending):
        """What is raised when it is over. After it was unlinked nobody writes there."""
        cdef Slot *slot = self.conn.slot if self.is_linked() else NULL
        cdef int32_t error = 0
        cause = None
        if slot != NULL:
            pthread_mutex_lock(&slot.lock)
            error = slot.error or slot.pending_error
            pthread_mutex_unlock(&slot.lock)
            if error:
                cause = broken(error).__cause__
        code, reason, by = self._close_state()
        here = self.closing or slot == NULL
        if by is None:      # it is open to receive from, but `Conn.send_eof` was called
            here = here or sender_state(slot) & SHUT != 0
            by = "local" if here else "network"
        return connection_closed(LOST if code is None else code, reason, by, here, sending, cause)

    def _close_state(self):
        """The code, the reason, and whose they are: of the first close frame; if there was
        none, but the connection is over, 1006; else (None, "", None)."""
        cdef Decoder *ws = self.ws
        cdef Slot *slot = self.conn.slot if self.is_linked() else NULL
        cdef bint ended = True
        cdef int over, code
        if ws.begun_here:
            return _goodbye_of(ws)
        if slot != NULL:
            pthread_mutex_lock(&slot.lock)
        over = ws.over
        code = ws.close_code
        if slot != NULL:
            ended = slot.ended or slot.error
            pthread_mutex_unlock(&slot.lock)
        if over:
            text = PyUnicode_DecodeUTF8(<char *>ws.reason, ws.reason_size, NULL)
            return code, text, "peer" if over == CLOSED_BY_PEER else "local"
        if slot == NULL:
            return LOST, "", "local"
        return (LOST, "", "network") if ended else (None, "", None)

    def _say_goodbye(self, int code, bytes reason not None):
        """Have our close frame sent, if that was not done, and drop all messages. What waits
        for some ends. `code` 1005 is an empty frame."""
        cdef Slot *slot = self.conn.slot
        cdef bint resume
        if self.closing or not self.is_linked():
            self.closing = True
            return
        self.closing = True
        pthread_mutex_lock(&slot.lock)
        if not self.ws.over:
            self.ws.begun_here = decoder_say_goodbye(
                self.ws, code, PyBytes_AS_STRING(reason), len(reason))
        decoder_discard(self.ws, &slot.inbound, self.conn.core.hub.pool)
        slot.rcvlowat = 0
        resume = self.conn.resumes()
        pthread_mutex_unlock(&slot.lock)
        self.conn.core.post(slot, ANSWER | RESUME if resume else ANSWER)
        self.conn.wake_reader()
        self.on_control()

    def _is_closed(self, bint to_the_end):
        """Whether nothing of the closing handshake is to be waited for: nothing more comes, and
        what we had to say was sent. `to_the_end`: the peer ends the stream, too."""
        cdef Slot *slot = self.conn.slot
        cdef bint over
        if not self.is_linked():
            return True
        pthread_mutex_lock(&slot.lock)
        over = slot.ended or (self.ws.over != 0 and not (to_the_end
                                                         and self.ws.over == CLOSED_BY_PEER))
        over = slot.error != 0 or (over and not self.ws.scan.answer_due & CLOSE_DUE)
        pthread_mutex_unlock(&slot.lock)
        return over

    # --- control frames ------------------------------------------------------

    cdef void on_control(self) noexcept:
        """From the drain: a ping was answered, or it is over. Who waits looks."""
        cdef Latch latch
        for latch in self.latches:
            latch.is_set = True
            latch.retry()

    def _add_latch(self, Latch latch not None):
        self.latches.append(latch)

    def _remove_latch(self, Latch latch not None):
        self.latches.remove(latch)

    def _send_ping(self, bytes payload):
        """Have a ping sent; its number. None for one of our own."""
        cdef Slot *slot
        cdef Ping *ping
        cdef Ping **last
        cdef bint used = False
        self.conn.ensure_usable()
        if self._close_state()[0] is not None or wk_u32_load(&self.ws.goodbye):
            raise self.why_closed(True)
        slot = self.conn.slot
        ping = <Ping *>memory_zeroed(FOR_PINGS, 1, sizeof(Ping))
        if ping == NULL:
            raise MemoryError
        ping.number = self.ws.pings_sent + 1
        if payload is None:
            payload = b"trio-wknet %d" % ping.number
        ping.size = <unsigned char>len(payload)
        memcpy(ping.payload, PyBytes_AS_STRING(payload), ping.size)
        pthread_mutex_lock(&slot.lock)
        last = &self.ws.pings
        while last[0] != NULL and not used:
            used = (last[0].size == ping.size
                    and memcmp(last[0].payload, ping.payload, ping.size) == 0)
            last = &last[0].next
        if not used:
            last[0] = ping
            self.ws.scan.answer_due |= PING_DUE
        pthread_mutex_unlock(&slot.lock)
        if used:
            memory_free(FOR_PINGS, ping)
            raise ValueError(f"payload {payload!r} is that of a ping that is not answered yet")
        self.ws.pings_sent += 1
        self.conn.core.post(slot, ANSWER)
        return self.ws.pings_sent

    def _is_answered(self, uint64_t number):
        """Whether the peer has answered that ping, or a later one. Raises if it never will."""
        cdef Slot *slot = self.conn.slot
        cdef uint64_t confirmed
        if not self.is_linked():
            raise self.why_closed(True)
        pthread_mutex_lock(&slot.lock)
        confirmed = self.ws.confirmed
        pthread_mutex_unlock(&slot.lock)
        if confirmed < number and (self.closing or self._close_state()[0] is not None):
            raise self.why_closed(True)
        return confirmed >= number

    def _forget_ping(self, uint64_t number):
        """Nobody waits for it any more. A later one confirms no less for that."""
        cdef Slot *slot = self.conn.slot if self.is_linked() else NULL
        cdef Ping **at
        cdef Ping *ping
        if slot != NULL:
            pthread_mutex_lock(&slot.lock)
        at = &self.ws.pings
        while at[0] != NULL and at[0].number != number:
            at = &at[0].next
        ping = at[0]
        if ping != NULL:
            at[0] = ping.next
        if slot != NULL:
            pthread_mutex_unlock(&slot.lock)
        memory_free(FOR_PINGS, ping)

    cdef void free_pings(self, uint64_t up_to) noexcept:
        """Those that nobody waits for: none can, if this object goes."""
        while self.ws.pings != NULL and self.ws.pings.number <= up_to:
            self._forget_ping(self.ws.pings.number)

    # --- taking --------------------------------------------------------------

    cdef bint nothing_yet(self) noexcept:
        """Whether the connection is alive, and no whole message has come; then a wake is
        arranged."""
        cdef Slot *slot = self.conn.slot
        cdef bint nothing
        if self.closing or not self.is_linked():
            return False
        pthread_mutex_lock(&slot.lock)
        nothing = self.ws.whole == 0 and not self.is_over(slot, True)
        pthread_mutex_unlock(&slot.lock)
        return nothing

    cdef void consume(self, uint32_t n, uint32_t messages) noexcept:
        """Forget whole messages that were copied out, under the lock."""
        cdef Slot *slot = self.conn.slot
        slot.taken += n
        self.ws.whole -= messages
        ring_discard(&slot.inbound, self.conn.core.hub.pool, n)
        self.ws.scan.counters.received += messages
        self.ws.scan.counters.received_bytes += n - messages * RECORD_HEADER

    cdef object take_one(self, bint wait):
        """The first message, or None: then a wake is arranged if `wait`."""
        cdef Slot *slot
        cdef Record record
        cdef bint resume = False
        cdef bint large = False
        cdef bint over = False
        cdef object message = None
        self.ensure_ready()
        slot = self.conn.slot
        pthread_mutex_lock(&slot.lock)
        try:
            if self.ws.whole == 0:
                over = self.is_over(slot, wait)
            else:
                ring_copy(&slot.inbound, &record, RECORD_HEADER, 0)
                large = _is_apart(&record)
                if not large:
                    message = self.cut(slot, &record, 0)
                    self.consume(RECORD_HEADER + record.size, 1)
                    resume = self.conn.resumes()
        finally:
            pthread_mutex_unlock(&slot.lock)
        if resume:
            self.conn.core.post(slot, RESUME)
        if over and not self.is_told(wait):
            raise self.why_closed(False)
        if large:
            message = self.take_large(&record)
        if message is not None:
            self.ws.scan.counters.receive_batches += 1
        return message

    cdef list take_many(self, Py_ssize_t most, bint wait):
        """All whole messages, up to `most`; or None: then a wake is arranged if `wait`. What
        comes while they are taken is left: a fast peer must not keep this from ending."""
        cdef Slot *slot
        cdef Record record
        cdef list messages = []
        cdef uint32_t n = 0
        cdef bint resume, over
        cdef bint more = True
        self.ensure_ready()
        slot = self.conn.slot
        while more:
            resume = False
            over = False
            record = Record(0, 0, 0, 0)
            pthread_mutex_lock(&slot.lock)
            try:
                if not messages:
                    most = min(most, <Py_ssize_t>self.ws.whole)
                    over = most == 0 and self.is_over(slot, wait)
                n = <uint32_t>len(messages)
                self.cut_many(messages, most, &record)
                resume = self.conn.resumes()
                more = len(messages) < most
            finally:
                pthread_mutex_unlock(&slot.lock)
            if resume:
                self.conn.core.post(slot, RESUME)
            if over and not self.is_told(wait):
                raise self.why_closed(False)
            if _is_apart(&record):
                messages.append(None)
                try:
                    messages[len(messages) - 1] = self.take_large(&record)
                except (MemoryError, ConnectionClosed):
                    messages.pop()
                    if not messages:
                        raise
                    break
                more = len(messages) < most
            elif <uint32_t>len(messages) == n:
                break       # without memory for another
        if not messages:
            return None
        self.ws.scan.counters.receive_batches += 1
        return messages

    cdef int cut_many(self, list messages, Py_ssize_t most, Record *record) except -1:
        """Add small messages to a list, under the lock, as many as one visit may copy. `record`
        is that of the next one, if it is larger. Without memory for all of them, those that it
        was there for."""
        cdef Slot *slot = self.conn.slot
        cdef uint32_t base = 0
        cdef uint32_t count = 0
        try:
            while len(messages) < most and count < MESSAGES_AT_ONCE:
                ring_copy(&slot.inbound, record, RECORD_HEADER, base)
                if _is_apart(record) or (base and base + record.size > AT_ONCE):
                    if base:
                        record[0] = Record(0, 0, 0, 0)
                    break
                messages.append(self.cut(slot, record, base))
                base += RECORD_HEADER + record.size
                count += 1
                record[0] = Record(0, 0, 0, 0)
        except MemoryError:
            record[0] = Record(0, 0, 0, 0)
            if not messages:
                raise
        finally:
            if count:
                self.consume(base, count)
        return 0

    cdef object cut(self, Slot *slot, Record *record, uint32_t base):
        """The small message whose record begins at `base`, copied."""
        cdef Ring *ring = &slot.inbound
        cdef uint32_t n = record.size
        cdef uint32_t at
        base += RECORD_HEADER
        if record.kind == BINARY:
            data = PyBytes_FromStringAndSize(NULL, n)
            ring_copy(ring, PyBytes_AS_STRING(data), n, base)
            return data
        at = (ring.head + base) & (ring.block.capacity - 1)
        if at + n <= ring.block.capacity:
            return text_of(<char *>block_data(ring.block) + at, n)
        ring_copy(ring, _scratch, n, base)
        return text_of(_scratch, n)

    cdef object take_large(self, Record *record):
        """The first message, which is whole and large, or compressed. What is unread is not
        written to, whatever the reactor adds, even if the ring moves to another block; and only
        this side takes it out. So it is copied without the lock."""
        cdef Slot *slot = self.conn.slot
        cdef uint32_t n = record.size
        cdef uint32_t at, first
        cdef char *base
        cdef char *joined = NULL
        cdef Block *block
        cdef bint resume
        pthread_mutex_lock(&slot.lock)
        block = slot.inbound.block
        wk_u32_add(&block.refs, 1)
        at = (slot.inbound.head + RECORD_HEADER) & (block.capacity - 1)
        pthread_mutex_unlock(&slot.lock)
        base = <char *>block_data(block)
        first = min(n, block.capacity - at)
        try:
            if record.kind == BINARY or record.compressed:
                message = PyBytes_FromStringAndSize(NULL, n)
                memcpy(PyBytes_AS_STRING(message), base + at, first)
                memcpy(PyBytes_AS_STRING(message) + first, base, n - first)
            elif first == n:
                message = text_of(base + at, n)
            else:
                joined = <char *>memory_take(FOR_MESSAGES, n)
                if joined == NULL:
                    raise MemoryError
                memcpy(joined, base + at, first)
                memcpy(joined + first, base, n - first)
                message = text_of(joined, n)
            pthread_mutex_lock(&slot.lock)
            self.consume(RECORD_HEADER + n, 1)
            resume = self.conn.resumes()
            pthread_mutex_unlock(&slot.lock)
        finally:
            memory_free(FOR_MESSAGES, joined)
            pool_drop(block, self.conn.core.hub.pool)
        if resume:
            self.conn.core.post(slot, RESUME)
        return self.inflate(record, message) if record.compressed else message

    cdef object inflate(self, Record *record, packed):
        """A compressed message that was taken. Without memory for it, or if it is not what the
        peer may send, nothing more is received: what follows refers to it."""
        try:
            return self.inflater.message(packed, is_text=record.kind == TEXT)
        except MemoryError:
            self.end_at_hole()
            raise
        except Unacceptable as refusal:
            raise self.refuse(refusal.code, refusal.reason)

    cdef object refuse(self, CloseCode code, bytes reason):
        """A message that was taken is one that the peer must not send. What is raised."""
        cdef Slot *slot = self.conn.slot
        cdef bint resume
        pthread_mutex_lock(&slot.lock)
        if not self.ws.over:
            decoder_fail(self.ws, &slot.inbound, self.conn.core.hub.pool, code,
                         PyBytes_AS_STRING(reason))
        decoder_discard(self.ws, &slot.inbound, self.conn.core.hub.pool)
        resume = self.conn.resumes()
        pthread_mutex_unlock(&slot.lock)
        self.conn.core.post(slot, ANSWER | RESUME if resume else ANSWER)
        return self.why_closed(False)

    cdef void end_at_hole(self) noexcept:
        """A message that was taken could not be delivered, for lack of memory. Nothing behind
        it is."""
        cdef Slot *slot = self.conn.slot
        if not self.is_linked():
            return
        pthread_mutex_lock(&slot.lock)
        decoder_discard(self.ws, &slot.inbound, self.conn.core.hub.pool)
        pthread_mutex_unlock(&slot.lock)
        self.conn.end_at_hole()

    # --- facts ---------------------------------------------------------------

    @property
    def _agreed(self):
        return self.agreed

    @property
    def _is_client(self):
        return bool(self.ws.client)

    def _counters(self):
        cdef Slot *slot = self.conn.slot if self.is_linked() else NULL
        if slot != NULL:
            pthread_mutex_lock(&slot.lock)
        waiting = self.ws.whole
        answered = self.ws.pings_answered
        if slot != NULL:
            pthread_mutex_unlock(&slot.lock)
        return (
            self.ws.scan.counters.received,
            self.ws.scan.counters.received_bytes,
            self.ws.scan.counters.receive_batches,
            self.ws.scan.counters.sent,
            self.ws.scan.counters.sent_bytes,
            self.ws.scan.counters.send_batches,
            waiting,
            answered,
        )

    # --- receiving -----------------------------------------------------------

    def receive(self):
        """Wait for a message, and return it. A checkpoint.

        Cancellation is atomic: no message is consumed.

        Returns:
          A `str` for a text message, `bytes` for a binary one.

        Raises:
          ConnectionClosed: if the peer has closed the connection, or it is broken, and every
              message that came before has been received; or if it was closed here, before
              or during the call.
          trio.BusyResourceError: if another task is receiving.
          RuntimeError: if called from another thread.
        """
        cdef ReceiveMessage operation = ReceiveMessage.__new__(ReceiveMessage)
        operation.conn = self.conn
        operation.channel = self
        return operation

    def receive_many(self, max_messages=None):
        """Wait for a message, and return all that have come. A checkpoint.

        Cancellation is atomic: no message is consumed.

        Args:
          max_messages: how many at most, 1 or more; by default as many as there are.

        Returns:
          A list of at least one message, each as `receive` returns it.

        Raises:
          TypeError, ValueError: if ``max_messages`` is invalid.
          ConnectionClosed, trio.BusyResourceError, RuntimeError: as `receive` does.
        """
        cdef ReceiveMany operation = ReceiveMany.__new__(ReceiveMany)
        operation.conn = self.conn
        operation.channel = self
        operation.argument = max_messages
        return operation

    def receive_nowait(self):
        """Return a message, like `receive`, without waiting. Not a checkpoint.

        Returns:
          A `str` for a text message, `bytes` for a binary one.

        Raises:
          trio.WouldBlock: if no whole message has come, and one may.
          ConnectionClosed, trio.BusyResourceError, RuntimeError: as `receive` does.
        """
        self.conn.ensure_usable()
        self.conn.ensure_no_receiver()
        message = self.take_one(False)
        if message is None:
            raise trio.WouldBlock
        return message

    def receive_many_nowait(self, max_messages=None):
        """Return all messages that have come, like `receive_many`, without waiting. Not a
        checkpoint.

        Args:
          max_messages: how many at most, 1 or more; by default as many as there are.

        Returns:
          A list of at least one message, each as `receive` returns it.

        Raises:
          trio.WouldBlock: if no whole message has come, and one may.
          TypeError, ValueError: if ``max_messages`` is invalid.
          ConnectionClosed, trio.BusyResourceError, RuntimeError: as `receive` does.
        """
        cdef Py_ssize_t most = positive("max_messages", max_messages, MAX_MESSAGES)
        self.conn.ensure_usable()
        self.conn.ensure_no_receiver()
        messages = self.take_many(most, False)
        if messages is None:
            raise trio.WouldBlock
        return messages

    def __aiter__(self):
        return self

    def __anext__(self):
        cdef ReceiveMessage operation = ReceiveMessage.__new__(ReceiveMessage)
        operation.conn = self.conn
        operation.channel = self
        operation.iterating = True
        return operation


cdef inline bint _is_apart(const Record *record) noexcept nogil:
    """Whether a message is not taken under the lock."""
    return record.size > AT_ONCE or record.compressed


cdef class ReceiveMessages(Receive):

    cdef int ensure_turn(self) except -1:
        self.conn.ensure_no_receiver()
        return self.channel.ensure_ready()

    cdef bint must_wait(self):
        return self.channel.nothing_yet()

    cdef void lost(self) noexcept:
        self.channel.end_at_hole()


@cython.final
cdef class ReceiveMessage(ReceiveMessages):
    cdef bint iterating

    cdef object attempt(self):
        if not self.iterating:
            return self.channel.take_one(True)
        try:
            return self.channel.take_one(True)
        except trio.EndOfChannel:
            raise StopAsyncIteration from None


@cython.final
cdef class ReceiveMany(ReceiveMessages):
    cdef Py_ssize_t most

    cdef object validate(self):
        self.most = positive("max_messages", self.argument, MAX_MESSAGES)

    cdef object attempt(self):
        return self.channel.take_many(self.most, True)
