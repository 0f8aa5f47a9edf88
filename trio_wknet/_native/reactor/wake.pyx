"""How the two sides wake each other: an eventfd each way, rung at most once
however many have something to say."""
from libc.stdint cimport uint32_t, uint64_t

from ..base.atomics cimport wk_fence, wk_u32_exchange, wk_u32_load, wk_u32_store, wk_u64_add
from ..base.linux cimport read, write
from .hub cimport Hub, Reactor
from .mailbox cimport notification_mark, mailbox_push
from .slot cimport Slot


cdef void eventfd_signal(int fd) noexcept nogil:
    cdef uint64_t one = 1
    # Fails only when the counter is full, and then the bell is ringing anyway.
    cdef ssize_t ignored = write(fd, &one, sizeof(one))


cdef void eventfd_clear(int fd) noexcept nogil:
    cdef uint64_t count
    cdef ssize_t ignored = read(fd, &count, sizeof(count))


cdef void hub_wake(Hub *hub) noexcept nogil:
    """Wake Trio if it sleeps, once however many ask.

    The caller has pushed completions, or has found some; Trio stores `asleep`
    and then looks for completions. With a full fence between the two steps on
    either side at least one of them sees the other's store (Dekker), so Trio
    never sleeps on mail."""
    wk_fence()
    if wk_u32_load(&hub.asleep) and wk_u32_exchange(&hub.asleep, 0):
        wk_u64_add(&hub.wakes, 1)
        eventfd_signal(hub.wakefd)


cdef void kick(void *which) noexcept nogil:
    """Wake a reactor, once however many ask. The flag is cleared before the
    commands are taken, so a command pushed later rings again."""
    cdef Reactor *reactor = <Reactor *>which
    if wk_u32_exchange(&reactor.kicked, 1) == 0:
        eventfd_signal(reactor.wakefd)


cdef void reactor_post(Slot *slot, uint32_t command) noexcept nogil:
    """Ask the reactor of a slot for something; any thread may."""
    cdef Reactor *reactor = <Reactor *>slot.reactor
    if notification_mark(&slot.command, command):
        mailbox_push(&reactor.commands, &slot.command, &slot.command)
        kick(reactor)


cdef void reactor_stop(Reactor *reactor) noexcept nogil:
    """Ask a reactor's thread to end."""
    wk_u32_store(&reactor.stopping, 1)
    kick(reactor)
