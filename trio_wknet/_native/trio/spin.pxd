# Looking on for a moment before sleeping. See spin.pyx for when and why.
from libc.stdint cimport uint32_t, uint64_t

from ..reactor.hub cimport Hub

cdef struct PingPong:
    void *latest            # who was heard last; compared, and never followed
    void *before            # and before the last sleep
    uint32_t heard          # completions since then
    uint32_t luck           # 0: looking on was in vain
    uint32_t passed         # chances not taken, for want of luck

cdef void ping_pong_new(PingPong *game) noexcept nogil
cdef bint ping_pong_goes_on(PingPong *game) noexcept nogil
cdef void ping_pong_note(PingPong *game, bint found) noexcept nogil
cdef bint look_on(Hub *hub, uint64_t until) noexcept nogil

cdef inline void ping_pong_hear(PingPong *game, void *whom) noexcept nogil:
    game.heard += 1
    game.latest = whom
