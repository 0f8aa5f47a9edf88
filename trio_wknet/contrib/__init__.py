"""For software that is no dependency of this package: each module imports its own."""
