"""Benchmarks: see `python -m experiments.bench --help`."""
