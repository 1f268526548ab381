"""The aws profile for scenarios: moto's server, and Debian's Postgres for Dagster's records."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from avesa_dagster.conformance.ground import make
from avesa_dagster.settings import Aws
from avesa_dagster_tests.moto import Moto
from avesa_dagster_tests.postgres import Postgres

_PROFILE = "AVESA_PROFILE"


@contextmanager
def cloud() -> Iterator[None]:
    """Until the block ends, this process and those that it starts find both by the environment.

    Raises:
        Failed: Postgres is not installed.
    """
    before = dict(os.environ)
    with Moto() as moto, Postgres() as postgres:
        os.environ.update(moto.environment)
        os.environ.update(postgres.environment)
        os.environ[_PROFILE] = "aws"
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def place_of(home: Path) -> Mapping[str, str]:
    """The environment of an installation at `home`; in the cloud, with tables, a bucket and a
    database of its own, which are made."""
    if os.environ.get(_PROFILE) != "aws":
        return {}
    name = hashlib.blake2b(str(home).encode(), digest_size=6).hexdigest()
    make(Aws(f"s{name}", f"avesa-soak-{name}"))
    Postgres.renew(os.environ)
    os.environ.update({"AVESA_ENVIRONMENT": f"s{name}", "AVESA_BUCKET": f"avesa-soak-{name}"})
    return os.environ
