"""Measured ratios behind the claims in ``docs/benchmarks.md``."""
