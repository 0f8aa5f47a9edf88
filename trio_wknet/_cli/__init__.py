"""The command line, ``trio_wknet bench`` and ``trio_wknet demo``."""
