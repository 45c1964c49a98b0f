"""Measurements of ours beside what others do; `python -m benchmarks.NAME [--json] [--quick]`."""
