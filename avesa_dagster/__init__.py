"""AVESA on Dagster: every tenant's business records, complete and historised."""

__version__ = "0.1.0"
