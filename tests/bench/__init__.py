"""Benchmarks: one per claim of docs/benchmarks.md, each a ratio of two things measured in one run."""
