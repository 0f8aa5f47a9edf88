"""Event mode with WebSockets: callbacks get lists of whole messages.

The rules are those of events.pyx. A connection begins with its handshake: until it has a
decoder it is served as by `serve_events`, with `shake`, the Python half's, in the place of
on_data. That takes the header when it is there, answers, and calls on_connect; so a
handshake has no task. What bounds it is one task for all of them, that is there while some
handshake is not done: they all may take equally long, so the first that began is the first
that is late.

From then on it is served as with frames (frame_events.pyx): the reactor wakes the server for
whole messages, the server takes all of them before it calls back, and finds the end by the
exception that taking raises. The object that callbacks get is found by the decoder's
`observer`, as long as somebody keeps it. A quiet connection that nobody has kept is its slot
and its decoder, which refers to what the handshake has agreed on.

Whatever closes a WebSocket without having said so to the peer, its close frame is sent:
1011 where a callback raised, else 1001.
"""
from cpython.object cimport PyObject
from libc.stdint cimport uint32_t

from ..base.atomics cimport wk_u64_load
from ..base.linux cimport pthread_mutex_lock, pthread_mutex_unlock
from ..reactor.slot cimport ANSWER, CLOSE, QUIET, RESUME, RUNNING, Slot
from ..reactor.slot_map cimport slot_map_get
from ..reactor.websocket cimport (
    GOING_AWAY, INTERNAL_ERROR, Decoder, decoder_of, decoder_say_goodbye,
)
from .core cimport Endpoint, take_entry
from .events cimport NOTHING, UNSEEN, EventServer, Py_REFCNT, has_weakrefs, references
from .listen cimport NativeListener
from .receive cimport has_room
from .send cimport SendHalf
from .stream cimport Stream
from .websocket cimport MAX_MESSAGES

import trio

from trio_wknet._errors import ConnectionClosed, is_only

cdef object current_time = trio.current_time


cdef Decoder *decoder_of_conn(Stream conn) noexcept:
    """NULL before the end of the handshake. The connection may be let go of."""
    return <Decoder *>conn.scan if conn.slot == NULL else decoder_of(conn.slot)


cdef bint _is_normal(exception):
    """Whether it says that the peer has closed the WebSocket normally."""
    return (isinstance(exception, ConnectionClosed) and exception.by == "peer"
            and exception.code in (1000, 1001, 1005))


