"""Adapters for software that this package does not depend on. Each module imports its own."""
