# Looking on for a moment before sleeping. See spin.pyx for when and why.
from libc.stdint cimport uint32_t, uint64_t

from ..reactor.hub cimport Hub

cdef struct SpinPolicy:
    void *latest            # who was heard last; compared, and never followed
    void *before            # and before the last sleep
    uint32_t heard          # completions since then
    uint32_t budget           # 0: looking on was in vain
    uint32_t passed         # chances not taken, for want of luck

cdef void spin_policy_new(SpinPolicy *policy) noexcept nogil
cdef bint spin_policy_wants(SpinPolicy *policy) noexcept nogil
cdef void spin_policy_note(SpinPolicy *policy, bint found) noexcept nogil
cdef bint spin_until(Hub *hub, uint64_t until) noexcept nogil

cdef inline void spin_policy_hear(SpinPolicy *policy, void *whom) noexcept nogil:
    policy.heard += 1
    policy.latest = whom
