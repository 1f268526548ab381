"""AWS for the doctor's tests: clients are kept from one to the next."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from avesa_dagster_tests.doctor.support import steady
from avesa_dagster_tests.moto import Moto


@pytest.fixture
def aws(moto: Moto, monkeypatch: pytest.MonkeyPatch) -> Iterator[Moto]:
    yield from steady(moto, monkeypatch)
