"""Plain sockets: addresses, listening, connecting, and what a connection shows as its socket."""
