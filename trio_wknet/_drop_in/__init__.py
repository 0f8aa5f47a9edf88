"""Trio's own functions and classes over an engine: `install`, `run`, and what they replace."""
