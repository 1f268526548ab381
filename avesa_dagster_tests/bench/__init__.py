"""Benchmarks: `make bench`, or `python -m avesa_dagster_tests.bench [names…] [--quick]`.

They are commands, never tests: a slow machine fails nothing. What is measured lies in `work/` and
runs in processes of its own; the modules beside it say what is compared with what, and the targets.
"""
