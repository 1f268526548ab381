"""Erasing a tenant of an installation on AWS: no version is left, and another host may go on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from avesa_dagster.conformance.ground import make
from avesa_dagster.control.dynamo_tables import HEALTH
from avesa_dagster.erasure.erasing import Receipt
from avesa_dagster.errors import ConfigurationError, RetriableError
from avesa_dagster.installation import Installation
from avesa_dagster.settings import Aws, Settings

from .control.conftest import environment_of
from .erasable import furnish, traces_on_aws
from .moto import Moto
from .test_erasure import ACME, FORK, MAPPINGS, NoRuns, erased, on

THEIRS = "acme2"


@pytest.fixture
def where(aws: Moto, tmp_path: Path) -> Aws:
    environment = environment_of(tmp_path).environment
    found = Aws(environment, f"erased-{environment}")
    make(found)
    return found


def host(where: Aws, home: Path) -> Installation:
    return Installation(Settings(home=home, mappings=MAPPINGS, aws=where))


def furnished(where: Aws, home: Path) -> Installation:
    there = host(where, home)
    for tenant in ("acme", THEIRS):
        furnish(there, tenant)
    key = "acme/raw/connectwise/tickets/dt=2026-01-01/0000.parquet"
    there.objects.put(key, b"acme-content of another version")
    there.objects.delete(key)
    return there


def test_nothing_of_the_tenant_is_left_and_all_of_the_other(where: Aws, tmp_path: Path) -> None:
    there = furnished(where, tmp_path)
    before, theirs = traces_on_aws(where, ACME), traces_on_aws(where, THEIRS)
    places = ("mark", "version of acme", "version of _avesa/registry", "upload", "item", "secret")
    assert all(any(found.startswith(place) for found in before) for place in places), before
    receipt = erased(there)
    assert traces_on_aws(where, ACME) == []
    still = traces_on_aws(where, THEIRS)
    own = ("mark", "version of acme2", "upload", "item of Chunk", "item of Backfill", "secret")
    assert [found for found in still if found.startswith(own)] == [
        found for found in theirs if found.startswith(own)
    ]
    assert [row.tenant for row in there.profile.snapshot.read()] == [THEIRS]
    assert (receipt.objects, receipt.secrets, receipt.not_erased) == (3, ["connectwise"], [])
    assert receipt.rows["TenantServices"] == 1 and receipt.rows["ChunkProgress"] == 1


def _erase_until(where: Aws, home: Path, moment: str) -> None:
    erased(host(where, home), say=on(moment, lambda: os.kill(os.getpid(), signal.SIGKILL)))


def test_killed_on_one_host_it_ends_alike_on_another(where: Aws, tmp_path: Path) -> None:
    receipts: list[Receipt] = []
    for moment in ("removing runs", "closing the journal"):
        furnished(where, tmp_path / "first")
        child = FORK.Process(target=_erase_until, args=(where, tmp_path / "first", moment))
        child.start()
        child.join(60)
        assert child.exitcode == -signal.SIGKILL
        other = host(where, tmp_path / "other")
        locks = [("locks", "erasure")]
        other.control.database.remove(HEALTH, locks)  # it would wait until it is taken for dead
        receipts.append(erased(other))
        assert traces_on_aws(where, ACME) == [], moment
    assert [receipt.interruptions for receipt in receipts] == [1, 1]
    same = ("objects", "bytes", "keys_sha256", "rows", "secrets")
    assert all(
        [getattr(receipt, name) for name in same] == [getattr(receipts[0], name) for name in same]
        for receipt in receipts
    )


def test_one_that_was_taken_for_dead_ends_where_it_notices(where: Aws, tmp_path: Path) -> None:
    there, other = furnished(where, tmp_path / "first"), host(where, tmp_path / "other")

    def another() -> None:
        other.control.database.remove(HEALTH, [("locks", "erasure")])
        with pytest.raises(RetriableError, match="run 17"):
            erased(other, history=NoRuns(["run 17"]))

    with pytest.raises(ConfigurationError, match="another erasure of the tenant runs"):
        erased(there, say=on("removing credentials", another))
    assert erased(other).interruptions == 2
    assert traces_on_aws(where, ACME) == []
