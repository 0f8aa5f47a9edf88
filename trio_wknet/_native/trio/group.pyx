"""Groups of connections: who their members are, and the jobs of a broadcast.

A member is a handle. So a group keeps no object of a quiet connection alive, and a handle that
has gone stale does no harm. Members are kept by the form that a message has for them on the wire
(bytes, frames of one framing, a WebSocket's messages), and by reactor, as a broadcast needs
them: it writes the message once for each form, and copies a table for each reactor.

A connection that is let go of leaves its groups, which the core keeps by handle
(`Core.memberships`).
"""
from cpython.buffer cimport PyBUF_SIMPLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from ..base.atomics cimport wk_u64_load
from ..base.mask cimport wk_mask
from ..base.memory cimport FOR_BROADCASTS, FOR_HANDLES, memory_free, memory_take, memory_zeroed
from ..reactor.broadcast cimport SLOW, TAKEN, BroadcastJob, Payload, broadcast_give
from ..reactor.framing cimport MAX_VARINT
from ..reactor.handles cimport (
    NO_ROOM, NOWHERE, HandleSet, handles_add, handles_copy, handles_discard, handles_find,
    handles_free,
)
from ..reactor.slot cimport ABORT, Slot
from ..reactor.slot_map cimport slot_map_get
from ..reactor.websocket cimport BINARY, MAX_HEADER, TEXT, put_header
from .broadcasts cimport broadcasts_add
from .core cimport Audience, Core
from .frame_send cimport FrameSend, frame_objection, put_frame
from .framed cimport CompiledFraming
from .send cimport SendHalf
from .send_vector cimport as_tuple
from .stream cimport Stream
from .websocket_send cimport WebSocketSend, _next_key

import trio

cdef enum:
    MAX_MESSAGE = 1 << 29       # bytes, before it is written for the wire

# The keys of forms that have no framing.
cdef object AS_BYTES = "bytes"
cdef object BY_SERVER = "server"
cdef object BY_CLIENT = "client"


cdef class Form:
    def __cinit__(self, key, uint32_t reactors):
        self.key = key
        self.members = <HandleSet *>memory_zeroed(FOR_HANDLES, reactors, sizeof(HandleSet))
        if self.members == NULL:
            raise MemoryError
        self.reactors = reactors

    def __dealloc__(self):
        cdef uint32_t i
        if self.members != NULL:
            for i in range(self.reactors):
                handles_free(&self.members[i])
            memory_free(FOR_HANDLES, self.members)

    cdef bint discard(self, uint64_t handle) noexcept:
        cdef uint32_t i
        for i in range(self.reactors):
            if handles_discard(&self.members[i], handle):
                self.count -= 1
                return True
        return False

    cdef bint has(self, uint64_t handle) noexcept:
        cdef uint32_t i
        for i in range(self.reactors):
            if handles_find(&self.members[i], handle) != NOWHERE:
                return True
        return False

    cdef Payload *write(self, const char *data, size_t n, bint text) except NULL:
        """A message in this form."""
        cdef CompiledFraming framing = self.key if self.is_framed() else None
        cdef size_t extra = MAX_HEADER + MAX_VARINT
        cdef const unsigned char *mask = _next_key() if self.key is BY_CLIENT else NULL
        cdef Payload *payload
        cdef unsigned char *out
        cdef str why
        if framing is not None:
            why = frame_objection(&framing.spec, data, n)
            if why is not None:
                raise ValueError(f"data {why}")
            extra += framing.spec.delimiter_length
        payload = <Payload *>memory_take(FOR_BROADCASTS, sizeof(Payload) + n + extra)
        if payload == NULL:
            raise MemoryError
        payload.users = 0
        out = payload.data
        if framing is not None:
            out = put_frame(&framing.spec, out, data, n)
        elif self.key is AS_BYTES:
            memcpy(out, data, n)
            out += n
        else:
            out += put_header(out, TEXT if text else BINARY, n, mask)
            if mask != NULL:
                wk_mask(out, <const unsigned char *>data, n, mask, 0)
            else:
                memcpy(out, data, n)
            out += n
        payload.size = <uint32_t>(out - payload.data)
        return payload

    cdef bint is_framed(self) noexcept:
        return isinstance(self.key, CompiledFraming)


