"""A fast transport backend for Trio."""
