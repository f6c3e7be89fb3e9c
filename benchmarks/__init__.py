"""Measurements that print what they compare with, in the same run. `python -m benchmarks.NAME --help` says how."""
