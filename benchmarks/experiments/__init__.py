"""One question each; ``python benchmarks/experiment.py`` lists them."""
