"""Accepting connections in bounded batches, and handing them to reactors.

Ports are watched level triggered: a batch that leaves connections in the
kernel's queue is continued in the next turn. Three things stop a port for a
while, by clearing its events in epoll:

* as many connections wait for accept() as `Limits.accept_queue` allows: the Trio side
  resumes the port once half of them are taken;
* there is no room by its admission, which is to wait for some (places.pyx);
* descriptors or memory run out (EMFILE and similar errors): the reactor tries again when it
  closes something, or by its timer. Nothing is dropped to make room, and no thread spins
  meanwhile (pitfall: libuv's spare descriptor, gnet stopping).

epoll has a limit of its own (ENOSPC, see fs.epoll.max_user_watches; or ENOMEM). What it
cannot watch waits in the same way: a port does not accept, and a connection, accepted or
adopted, gets no bytes yet. While a connection waits for epoll, no port of the engine accepts:
otherwise they would pile up.

What waits is on its reactor's list `starved` (shortage.pyx).

Accepted sockets inherit their options (TCP_NODELAY, buffer sizes, keepalive)
from the listening socket, so an accept costs one accept4 and one epoll_ctl.

Closing a listening socket resets the connections in its queue. So a port that closes
gracefully first accepts what is there (`_accept_rest`). What comes between that and `close`
would be lost. If this is the only socket that listens on its port, these clients would be
refused a moment later anyway. But others may listen there, too (reuse_port), and the kernel
still gives this one its share. So a filter on the socket drops SYNs: the clients retry after a
second, when the socket is gone, and reach the others. For handshakes that have begun the
reactor waits GRACE_MS, once in a port's life. A longer wait would cost more clients that second
than it could save from a reset. A port without descriptors for what is queued closes once it
has them, or once the listener is closed for good.
"""
from libc.stdint cimport uint32_t, uint64_t

from ..base.atomics cimport (
    wk_u32_add, wk_u32_load, wk_u32_load_relaxed, wk_u32_store_relaxed, wk_u64_add, wk_u64_load,
    wk_u64_store, wk_u64_store_relaxed,
)
from ..base.linux cimport (
    AF_UNSPEC, EAGAIN, EBADF, EINVAL, ENOMEM, ENOTSOCK, EOPNOTSUPP, EPOLLET, EPOLLIN,
    EPOLLOUT, EPOLLPRI, EPOLLRDHUP, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, POLLIN, SOCK_CLOEXEC,
    SOCK_NONBLOCK, SOL_SOCKET, SO_LINGER, accept4, close, epoll_ctl, epoll_event, errno,
    linger_t, monotonic_ns, poll, pollfd, pthread_mutex_lock, pthread_mutex_unlock, setsockopt,
    sockaddr, sockaddr_storage, socklen_t,
)
from ..base.shared cimport wk_place_store
from .admission cimport ADMITTED, EXEMPT, Reason
from .closing cimport close_now, on_closing_event
from .descriptors cimport descriptors_note
from .hub cimport Hub, Reactor, least_loaded, notify
from .idle cimport strictest
from .keep_alive cimport note_keep_alive
from .lists cimport queue_append
from .pace cimport pace_begin
from .places cimport HELD, end_hold, hold, place_enter, place_give_back, place_reserve
from .shortage cimport end_shortage, is_shortage, wait_for_resources
from .slot cimport ADD, DROP, NEW, OPEN, PORT, Slot, take_acceptor
from .slot_map cimport slot_map_take
from .timeouts cimport timeout_set
from .transfer cimport end_of_input, flush, watch_rate
from .wake cimport reactor_post

cdef extern from *:
    """
    #include <linux/filter.h>
    #include <sys/socket.h>

    /* TCP's flags: SYN without ACK is dropped, everything else passes. */
    static struct sock_filter wk_no_syn[] = {
        BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 13),
        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 0x12),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0x02, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, 0),
        BPF_STMT(BPF_RET | BPF_K, 0xffffffff),
    };
    static const struct sock_fprog wk_no_syn_program = {5, wk_no_syn};
    """
    struct sock_fprog:
        pass
    const sock_fprog wk_no_syn_program
    int SO_ATTACH_FILTER

