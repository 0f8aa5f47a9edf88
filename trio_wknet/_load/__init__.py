"""Load against a server: for ``trio_wknet bench``, the demo and the benchmarks."""
