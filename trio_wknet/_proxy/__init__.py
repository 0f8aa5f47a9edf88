"""The PROXY protocol: what a load balancer says about a connection, and which are trusted."""
