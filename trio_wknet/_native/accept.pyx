"""Accepting connections in bounded batches, and handing them to reactors.

Ports are watched level triggered: a batch that leaves connections in the
kernel's queue is continued in the next turn. Two things stop a port for a
while, by taking it out of epoll's interest:

* as many connections as `limits.accept_queue` allows wait for accept(): resumed
  by the Trio side once half of them are taken;
* descriptors or memory run out (EMFILE and its kin): resumed when the reactor
  closes something, or by its timer. Nothing is dropped to make room, and no
  thread spins meanwhile (pitfall: libuv's spare descriptor, gnet stopping).

Accepted sockets inherit their options (TCP_NODELAY, buffer sizes, keepalive)
from the listening socket, so an accept costs one accept4 and one epoll_ctl.

Closing a listening socket resets the connections in its queue. So a port that is to
close gracefully accepts first what is there (`accept_rest`). What comes between that
and `close` would be lost. Alone, its clients would be refused a moment later anyway.
But other sockets may listen on the port (reuse_port), and the kernel goes on to give
this one its share. A filter on the socket, which drops SYNs, ends that: they come
again after a second, when it is gone, and the others get them. For handshakes that
have begun the reactor waits GRACE_MS, once in a port's life. Longer would cost more
clients that second than it could save from a reset.
"""
from libc.stdint cimport uint32_t, uint64_t

from trio_wknet._native.atomics cimport (
    wk_u32_add, wk_u32_load_relaxed, wk_u32_store_relaxed, wk_u32_sub, wk_u64_add, wk_u64_load,
    wk_u64_store_relaxed,
)
from trio_wknet._native.conn cimport ACCEPTED, ADD, DROP, OPEN, PORT, Slot
from trio_wknet._native.linux cimport (
    EAGAIN, EBADF, EINVAL, EMFILE, ENFILE, ENOBUFS, ENOMEM, ENOTSOCK, EOPNOTSUPP,
    EPOLLET, EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLRDHUP, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD,
    POLLIN, SOCK_CLOEXEC, SOCK_NONBLOCK, SOL_SOCKET, accept4, epoll_ctl, epoll_event, errno,
    monotonic_ns, poll, pollfd, pthread_mutex_lock, pthread_mutex_unlock, setsockopt,
)
from trio_wknet._native.links cimport list_append, list_remove, queue_append
from trio_wknet._native.matrix cimport matrix_take
from trio_wknet._native.reactor cimport Hub, Reactor, notify
from trio_wknet._native.timeouts cimport timeout_clear, timeout_set
from trio_wknet._native.wake cimport reactor_post

cdef extern from *:
    """
    #include <linux/filter.h>
    #include <sys/socket.h>

    /* The flags of TCP: SYN without ACK is dropped, all else let through. */
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
    MOST_BACKLOG = 65535
    RETRY_NS = 50000000         # how often a port without descriptors is tried
    GRACE_MS = 2                # what a handshake may take that began before a close


cdef bint watch(Reactor *reactor, Slot *slot) noexcept nogil:
    """Add a slot's descriptor to epoll, once in its life."""
    cdef epoll_event event
    event.events = EPOLLIN
    if slot.kind != PORT:
        event.events = EPOLLIN | EPOLLPRI | EPOLLOUT | EPOLLRDHUP | EPOLLET
    event.data.u64 = wk_u64_load(&slot.handle)
    slot.state = OPEN
    if slot.kind != PORT and wk_u32_load_relaxed(&slot.idle):
        timeout_set(reactor, slot)
    return epoll_ctl(reactor.epfd, EPOLL_CTL_ADD, slot.fd, &event) == 0


cdef void _arm(Reactor *reactor, Slot *port, uint32_t events) noexcept nogil:
    cdef epoll_event event
    event.events = events
    event.data.u64 = wk_u64_load(&port.handle)
    epoll_ctl(reactor.epfd, EPOLL_CTL_MOD, port.fd, &event)


cdef void rearm(Reactor *reactor, Slot *port) noexcept nogil:
    """Accept again, if the listener has room."""
    cdef bint full
    pthread_mutex_lock(&port.listener.lock)
    full = port.listener.waiting >= port.limits.accept_queue
    if full:
        port.paused = True
    pthread_mutex_unlock(&port.listener.lock)
    if full:
        return
    if port.disarmed:
        port.disarmed = False
        wk_u32_sub(&port.listener.starved, 1)
        list_remove(&port.ready)
        timeout_clear(reactor, port)
    _arm(reactor, port, EPOLLIN)


cdef void _starve(Reactor *reactor, Slot *port) noexcept nogil:
    """Out of descriptors or memory: stop until something is closed."""
    if not port.disarmed:
        port.disarmed = True
        wk_u32_add(&port.listener.starved, 1)
        list_append(&reactor.starved, &port.ready)
    port.deadline = reactor.now + RETRY_NS
    timeout_set(reactor, port)
    _arm(reactor, port, 0)


cdef Reactor *_choose(Reactor *accepting) noexcept nogil:
    """Who is to own the next connection. With a port for each reactor
    (reuse_port) the kernel has chosen already."""
    cdef Hub *hub = accepting.hub
    cdef Reactor *best = accepting
    cdef uint32_t i
    if hub.round_robin:
        hub.turn += 1
        return hub.reactors[hub.turn % hub.count]
    for i in range(hub.count):
        if (wk_u32_load_relaxed(&hub.reactors[i].connections)
                < wk_u32_load_relaxed(&best.connections)):
            best = hub.reactors[i]
    return best


