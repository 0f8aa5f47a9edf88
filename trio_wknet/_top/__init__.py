"""The page of shared memory by which an engine can be watched, and what reads it."""
