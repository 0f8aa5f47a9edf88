"""What both sides stand on: atomics, the interface of the kernel and of pthreads, bits. Holds no
state."""
