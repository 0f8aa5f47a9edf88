"""The load generator: an epoll loop of its own, for servers of any kind. It may use `base`."""
