"""The reactor side: everything below runs, or may run, without the GIL."""
