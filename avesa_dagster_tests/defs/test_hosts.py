"""Several hosts over one Postgres: each looks after its own runs only."""

from __future__ import annotations

from collections.abc import Iterator

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from avesa_dagster.defs import aws_home, tags
from avesa_dagster.defs.processes import fail_dead_runs, say_where
from avesa_dagster_tests.postgres import Postgres

NOBODY = 4_000_000
"""More than any process's number."""


@pytest.fixture
def shared() -> Iterator[dg.DagsterInstance]:
    if not Postgres.installed():
        pytest.skip("needs Debian's postgresql")
    with Postgres() as server:
        reached = {
            "hostname": "127.0.0.1",
            "port": server.port,
            "username": aws_home.USER,
            "password": server.environment["AVESA_DATABASE_PASSWORD"],
            "db_name": aws_home.DATABASE,
        }
        storage = {"storage": {"postgres": {"postgres_db": reached}}}
        with dg.instance_for_test(overrides=storage) as instance:
            yield instance


def dead(instance: dg.DagsterInstance, **said: str) -> str:
    """A run that is started, of a process that is gone; returns its id."""
    run = create_run_for_test(instance, status=dg.DagsterRunStatus.STARTED, tags=said)
    instance.report_engine_event(f"Started process for run (pid: {NOBODY}).", run)
    return run.run_id


def test_only_a_run_that_was_here_is_failed(shared: dg.DagsterInstance) -> None:
    silent, mine = dead(shared), dead(shared)
    elsewhere = dead(shared, **{tags.HOST: "another-host/1"})
    say_where(shared, mine)
    retried = dead(shared, **shared.get_run_by_id(mine).tags)  # type: ignore[union-attr]
    assert fail_dead_runs(shared) == [mine]
    left = shared.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
    assert {run.run_id for run in left} == {silent, elsewhere, retried}


def test_alone_every_dead_run_is_failed() -> None:
    with dg.instance_for_test() as instance:
        run = dead(instance)
        say_where(instance, run)
        assert tags.HOST not in instance.get_run_by_id(run).tags  # type: ignore[union-attr]
        assert fail_dead_runs(instance) == [run]
