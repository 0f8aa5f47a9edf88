# The process's table of descriptors, grown before it is full.
#
# Linux doubles the table when a descriptor does not fit. Where a process has several threads, it
# waits meanwhile until none of them can be reading the old one (expand_fdtable in fs/file.c, by
# synchronize_rcu): 15 to 35 ms, measured at 256, 512, 1024 descriptors and so on, in the midst of
# accept(2), and everybody whom that thread serves waits as long. A table never shrinks. So it is
# grown ahead of time: to FIRST when an engine is opened, and from then on, whenever it is half
# full, by a thread that does nothing else. Threads that need no larger one do not wait for that.
#
# The state is the process's. A forked child's table is smaller than it believes: it waits, as it
# would without this.
cdef void descriptors_begin() noexcept nogil
cdef void descriptors_note(int fd) noexcept nogil