cdef class Broadcasting:
    def _is_done(self):
        return self.jobs == 0

    def _counts(self):
        """How many were (sent, queued, skipped, closed), of the jobs that are done."""
        return self.sent, self.queued, self.skipped, self.closed

    cdef void count(self, BroadcastJob *job) noexcept:
        cdef uint32_t taken = 0, slow = 0, i
        for i in range(job.members.room):
            if job.members.places[i] != 0:
                taken += job.outcomes[i] == TAKEN
                slow += job.outcomes[i] == SLOW
        self.sent += job.sent
        self.queued += taken - job.sent - job.broken
        self.closed += job.members.count - taken - slow + job.broken
        if self.closes_slow:
            self.closed += slow
        else:
            self.skipped += slow


cdef void _free_job(BroadcastJob *job) noexcept:
    job.payload.users -= 1
    if job.payload.users == 0:
        memory_free(FOR_BROADCASTS, job.payload)
    handles_free(&job.members)
    memory_free(FOR_BROADCASTS, job.outcomes)
    memory_free(FOR_BROADCASTS, job)


cdef class Members(Audience):
    def _begin(self, Core core not None, size_t max_pending, on_room, on_empty):
        self.core = core
        self.forms = {}
        self.max_pending = max_pending
        self.on_room = on_room
        self.on_empty = on_empty

    def __len__(self):
        return self.count

    @property
    def pending(self):
        """How many bytes the broadcasts hold that are in progress."""
        return self.pending_bytes

    # --- members ---------------------------------------------------------------

    cdef tuple _look_at(self, member):
        """(its connection, the key of its form)"""
        if isinstance(member, SendHalf):
            return member, AS_BYTES
        if isinstance(member, FrameSend):
            return (<FrameSend>member).conn, (<FrameSend>member).compiled
        if isinstance(member, WebSocketSend):
            return (
                (<WebSocketSend>member).conn,
                BY_CLIENT if (<WebSocketSend>member).ws.client else BY_SERVER,
            )
        raise TypeError(
            f"member must be a Conn, a FrameChannel or a WebSocket, not {member!r}"
        )

    def _join(self, member):
        cdef SendHalf conn
        cdef Slot *slot
        conn, key = self._look_at(member)
        self.core.check()
        conn.ensure_usable()
        if conn.slot == NULL:
            raise conn.closed_error()
        if conn.core is not self.core:
            raise ValueError("member must be a connection of this group's engine")
        if isinstance(member, FrameSend):
            (<FrameSend>member).ensure_linked()
        elif isinstance(member, WebSocketSend):
            (<WebSocketSend>member).ensure_may_send()
        slot = conn.slot
        self._put(slot, wk_u64_load(&slot.handle), key)

    cdef int _put(self, Slot *slot, uint64_t handle, key) except -1:
        cdef Form form = self.forms.get(key)
        cdef Form other
        cdef uint32_t reactor = self._reactor_of(slot)
        if form is None:
            form = Form(key, self.core.hub.count)
        if form.has(handle):
            return 0
        other = self._form_of(handle)
        if handles_add(&form.members[reactor], handle) == NO_ROOM:
            raise MemoryError
        form.count += 1
        try:
            self.forms[key] = form
            if other is None:
                self._note_membership(handle)
        except BaseException:
            form.discard(handle)
            raise
        if other is not None:
            self._discard_from(other, handle)
        else:
            self.count += 1
        return 0

    cdef uint32_t _reactor_of(self, Slot *slot) noexcept:
        cdef uint32_t i = 0
        while self.core.hub.reactors[i] != slot.reactor:
            i += 1
        return i

    cdef int _note_membership(self, uint64_t handle) except -1:
        cdef dict memberships = self.core.memberships
        where = memberships.get(handle)
        if where is None:
            memberships[handle] = self
        elif isinstance(where, Audience):
            memberships[handle] = {where, self}
        else:
            (<set>where).add(self)
        return 0

    cdef Form _form_of(self, uint64_t handle):
        cdef Form form
        for form in self.forms.values():
            if form.has(handle):
                return form
        return None

    cdef void _discard_from(self, Form form, uint64_t handle) noexcept:
        form.discard(handle)
        if form.count == 0:
            self.forms.pop(form.key, None)

    cdef void left(self, uint64_t handle) noexcept:
        cdef Form form = self._form_of(handle)
        if form is None:
            return
        self._discard_from(form, handle)
        self.count -= 1
        if self.count == 0 and self.on_empty is not None:
            self.on_empty()

    cdef void unframed(self, uint64_t handle) noexcept:
        cdef Form form = self._form_of(handle)
        if form is not None and form.is_framed():
            self._forget(handle)

    cdef void _forget(self, uint64_t handle) noexcept:
        """It leaves this group, and goes on."""
        cdef dict memberships = self.core.memberships
        where = memberships.get(handle)
        if isinstance(where, Audience):
            memberships.pop(handle, None)
        elif where is not None:
            (<set>where).discard(self)
            if not where:
                memberships.pop(handle, None)
        self.left(handle)

    cdef uint64_t _handle_of(self, member) except? 0:
        cdef SendHalf conn
        conn, _ = self._look_at(member)
        return wk_u64_load(&conn.slot.handle) if conn.slot != NULL else 0

    def _leave(self, member):
        cdef uint64_t handle = self._handle_of(member)
        self.core.check()
        if handle and self._form_of(handle) is not None:
            self._forget(handle)

    def _has(self, member):
        cdef uint64_t handle = self._handle_of(member)
        self.core.check_thread()
        return handle != 0 and self._form_of(handle) is not None

    def _handles(self):
        """Of all members, as a list."""
        cdef Form form
        cdef uint32_t reactor, i
        self.core.check()
        handles = []
        for form in self.forms.values():
            for reactor in range(form.reactors):
                for i in range(form.members[reactor].room):
                    if form.members[reactor].places[i] != 0:
                        handles.append(form.members[reactor].places[i])
        return handles

    # --- broadcasts ------------------------------------------------------------

    def _start(self, Broadcasting broadcast not None, data, exclude, bint closes_slow, on_done):
        """Give a message to the reactors, for all members but those excluded."""
        cdef Py_buffer view
        cdef bytes encoded
        self.core.check()
        excluded = [
            self._handle_of(member) for member in as_tuple(exclude, "exclude", "members")
        ]
        broadcast.closes_slow = closes_slow
        broadcast.on_done = on_done
        if isinstance(data, str):
            try:
                encoded = (<str>data).encode()
            except UnicodeEncodeError as failure:
                raise ValueError(f"data cannot be sent as text: {failure}") from None
            self._give(broadcast, PyBytes_AS_STRING(encoded), PyBytes_GET_SIZE(encoded), True,
                       excluded)
            return
        try:
            PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        except (TypeError, BufferError):
            raise TypeError(
                f"data must be a str, or contiguous and bytes-like, not {type(data).__name__}"
            ) from None
        try:
            self._give(broadcast, <const char *>view.buf, view.len, False, excluded)
        finally:
            PyBuffer_Release(&view)

    cdef int _give(self, Broadcasting broadcast, const char *data, size_t n, bint text,
                   list excluded) except -1:
        """All of it or, if this raises, nothing."""
        cdef BroadcastJob *jobs = NULL      # linked by `following`
        cdef BroadcastJob *job
        if n > MAX_MESSAGE:
            raise ValueError(f"data is {n} bytes, more than {<int>MAX_MESSAGE}")
        try:
            for key in list(self.forms):
                self._prepare(broadcast, &jobs, self.forms[key], data, n, text, excluded)
            if self.pending_bytes and self.pending_bytes + broadcast.size > self.max_pending:
                raise trio.WouldBlock
        except BaseException:
            while jobs != NULL:
                job = jobs
                jobs = job.following
                _free_job(job)
            broadcast.size = 0
            raise
        self.pending_bytes += broadcast.size
        while jobs != NULL:
            job = jobs
            jobs = job.following
            job.audience = <void *>self
            job.broadcast = <void *>broadcast
            Py_INCREF(self)
            Py_INCREF(broadcast)
            broadcast.jobs += 1
            broadcasts_add(&self.core.broadcasts, job)
            broadcast_give(job)
        if broadcast.jobs == 0:
            broadcast.on_done()
        return 0

    cdef int _prepare(self, Broadcasting broadcast, BroadcastJob **jobs, Form form,
                      const char *data, size_t n, bint text, list excluded) except -1:
        """Add the jobs of one form."""
        cdef Payload *payload = form.write(data, n, text)
        cdef BroadcastJob *job
        cdef uint32_t i
        payload.users = 1       # until the jobs are made
        try:
            if payload.size > 0:        # no bytes are no message
                for i in range(form.reactors):
                    if form.members[i].count > 0:
                        job = self._new_job(broadcast, form, i, payload, excluded)
                        job.following = jobs[0]
                        jobs[0] = job
                        broadcast.size += 9 * job.members.room
                broadcast.size += payload.size
        finally:
            payload.users -= 1
            if payload.users == 0:
                memory_free(FOR_BROADCASTS, payload)
        return 0

    cdef BroadcastJob *_new_job(self, Broadcasting broadcast, Form form, uint32_t reactor,
                                Payload *payload, list excluded) except NULL:
        cdef BroadcastJob *job = <BroadcastJob *>memory_zeroed(
            FOR_BROADCASTS, 1, sizeof(BroadcastJob)
        )
        if job == NULL:
            raise MemoryError
        if handles_copy(&job.members, &form.members[reactor]):
            for handle in excluded:
                handles_discard(&job.members, handle)
            job.outcomes = <uint8_t *>memory_zeroed(    # PENDING
                FOR_BROADCASTS, job.members.room, 1
            )
        if job.outcomes == NULL:
            handles_free(&job.members)
            memory_free(FOR_BROADCASTS, job)
            raise MemoryError
        job.reactor = self.core.hub.reactors[reactor]
        job.closes_slow = broadcast.closes_slow
        job.is_message = form.key is BY_SERVER or form.key is BY_CLIENT
        job.payload = payload
        payload.users += 1
        return job

    cdef void done(self, BroadcastJob *job) noexcept:
        cdef Broadcasting broadcast = <Broadcasting>job.broadcast
        broadcast.count(job)
        if broadcast.closes_slow:
            self._close_slow(job)
        _free_job(job)
        broadcast.jobs -= 1
        if broadcast.jobs == 0:
            self.pending_bytes -= broadcast.size
            self.core.totals.broadcast_done(
                broadcast.sent, broadcast.queued, broadcast.skipped, broadcast.closed
            )
            broadcast.on_done()
            self.on_room()
        Py_DECREF(broadcast)
        Py_DECREF(self)

    cdef void _close_slow(self, BroadcastJob *job) noexcept:
        cdef uint32_t i
        cdef Slot *slot
        for i in range(job.members.room):
            if job.members.places[i] == 0 or job.outcomes[i] != SLOW:
                continue
            slot = slot_map_get(self.core.hub.slot_map, job.members.places[i])
            if slot != NULL and slot.claimed:
                self._close_one(slot)

    cdef void _close_one(self, Slot *slot) noexcept:
        cdef Stream conn
        try:
            conn = self.core.conn_of(slot)
        except MemoryError:
            if slot.server != NULL:     # else it has an object, and this cannot be
                self.core.let_go_blind(slot)
            return
        conn.let_go(ABORT, "slow")
