"""How the two sides wake each other: an eventfd each way, written at most once for any
number of messages."""
from libc.stdint cimport uint32_t, uint64_t

from ..base.atomics cimport wk_fence, wk_u32_exchange, wk_u32_load, wk_u32_store, wk_u64_add
from ..base.linux cimport read, write
from .hub cimport Hub, Job, Reactor
from .mailbox cimport notification_mark, mailbox_push
from .slot cimport Slot


cdef void eventfd_signal(int fd) noexcept nogil:
    cdef uint64_t one = 1
    # Fails only when the counter is full, and then the eventfd is readable anyway.
    cdef ssize_t ignored = write(fd, &one, sizeof(one))


cdef void eventfd_clear(int fd) noexcept nogil:
    cdef uint64_t count
    cdef ssize_t ignored = read(fd, &count, sizeof(count))


cdef void hub_wake(Hub *hub) noexcept nogil:
    """Wake Trio if it sleeps, once for any number of callers.

    The caller has pushed completions, or has found some, and then loads `asleep`; Trio stores
    `asleep`, and then checks for completions. With a full fence between the two steps on each
    side, at least one of them sees the other's store (Dekker), so Trio never sleeps while there
    is mail."""
    wk_fence()
    if wk_u32_load(&hub.asleep) and wk_u32_exchange(&hub.asleep, 0):
        wk_u64_add(&hub.wakes, 1)
        eventfd_signal(hub.wakefd)


cdef void kick(void *which) noexcept nogil:
    """Wake a reactor, once for any number of callers. The flag is cleared before the
    commands are taken, so a command that is pushed later writes the eventfd again."""
    cdef Reactor *reactor = <Reactor *>which
    if wk_u32_exchange(&reactor.kicked, 1) == 0:
        eventfd_signal(reactor.wakefd)


cdef void reactor_post(Slot *slot, uint32_t command) noexcept nogil:
    """Post a command to a slot's reactor; callable in any thread."""
    cdef Reactor *reactor = <Reactor *>slot.reactor
    if notification_mark(&slot.command, command):
        mailbox_push(&reactor.commands, &slot.command, &slot.command)
        kick(reactor)


cdef void reactor_give(Reactor *reactor, Job *job) noexcept nogil:
    """Have a reactor run a job in its next turn; callable in any thread. The reactor owns the
    job from here on."""
    mailbox_push(&reactor.jobs, &job.link, &job.link)
    kick(reactor)


cdef void reactor_stop(Reactor *reactor) noexcept nogil:
    """Ask a reactor's thread to end."""
    wk_u32_store(&reactor.stopping, 1)
    kick(reactor)
