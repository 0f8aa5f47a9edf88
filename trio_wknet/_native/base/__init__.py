"""What both wings use: atomics, the interface of the kernel and of pthreads, bits. It holds no
state."""
