"""The benches of the extraction tests, for the tests of one source."""

from avesa_dagster_tests.extract.conftest import bench, new_bench, simulator

__all__ = ["bench", "new_bench", "simulator"]