cdef bint _is_shortage(int error) noexcept nogil:
    return error == EMFILE or error == ENFILE or error == ENOBUFS or error == ENOMEM


cdef bint _is_fatal(int error) noexcept nogil:
    """Errors of the listening socket itself. All others that accept(2) may give
    belong to a connection that died in the queue, and are passed over (the list
    and the argument: trio, _highlevel_socket.py)."""
    return error == EBADF or error == EINVAL or error == ENOTSOCK or error == EOPNOTSUPP


cdef void on_acceptable(Reactor *reactor, Slot *port) noexcept nogil:
    cdef int i, error
    cdef bint full = False
    for i in range(ACCEPT_BATCH):
        error = _accept_one(reactor, port, &full)
        if error == EAGAIN:
            return
        if _is_shortage(error):
            _starve(reactor, port)
            return
        if _is_fatal(error):
            _fail(reactor, port, error)
            return
        if full:
            _arm(reactor, port, 0)
            return


cdef void accept_rest(Reactor *reactor, Slot *port) noexcept nogil:
    """Before a port closes gracefully: take in what the kernel has queued, which
    closing would reset (granian #567, pingora #427)."""
    cdef pollfd late
    cdef uint64_t until
    _accept_queued(reactor, port)
    if not port.keeps:
        return
    if setsockopt(port.fd, SOL_SOCKET, SO_ATTACH_FILTER, &wk_no_syn_program,
                  sizeof(wk_no_syn_program)) != 0:
        return
    late.fd = port.fd
    late.events = POLLIN
    until = monotonic_ns() + <uint64_t>GRACE_MS * 1000000
    while _accept_queued(reactor, port) and monotonic_ns() < until:
        poll(&late, 1, GRACE_MS)


cdef bint _accept_queued(Reactor *reactor, Slot *port) noexcept nogil:
    """As many as the kernel's queue can hold, whatever the listener's own bound. True
    if none is left in it."""
    cdef int i, error
    cdef bint full = False
    for i in range(MOST_BACKLOG):
        error = _accept_one(reactor, port, &full)
        if error == EAGAIN:
            return True
        if _is_shortage(error) or _is_fatal(error):
            return False
    return True


cdef int _accept_one(Reactor *reactor, Slot *port, bint *full) noexcept nogil:
    """Accept a connection; 0 or the errno. A slot is taken first, so that what
    was accepted always has a place."""
    cdef int fd
    if reactor.spare == NULL:
        reactor.spare = matrix_take(reactor.hub.matrix)
    if reactor.spare == NULL:
        return ENOMEM
    fd = accept4(port.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)
    if fd < 0:
        return errno
    full[0] = _hand_over(reactor, port, fd)
    return 0


cdef bint _hand_over(Reactor *reactor, Slot *port, int fd) noexcept nogil:
    """Give an accepted descriptor a slot, a reactor and a place in the queue;
    True if that filled the queue."""
    cdef Slot *slot = reactor.spare
    cdef Reactor *target = reactor
    reactor.spare = NULL
    if not port.keeps:
        target = _choose(reactor)
    slot.fd = fd
    slot.family = port.family
    slot.limits = port.limits
    slot.opened = reactor.now
    if port.limits.idle:
        wk_u64_store_relaxed(&slot.idle_since, slot.opened)
        wk_u32_store_relaxed(&slot.idle, port.limits.idle)
    slot.reactor = target
    wk_u32_add(&target.connections, 1)
    wk_u64_add(&port.listener.accepted, 1)
    if target == reactor:
        if not watch(reactor, slot):
            slot.error = errno
    else:
        reactor_post(slot, ADD)
    return _enqueue(reactor, port, slot)


cdef bint _enqueue(Reactor *reactor, Slot *port, Slot *slot) noexcept nogil:
    cdef Slot *listener = port.listener
    cdef uint32_t bits = 0
    cdef bint full = False
    cdef bint refused
    pthread_mutex_lock(&listener.lock)
    refused = listener.refusing
    if not refused:
        queue_append(&listener.oldest, &listener.newest, slot)
        listener.waiting += 1
        full = listener.waiting >= port.limits.accept_queue
        port.paused = full
        if listener.accept_wanted:
            listener.accept_wanted = False
            bits = ACCEPTED
    pthread_mutex_unlock(&listener.lock)
    if refused:
        reactor_post(slot, DROP)
    notify(reactor, listener, bits)
    return full


cdef void _fail(Reactor *reactor, Slot *port, int error) noexcept nogil:
    """The listening socket itself is broken: whoever accepts is told."""
    cdef Slot *listener = port.listener
    cdef uint32_t bits = 0
    cdef epoll_event unused
    # EPOLLHUP cannot be disarmed, and would be told in every turn.
    epoll_ctl(reactor.epfd, EPOLL_CTL_DEL, port.fd, &unused)
    pthread_mutex_lock(&listener.lock)
    listener.error = error
    if listener.accept_wanted:
        listener.accept_wanted = False
        bits = ACCEPTED
    pthread_mutex_unlock(&listener.lock)
    notify(reactor, listener, bits)