cdef enum:
    ACCEPT_BATCH = 64
    MAX_BACKLOG = 65535
    GRACE_MS = 2                # the time for handshakes that began before a close


# --- watching -------------------------------------------------------------------------


cdef inline int _control(
    Reactor *reactor, Slot *slot, int operation, uint32_t events
) noexcept nogil:
    """epoll_ctl for a slot's descriptor; 0 or the errno."""
    cdef epoll_event event
    event.events = events
    event.data.u64 = wk_u64_load(&slot.handle)
    return 0 if epoll_ctl(reactor.epfd, operation, slot.fd, &event) == 0 else errno


cdef void watch(Reactor *reactor, Slot *slot) noexcept nogil:
    """Add a connection's descriptor to epoll, once in its life. If epoll refuses it, that is
    the connection's error, unless it is a shortage, which passes."""
    cdef int error = _control(
        reactor, slot, EPOLL_CTL_ADD, EPOLLIN | EPOLLPRI | EPOLLOUT | EPOLLRDHUP | EPOLLET
    )
    cdef bint waited = slot.disarmed
    if is_shortage(error):
        wait_for_resources(reactor, slot, error)
        return
    end_shortage(reactor, slot)
    descriptors_note(slot.fd)
    if slot.state != NEW:       # closing, with a deadline of its own
        timeout_set(reactor, slot)
        on_closing_event(reactor, slot)
        return
    slot.state = OPEN
    if waited:
        note_keep_alive(slot)   # WATCH was ignored meanwhile
    if pace_begin(reactor, slot) or wk_u32_load_relaxed(&slot.idle) or slot.keeps_alive:
        timeout_set(reactor, slot)
    watch_rate(reactor, slot)
    if error:
        end_of_input(reactor, slot, error)
    elif waited:
        flush(reactor, slot)    # and so were FLUSH and ANSWER


cdef void _arm(Reactor *reactor, Slot *port) noexcept nogil:
    """Let epoll report a port's connections. If epoll refuses, `accept` raises that, unless
    it is a shortage, which passes."""
    cdef int error = _control(
        reactor, port, EPOLL_CTL_ADD if port.state == NEW else EPOLL_CTL_MOD, EPOLLIN
    )
    if is_shortage(error):
        _starve(reactor, port, error)
    elif error:
        _fail(reactor, port, error)
    else:
        port.state = OPEN
        end_shortage(reactor, port)


cdef inline void _disarm(Reactor *reactor, Slot *port) noexcept nogil:
    """Stop the reports. If this fails, epoll does not watch the port anyway."""
    if port.state == OPEN:
        _control(reactor, port, EPOLL_CTL_MOD, 0)


cdef void rearm(Reactor *reactor, Slot *port) noexcept nogil:
    """Accept again, if the listener has room."""
    cdef bint full
    pthread_mutex_lock(&port.beyond.listener.lock)
    full = port.beyond.listener.waiting >= port.waiting_for.accept_queue
    if full:
        port.paused = True
    pthread_mutex_unlock(&port.beyond.listener.lock)
    if full:
        end_shortage(reactor, port)
        end_hold(reactor, port)
    elif (port.disarmed or port.held) and port.state == OPEN:
        on_acceptable(reactor, port)        # shows whether there are descriptors, or room, again
    else:
        _arm(reactor, port)


# --- what lacks descriptors or memory -----------------------------------------------


cdef void retry(Reactor *reactor, Slot *slot) noexcept nogil:
    """What the slot waits for may be available now."""
    if slot.kind != PORT:
        watch(reactor, slot)
    elif slot.leaving:
        close_port(reactor, slot)
    else:
        rearm(reactor, slot)


cdef void _starve(Reactor *reactor, Slot *port, int error) noexcept nogil:
    """Out of descriptors or memory: stop until something is closed."""
    wait_for_resources(reactor, port, error)
    _disarm(reactor, port)


# --- accepting ------------------------------------------------------------------------


