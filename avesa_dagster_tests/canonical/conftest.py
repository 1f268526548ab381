from __future__ import annotations

from pathlib import Path

import pytest

from avesa_dagster.catalog.models import Catalog
from avesa_dagster.lake.objects import LocalObjects, Objects
from avesa_dagster.lake.s3 import S3Objects

from .lakes import small_catalog

ON_S3 = {
    "test_history": (
        "test_a_deletion_closes_and_a_later_look_opens_a_row_of_its_own",
        "test_a_rebuild_with_nothing_new_writes_nothing",
        "test_a_vanished_generation_is_built_again",
        "test_a_partition_that_is_replaced_while_it_is_read_is_read_again",
        "test_a_broken_manifest_is_named",
    ),
    "test_versions": (
        "test_the_latest_observation_wins_and_ties_go_to_the_greatest_hash",
        "test_row_groups_have_their_fixed_size_and_rows_their_order",
        "test_building_again_leaves_the_tag",
        "test_a_broken_raw_object_is_a_store_error",
        "test_raw_that_comes_while_building_is_built_too",
    ),
}
"""What runs over both lakes: what reads or replaces objects in the middle of something. What is
only about content needs one."""


@pytest.fixture
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    """A new lake: a folder, or a bucket where a test is parametrised (indirectly) with `s3`."""
    if getattr(request, "param", "local") == "s3":
        return S3Objects(request.getfixturevalue("bucket"))
    return LocalObjects(tmp_path / "lake")


@pytest.fixture
def catalog() -> Catalog:
    return small_catalog()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    module = metafunc.module.__name__.rpartition(".")[2]
    if metafunc.function.__name__ in ON_S3.get(module, ()):
        metafunc.parametrize("objects", ["local", "s3"], indirect=True)
