# Spinning for a moment before sleeping. See spin.pyx for when and why.
from libc.stdint cimport uint32_t, uint64_t

from ..reactor.hub cimport Hub

cdef struct SpinPolicy:
    void *latest            # the slot of the last completion; compared, never dereferenced
    void *before            # the same before the last sleep
    uint32_t heard          # completions since then
    uint32_t budget         # spins that may still find nothing; 0: do not spin
    uint32_t passed         # chances to spin that were not taken, for lack of a budget

cdef void spin_policy_new(SpinPolicy *policy) noexcept nogil
cdef bint spin_policy_wants(SpinPolicy *policy) noexcept nogil
cdef void spin_policy_note(SpinPolicy *policy, bint found) noexcept nogil
cdef bint spin_until(Hub *hub, uint64_t until) noexcept nogil

cdef inline void spin_policy_hear(SpinPolicy *policy, void *whom) noexcept nogil:
    policy.heard += 1
    policy.latest = whom