cdef Reactor *_choose(Reactor *accepting) noexcept nogil:
    """The reactor that gets the next connection. With a port for each reactor
    (reuse_port) the kernel has chosen already."""
    cdef Hub *hub = accepting.hub
    if hub.round_robin:
        hub.turn += 1
        return hub.reactors[hub.turn % hub.count]
    return least_loaded(hub, accepting)


cdef bint _is_fatal(int error) noexcept nogil:
    """Whether an error is the listening socket's own. All others that accept(2) may return
    belong to a connection that died in the queue, and are ignored (the list
    and the argument: trio, _highlevel_socket.py)."""
    return error == EBADF or error == EINVAL or error == ENOTSOCK or error == EOPNOTSUPP


cdef void on_acceptable(Reactor *reactor, Slot *port) noexcept nogil:
    cdef int i, error
    cdef bint full = False
    cdef bint was_held = port.door.admission != NULL and end_hold(reactor, port)
    for i in range(ACCEPT_BATCH):
        error = _accept_one(reactor, port, &full)
        if error == EAGAIN or full:
            break
        if error == HELD:
            end_shortage(reactor, port)
            hold(reactor, port)
            if not was_held:
                _disarm(reactor, port)
            return
        if is_shortage(error):
            _starve(reactor, port, error)
            return
        if _is_fatal(error):
            _fail(reactor, port, error)
            return
    if full:
        end_shortage(reactor, port)
        _disarm(reactor, port)
    elif port.disarmed or was_held:
        _arm(reactor, port)


cdef void close_port(Reactor *reactor, Slot *port) noexcept nogil:
    """Close a port gracefully: what the kernel has queued is accepted first."""
    cdef bint refusing
    cdef int error = 0
    end_hold(reactor, port)
    pthread_mutex_lock(&port.beyond.listener.lock)
    refusing = port.beyond.listener.refusing
    pthread_mutex_unlock(&port.beyond.listener.lock)
    if not refusing:
        error = _accept_rest(reactor, port)
    if is_shortage(error):
        port.leaving = True
        _starve(reactor, port, error)
    elif error == HELD:
        port.leaving = True
        end_shortage(reactor, port)
        hold(reactor, port)
        _disarm(reactor, port)
    else:
        close_now(reactor, port)


cdef int _accept_rest(Reactor *reactor, Slot *port) noexcept nogil:
    """Before a port closes gracefully: accept what the kernel has queued, which
    closing would reset (granian #567, pingora #427). Returns the errno that prevented that,
    or EAGAIN."""
    cdef pollfd late
    cdef uint64_t until
    cdef int error = _accept_queued(reactor, port)
    if error != EAGAIN or not port.mark.pinned:
        return error
    if setsockopt(port.fd, SOL_SOCKET, SO_ATTACH_FILTER, &wk_no_syn_program,
                  sizeof(wk_no_syn_program)) != 0:
        return error
    late.fd = port.fd
    late.events = POLLIN
    until = monotonic_ns() + <uint64_t>GRACE_MS * 1000000
    while error == EAGAIN and monotonic_ns() < until:
        poll(&late, 1, GRACE_MS)
        error = _accept_queued(reactor, port)
    return error


cdef int _accept_queued(Reactor *reactor, Slot *port) noexcept nogil:
    """Accept as many as the kernel's queue can hold, ignoring the listener's own limit.
    Returns EAGAIN if none is left in it, or the errno that prevented that."""
    cdef int i, error
    cdef bint full = False
    for i in range(MAX_BACKLOG):
        error = _accept_one(reactor, port, &full)
        if error == EAGAIN or error == HELD or is_shortage(error) or _is_fatal(error):
            return error
    return EAGAIN


cdef int _accept_one(Reactor *reactor, Slot *port, bint *full) noexcept nogil:
    """Accept a connection; 0 or the errno. A slot is taken first, so that what
    was accepted always has a place."""
    cdef int fd
    if wk_u32_load_relaxed(&reactor.hub.unwatched):
        return <int>wk_u32_load(&reactor.hub.shortage)
    if reactor.spare == NULL:
        reactor.spare = slot_map_take(reactor.hub.slot_map)
    if reactor.spare == NULL:
        return ENOMEM
    if port.door.admission != NULL:
        return _admit_one(reactor, port, full)
    fd = accept4(port.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)
    if fd < 0:
        return errno
    full[0] = _hand_over(reactor, port, fd)
    return 0


