"""Proofs of the backfill jobs on real processes: `python -m avesa_dagster_tests.soak`.

Heavier than tests may be: each scenario runs webserver, daemon and code server for minutes.
"""