cdef class MessageServer(EventServer):
    """One `serve_messages`."""

    def __init__(self, NativeListener listener, nursery, shake, watch, double handshake_time,
                 make_websocket, on_messages, on_close, on_error, tell):
        EventServer.__init__(self, listener, nursery, shake, None, on_close, on_error, tell)
        self.on_messages = on_messages
        self.make_websocket = make_websocket
        self.watch = watch
        self.handshake_time = handshake_time
        self.deadlines = {}

    # --- handshakes ----------------------------------------------------------

    cdef void admit_conn(self, Slot *slot) noexcept:
        try:
            self.begin_handshake(slot)
        except BaseException as exception:
            self.core.let_go_unseen(slot)
            self.fail(exception)
            return
        EventServer.admit_conn(self, slot)

    cdef void begin_handshake(self, Slot *slot) except *:
        self.deadlines[wk_u64_load(&slot.handle)] = current_time() + self.handshake_time
        self.watch()

    def _end_handshake(self, Stream conn):
        """The header is there: it is no longer late."""
        if conn.slot != NULL:
            take_entry(self.deadlines, conn.slot)

    def _begin_messages(self, Stream conn):
        """The connection has become a WebSocket."""
        conn.slot.by_kind.scan.served = True

    def _close_late(self):
        """Close connections whose handshake is late. The seconds until the next may be; None
        if there is no other."""
        cdef Slot *slot
        cdef Stream conn
        cdef list late = []
        now = current_time()
        left = None
        for handle, deadline in self.deadlines.items():
            if deadline > now:
                left = deadline - now
                break
            late.append(handle)
        for handle in late:
            del self.deadlines[handle]
            slot = slot_map_get(self.core.hub.slot_map, handle)
            if slot != NULL and slot.server == <void *>self and slot.phase == QUIET:
                conn = <Stream>self.core.conn_of(slot)
                conn.let_go(CLOSE, "closed")
        return left

    # --- serving -------------------------------------------------------------

    cdef void pump(self, Slot *slot) noexcept:
        """Go on with a connection that is QUIET. It is RUNNING while its messages are taken,
        too: that takes memory, so a finalizer may run, which may even close it."""
        cdef WebSocketReceive websocket
        cdef list messages = None
        cdef object failure = None
        if slot.by_kind.scan == NULL:
            EventServer.pump(self, slot)
            return
        try:
            websocket = self.borrow_websocket(slot)
        except BaseException:
            self.core.let_go_blind(slot)
            return
        slot.phase = RUNNING
        try:
            messages = websocket.take_many(MAX_MESSAGES, True)
        except BaseException as exception:
            failure = exception
        if websocket.conn.slot == NULL:
            self.ended(websocket.conn)
        elif failure is not None:
            self.end_messages(websocket.conn, failure)
        elif messages is None:
            slot.phase = QUIET
        else:
            self.run_callback(websocket.conn, self.on_messages, websocket, messages)
        self.give_back(websocket)

    cdef int look(self, Slot *slot, uint32_t *arrived) noexcept:
        """See whether there is anything to do. If not, a wake is arranged: by the next whole
        message, or by the end."""
        cdef Decoder *ws = decoder_of(slot)
        cdef int found = UNSEEN
        cdef bint resume = False
        if ws == NULL:
            return EventServer.look(self, slot, arrived)
        pthread_mutex_lock(&slot.lock)
        if ws.whole == 0 and not (ws.over or slot.ended or slot.error):
            found = NOTHING
            slot.rcvlowat = 1
            slot.open_ended = False
            slot.end_wanted = True
            resume = slot.paused and has_room(slot)
            if resume:
                slot.paused = False
        pthread_mutex_unlock(&slot.lock)
        if resume:
            self.core.post(slot, RESUME)
        return found

    # --- objects -------------------------------------------------------------

    cdef WebSocketReceive borrow_websocket(self, Slot *slot):
        """The object of a connection, for a callback. Where there is none, that of the last
        callback will do, if nobody kept it, with its connection's object."""
        cdef Decoder *ws = <Decoder *>slot.by_kind.scan
        cdef WebSocketReceive websocket = self.spare_websocket
        if websocket is None or ws.observer != NULL or slot.owner != NULL:
            return self.websocket_of(<Stream>self.core.conn_of(slot))
        self.spare_websocket = None
        websocket.conn.attach(self.core, slot)
        websocket.attach(websocket.conn, ws)
        return websocket

    cdef void give_back(self, WebSocketReceive websocket) noexcept:
        """A callback has returned: keep its objects for the next one, unless somebody else
        has kept one. The caller has a reference to the WebSocket, and that to the other."""
        cdef SendHalf conn = websocket.conn
        if (self.spare_websocket is not None or Py_REFCNT(websocket) > 1
                or Py_REFCNT(conn) > 2):
            return
        if has_weakrefs(websocket) or has_weakrefs(conn):
            return
        if not conn.unmarked() or not websocket.unmarked():
            return
        websocket.leave()
        conn.forget()
        self.spare_websocket = websocket

    cdef WebSocketReceive websocket_of(self, Stream conn):
        """The WebSocket of a connection, which may be let go of; it is made on first access.
        One that another thread is freeing counts as gone (`Core.owner_of`)."""
        cdef Decoder *ws = decoder_of_conn(conn)
        cdef WebSocketReceive websocket
        if ws.observer != NULL and references(<PyObject *>ws.observer) > 0:
            return <WebSocketReceive>ws.observer
        websocket = self.make_websocket()
        websocket.attach(<SendHalf>conn, ws)
        return websocket

    cdef object subject(self, Stream conn):
        return self.websocket_of(conn)

    # --- the end of a connection ---------------------------------------------

    cdef void end_messages(self, Stream conn, failure) noexcept:
        """No more messages come. `failure`: what a receive raises for it."""
        cdef bint dealt_with
        if isinstance(failure, ConnectionClosed):
            if not _is_normal(failure):
                self.report(conn, failure)
            conn.let_go(CLOSE, "closed")
            self.ended(conn)
            return
        dealt_with = self.report(conn, failure)
        self.end(conn, dealt_with)
        if not dealt_with:
            self.fail(failure)

    cdef bint reported(self, Stream conn, exception) noexcept:
        """Have on_error deal with an exception. What says that the WebSocket is closed ends
        that one alone; of one whose handshake was not done nobody knows."""
        cdef bint dealt_with
        cdef bint closed = False
        if decoder_of_conn(conn) == NULL:
            return False
        try:
            closed = is_only(exception, ConnectionClosed) and self.websocket_of(conn).is_over_now()
            if closed and _is_normal(exception):
                return True
        except BaseException as failure:
            self.fail(failure)
        dealt_with = EventServer.reported(self, conn, exception)
        if not closed:
            self.say_goodbye(
                conn.slot, INTERNAL_ERROR if isinstance(exception, Exception) else GOING_AWAY)
        return dealt_with or closed

    cdef void say_goodbye(self, Slot *slot, int code) noexcept:
        """Have our close frame sent, if that was not done, and the peer has not gone."""
        cdef Decoder *ws
        cdef bint due = False
        if slot == NULL:
            return
        pthread_mutex_lock(&slot.lock)
        ws = decoder_of(slot)
        if ws != NULL and not (ws.over or slot.ended or slot.error or slot.pending_error):
            due = decoder_say_goodbye(ws, code, NULL, 0)
            if due:
                ws.begun_here = True
        pthread_mutex_unlock(&slot.lock)
        if due:
            self.core.post(slot, ANSWER)

    cdef void left(self, Endpoint conn, str reason) noexcept:
        cdef Stream stream = <Stream>conn
        take_entry(self.deadlines, stream.slot)
        if stream.slot.by_kind.scan != NULL:
            stream.scan = stream.slot.by_kind.scan
            stream.scan.users += 1
            if reason != "aborted":
                self.say_goodbye(stream.slot, GOING_AWAY)
        EventServer.left(self, conn, reason)

    cdef void lost(self, Slot *slot) noexcept:
        take_entry(self.deadlines, slot)
        EventServer.lost(self, slot)

    cdef object call_on_close(self, Stream conn):
        cdef WebSocketReceive websocket = self.websocket_of(conn)
        code, reason, _ = websocket._close_state()
        return self.on_close(websocket, code, reason)

    cdef bint call_last(self, Stream conn) except -1:
        """Call on_close, for what has become a WebSocket."""
        if conn.scan == NULL:
            return False
        return EventServer.call_last(self, conn)
