"""Event mode with frames: callbacks get lists of whole frames.

The rules are those of events.pyx; what differs is what a connection is called for. Its slot
has a scan from the time when the server takes it in, so the reactor wakes the server for
whole frames only, and the server takes all that are there before it calls back. A frame that
is larger than the ring may hold leaves it in parts, as for a task that waits (frames.pyx):
then the server is woken for each part, and calls nobody until the frame is whole.

Nothing that is whole is left for later, so there is nothing to note about what a callback
has seen. The end and what is refused come when the frames before them were delivered: the
server finds them as a receive does, by the exception that `take_many` raises.

What a callback gets is the connection's channel. As long as somebody keeps that, the scan
refers to it (`channel`), as the slot does to the connection's object (`owner`), and callbacks
get the same one. A quiet connection that nobody has kept is its slot and its scan. Once the
connection is let go of, its object keeps the scan, for on_close and on_error to get a channel
whose counters stay.
"""
from cpython.object cimport PyObject
from libc.stdint cimport uint32_t

from ..base.linux cimport pthread_mutex_lock, pthread_mutex_unlock
from ..reactor.framing cimport FRAME_WAIT, FrameScan, frame_scan
from ..reactor.slot cimport CLOSE, QUIET, RESUME, RUNNING, Slot
from .core cimport Endpoint
from .events cimport NOTHING, UNSEEN, Py_REFCNT, has_weakrefs, references
from .framed cimport framed_link
from .frames cimport MAX_FRAMES, STEP_WAIT, frame_step
from .listen cimport NativeListener
from .send cimport SendHalf

import trio

from trio_wknet._errors import FrameTooLong, IncompleteRead, MalformedFrame

# A connection that is closed for one of these says so.
cdef dict REASONS = {FrameTooLong: "frame too long", MalformedFrame: "malformed frame"}

# What the peer has done, or the network. It ends that connection, and nothing else.
cdef tuple PEERS_FAULTS = (
    FrameTooLong, MalformedFrame, IncompleteRead, trio.BrokenResourceError,
)


cdef class FrameServer(EventServer):
    """One `serve_frames`."""

    def __init__(self, NativeListener listener, nursery, framing, CompiledFraming compiled,
                 make_channel, on_frames, on_connect, on_close, on_error, tell):
        EventServer.__init__(
            self, listener, nursery, on_frames, on_connect, on_close, on_error, tell
        )
        self.framing = framing
        self.compiled = compiled
        self.make_channel = make_channel

    # --- serving -------------------------------------------------------------

    cdef void admit_conn(self, Slot *slot) noexcept:
        self.core.claim(slot)
        slot.server = <void *>self
        self.open += 1
        self.totals.open += 1
        try:
            framed_link(slot, self.compiled)
        except MemoryError:
            self.core.let_go_blind(slot)
            return
        slot.by_kind.scan.served = True
        if self.on_connect is not None:
            self.call(slot, self.on_connect)
        else:
            self.pump(slot)

    cdef void call(self, Slot *slot, callback) noexcept:
        cdef Frames channel
        try:
            channel = self.borrow_channel(slot)
        except BaseException:
            self.core.let_go_blind(slot)
            return
        self.run_callback(channel.conn, callback, channel, None)
        self.give_back(channel)

    cdef void pump(self, Slot *slot) noexcept:
        """Go on with a connection that is QUIET. It is RUNNING while its frames are taken,
        too: that takes memory, so a finalizer may run, which may even close it."""
        cdef Frames channel
        cdef list frames = None
        cdef object failure = None
        try:
            channel = self.borrow_channel(slot)
        except BaseException:
            self.core.let_go_blind(slot)
            return
        slot.phase = RUNNING
        try:
            frames = channel.take_many(MAX_FRAMES, True)
        except BaseException as exception:
            failure = exception
        if channel.conn.slot == NULL:
            self.ended(channel.conn)
        elif failure is not None:
            self.end_frames(channel.conn, failure)
        elif frames is None:
            slot.phase = QUIET
        else:
            self.run_callback(channel.conn, self.on_data, channel, frames)
        self.give_back(channel)

    cdef int look(self, Slot *slot, uint32_t *arrived) noexcept:
        """See whether there is anything to do. If not, a wake is arranged: by the next whole
        frame, by a part of one that must leave the ring, or by the end."""
        cdef int found = UNSEEN
        cdef bint resume = False
        pthread_mutex_lock(&slot.lock)
        if frame_scan(slot.by_kind.scan, &slot.inbound, 0) == FRAME_WAIT:
            if frame_step(slot, True, True, &resume) == STEP_WAIT:
                found = NOTHING
                slot.end_wanted = True
        pthread_mutex_unlock(&slot.lock)
        if resume:
            self.core.post(slot, RESUME)
        return found

    # --- channels ------------------------------------------------------------

    cdef Frames borrow_channel(self, Slot *slot):
        """The channel of a connection, for a callback. Where there is none, that of the last
        callback will do, if nobody kept it, with its connection's object."""
        cdef FrameScan *scan = slot.by_kind.scan
        cdef Frames channel = self.spare_channel
        if channel is None or scan.channel != NULL or slot.owner != NULL:
            return self.channel_of(<Stream>self.core.conn_of(slot))
        self.spare_channel = None
        channel.conn.attach(self.core, slot)
        channel.scan = scan
        scan.users += 1
        scan.channel = <void *>channel
        return channel

    cdef void give_back(self, Frames channel) noexcept:
        """A callback has returned: keep its objects for the next one, unless somebody else
        has kept one. The caller has a reference to the channel, and that to the other."""
        cdef SendHalf conn = channel.conn
        if self.spare_channel is not None or Py_REFCNT(channel) > 1 or Py_REFCNT(conn) > 2:
            return
        if has_weakrefs(channel) or has_weakrefs(conn) or not conn.unmarked():
            return
        channel.leave_scan()
        conn.forget()
        self.spare_channel = channel

    cdef Frames channel_of(self, Stream conn):
        """The channel of a connection, which may be let go of; it is made on first access.
        One that another thread is freeing counts as gone (`Core.owner_of`)."""
        cdef FrameScan *scan = conn.scan if conn.slot == NULL else conn.slot.by_kind.scan
        cdef Frames channel
        if scan.channel != NULL and references(<PyObject *>scan.channel) > 0:
            return <Frames>scan.channel
        channel = self.make_channel()
        channel.conn = <SendHalf>conn
        channel.framing = self.framing
        channel.compiled = self.compiled
        channel.scan = scan
        scan.users += 1
        scan.channel = <void *>channel
        return channel

    cdef object subject(self, Stream conn):
        return self.channel_of(conn)

    # --- the end of a connection ---------------------------------------------

    cdef void end_frames(self, Stream conn, failure) noexcept:
        """No more frames come. `failure`: what a receive raises for it."""
        cdef bint dealt_with
        if isinstance(failure, trio.EndOfChannel):
            conn.let_go(CLOSE, "closed")
            self.ended(conn)
            return
        dealt_with = self.report(conn, failure)
        if isinstance(failure, PEERS_FAULTS):
            conn.let_go(CLOSE, REASONS.get(type(failure), "closed"))
            self.ended(conn)
            return
        self.end(conn, dealt_with)
        if not dealt_with:
            self.fail(failure)

    cdef void left(self, Endpoint conn, str reason) noexcept:
        cdef Stream stream = <Stream>conn
        stream.scan = stream.slot.by_kind.scan
        stream.scan.users += 1
        EventServer.left(self, conn, reason)
