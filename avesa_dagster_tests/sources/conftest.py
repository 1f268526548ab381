"""The benches of the extraction tests, for the tests of one source."""

from avesa_dagster_tests.extract.conftest import (
    _segments_as_they_were,
    bench,
    new_bench,
    simulator,
)

__all__ = ["_segments_as_they_were", "bench", "new_bench", "simulator"]