cdef int _admit_one(Reactor *reactor, Slot *port, bint *full) noexcept nogil:
    """The same at a port with admission: accept a connection if there is room, and refuse it
    if it may not come in. Besides an errno it may return HELD."""
    cdef sockaddr_storage name
    cdef socklen_t size = sizeof(name)
    cdef Reason reason
    cdef int fd
    cdef int error = place_reserve(reactor, port)
    if error:
        return error
    name.ss_family = AF_UNSPEC
    fd = accept4(port.fd, <sockaddr *>&name, &size, SOCK_NONBLOCK | SOCK_CLOEXEC)
    if fd < 0:
        error = errno
        place_give_back(reactor, port)
        return error
    reason = place_enter(reactor, port, &name)
    if reason == ADMITTED:
        if not port.door.admission.gated:
            wk_u64_store(&reactor.spare_place.since, max(reactor.now, <uint64_t>1))
        reactor.spare.door.place = reactor.spare_place
        reactor.spare_place = NULL
    elif reason != EXEMPT:
        _turn_away(fd)
        return 0
    full[0] = _hand_over(reactor, port, fd)
    return 0


cdef void _turn_away(int fd) noexcept nogil:
    """Refuse a connection, by a reset: it leaves nothing behind in the kernel, where a FIN would
    keep the socket for a minute, and its client sees that this is no answer. It has cost no
    slot, and nobody on the Trio side knows of it."""
    cdef linger_t option
    option.l_onoff = 1
    option.l_linger = 0
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &option, sizeof(option))
    close(fd)


cdef bint _hand_over(Reactor *reactor, Slot *port, int fd) noexcept nogil:
    """Give an accepted descriptor a slot, a reactor and a place in the queue;
    True if that filled the queue."""
    cdef Slot *slot = reactor.spare
    cdef Reactor *target = reactor
    reactor.spare = NULL
    if not port.mark.pinned:
        target = _choose(reactor)
    slot.fd = fd
    slot.family = port.family
    slot.limits = port.limits
    slot.opened = reactor.now
    if port.limits.idle or port.limits.idle_write:
        wk_u64_store_relaxed(&slot.idle_since, slot.opened)
        wk_u32_store_relaxed(&slot.idle, strictest(port.limits.idle, port.limits.idle_write))
    wk_place_store(&slot.reactor, target)
    wk_u32_add(&target.connections, 1)
    wk_u64_add(&port.beyond.listener.tally.accepted, 1)
    if target == reactor:
        watch(reactor, slot)
    else:
        reactor_post(slot, ADD)
    return _enqueue(reactor, port, slot)


cdef bint _enqueue(Reactor *reactor, Slot *port, Slot *slot) noexcept nogil:
    cdef Slot *listener = port.beyond.listener
    cdef uint32_t bits = 0
    cdef bint full = False
    cdef bint refused
    pthread_mutex_lock(&listener.lock)
    refused = listener.refusing
    if not refused:
        queue_append(&listener.by_kind.oldest, &listener.door.newest, slot)
        listener.waiting += 1
        full = listener.waiting >= port.waiting_for.accept_queue
        port.paused = full
        bits = take_acceptor(listener)
    pthread_mutex_unlock(&listener.lock)
    if refused:
        reactor_post(slot, DROP)
    notify(reactor, listener, bits)
    return full


cdef void _fail(Reactor *reactor, Slot *port, int error) noexcept nogil:
    """The listening socket itself is broken: `accept` raises that."""
    cdef Slot *listener = port.beyond.listener
    cdef uint32_t bits
    cdef epoll_event unused
    end_shortage(reactor, port)
    # EPOLLHUP cannot be disarmed, and would be reported in every turn.
    epoll_ctl(reactor.epfd, EPOLL_CTL_DEL, port.fd, &unused)
    pthread_mutex_lock(&listener.lock)
    listener.error = error
    bits = take_acceptor(listener)
    pthread_mutex_unlock(&listener.lock)
    notify(reactor, listener, bits)
