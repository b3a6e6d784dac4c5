"""Benchmarks: one file a claim, each run as ``python -m benchmarks.NAME``; README.md is the contract."""
