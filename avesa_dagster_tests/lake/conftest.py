from __future__ import annotations

from pathlib import Path

import pytest

from avesa_dagster.catalog.models import Catalog
from avesa_dagster.lake.objects import LocalObjects

from ..canonical.lakes import small_catalog


@pytest.fixture
def objects(tmp_path: Path) -> LocalObjects:
    return LocalObjects(tmp_path / "lake")


@pytest.fixture
def catalog() -> Catalog:
    return small_catalog()
