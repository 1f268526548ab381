"""Drift: what a service changed is said once, and nothing else is said."""

from __future__ import annotations

import json
import multiprocessing
import random
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avesa_dagster.control.health import Drift, DriftLog, FieldSeen
from avesa_dagster.control.sqlite import SqliteControl
from avesa_dagster.extract.drift import Scope, note
from avesa_dagster.extract.profile import MOST_PATHS, Profile

from .support import NOW

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def log(tmp_path: Path) -> DriftLog:
    return SqliteControl(tmp_path / "control.db").drift


def profile_of(records: Iterable[Any]) -> Profile:
    profile = Profile()
    profile.add(json.dumps(record) for record in records)
    return profile


def see(
    log: DriftLog, records: Iterable[Any], days: float = 0, scope: Scope = Scope.CHANGES
) -> list[Drift]:
    moment = NOW + timedelta(days=days)
    return note(log, "acme", "s", "t", profile_of(records), moment, scope=scope)


def said(drifts: list[Drift]) -> list[tuple[str, str]]:
    return [(drift.kind, drift.path) for drift in drifts]


def known(log: DriftLog) -> dict[str, FieldSeen]:
    return log.fields("acme", "s", "t")


def test_the_first_observation_is_the_baseline(log: DriftLog) -> None:
    assert see(log, [{"id": 1, "company": {"id": 2}}]) == []
    assert log.log("acme") == []
    assert known(log) == {
        "company": FieldSeen("company", ("object",), NOW, NOW, 1, 1),
        "company.id": FieldSeen("company.id", ("integer",), NOW, NOW, 1, 1),
        "id": FieldSeen("id", ("integer",), NOW, NOW, 1, 1),
    }


def test_who_saw_no_record_makes_no_baseline(log: DriftLog) -> None:
    assert see(log, []) == []
    assert see(log, [[1], "no record"]) == []
    assert known(log) == {}
    assert see(log, [{"id": 1}]) == []


def test_a_new_field_is_said_once_with_its_types_and_share(log: DriftLog) -> None:
    see(log, [{"id": 1}])
    drifts = see(log, [{"id": 1}, {"id": 2, "zip": "x"}, {"id": 3, "zip": None}], 1)
    assert drifts == [
        Drift(
            "acme", "s", "t", "new", "zip",
            "null, string; in 2 of 3 records that were looked at", NOW + timedelta(days=1),
        )
    ]  # fmt: skip
    assert log.log("acme") == drifts
    assert see(log, [{"id": 2, "zip": "x"}], 2) == []


def test_of_a_new_object_one_line_tells(log: DriftLog) -> None:
    see(log, [{"id": 1, "site": {"id": 1}}])
    new = {"id": 1, "site": {"id": 1, "name": "x"}, "sla": {"id": 1, "_info": {"x": 1}}, "l": [[1]]}
    assert said(see(log, [new], 1)) == [("new", "l"), ("new", "sla"), ("new", "site.name")]
    assert {"sla._info.x", "l[][]"} <= known(log).keys()


def test_another_type_is_said_and_null_is_none(log: DriftLog) -> None:
    see(log, [{"a": "x", "b": 1.5, "c": None, "d": 1, "e": "x"}])
    assert see(log, [{"a": None, "b": 2, "c": "x", "d": None, "e": "y"}], 1) == []
    [a, d] = see(log, [{"a": 1, "b": None, "c": None, "d": 1.5, "e": "z"}], 2)
    assert (a.kind, a.path, a.detail) == ("retyped", "a", "string before, now also integer")
    assert (d.kind, d.path, d.detail) == ("retyped", "d", "integer before, now also number")
    assert see(log, [{"a": "x", "d": 1}, {"a": 1, "d": 2.5}], 3) == []
    assert known(log)["a"].types == ("integer", "null", "string")


def test_an_object_that_becomes_a_text_is_retyped(log: DriftLog) -> None:
    see(log, [{"board": {"id": 1, "name": "x"}}])
    assert said(see(log, [{"board": "x"}], 1)) == [("retyped", "board")]


FULL = {"id": 1, "zip": "x", "site": {"id": 1}}
BARE = {"id": 1}


def test_a_small_sync_does_not_shout_that_a_field_has_vanished(log: DriftLog) -> None:
    see(log, [FULL] * 100)
    for day in range(1, 100):
        assert see(log, [BARE] * 5, day) == []
    [site, zip_code] = see(log, [BARE] * 5, 100)
    assert (site.path, zip_code.kind, zip_code.path) == ("site", "vanished", "zip")
    assert zip_code.detail == (
        "string; in 100% of the records before, in none of the last 500 that were looked at"
    )
    assert see(log, [BARE] * 600, 101) == []
    assert said(see(log, [BARE, FULL], 102)) == [("returned", "site"), ("returned", "zip")]
    assert see(log, [BARE, FULL], 103) == []


def test_a_field_that_is_seen_between_has_not_vanished(log: DriftLog) -> None:
    see(log, [FULL] * 100)
    for day in range(1, 10):
        assert see(log, [BARE] * 499, 2 * day) == []
        assert see(log, [FULL] * 600, 2 * day + 1) == []


def test_a_field_that_few_records_had_does_not_vanish(log: DriftLog) -> None:
    see(log, [FULL] * 50 + [BARE] * 50)
    assert see(log, [BARE] * 5_000, 1) == []
    assert not known(log)["zip"].gone


def test_records_without_a_field_count_when_it_is_seen_again(log: DriftLog) -> None:
    see(log, [FULL] * 60)
    see(log, [BARE] * 400, 1)
    see(log, [FULL], 2)
    assert (known(log)["zip"].looked, known(log)["zip"].seen) == (461, 61)
    assert see(log, [BARE] * 5_000, 3) == [], "61 of 461 are not most"


def test_of_few_records_nobody_knows_what_most_have(log: DriftLog) -> None:
    see(log, [FULL] * 19)
    assert see(log, [BARE] * 5_000, 1) == []


def test_a_field_without_a_value_has_not_vanished(log: DriftLog) -> None:
    see(log, [FULL] * 100)
    assert said(see(log, [{"id": 1, "zip": None, "site": None}] * 500, 1)) == [
        ("vanished", "site.id")
    ]


def test_a_full_pull_sees_at_once_that_a_field_has_vanished(log: DriftLog) -> None:
    see(log, [FULL] * 30, scope=Scope.WHOLE)
    assert see(log, [BARE] * 19, 1, Scope.WHOLE) == []
    assert said(see(log, [BARE] * 30, 2, Scope.WHOLE)) == [
        ("vanished", "site"),
        ("vanished", "zip"),
    ]
    assert see(log, [BARE] * 30, 3, Scope.WHOLE) == []


def test_history_completes_what_is_known_and_tells_only_of_types(log: DriftLog) -> None:
    see(log, [FULL] * 100)
    old = {"id": "A-1", "fax": "x"}
    assert said(see(log, [old] * 5_000, 1, Scope.HISTORY)) == [("retyped", "id")]
    assert see(log, [{"id": 1, "zip": "x", "fax": "x", "site": {"id": 1}}], 2) == []
    assert see(log, [BARE] * 499, 3) == []
    assert said(see(log, [BARE], 4)) == [("vanished", "site"), ("vanished", "zip")]
    assert see(log, [FULL], 5, Scope.HISTORY) == [], "what old records have is no return"
    assert known(log)["zip"].gone
    assert said(see(log, [FULL], 6)) == [("returned", "site"), ("returned", "zip")]


def test_a_backfill_first_makes_no_field_one_that_most_records_have(log: DriftLog) -> None:
    see(log, [FULL] * 5_000, scope=Scope.HISTORY)
    assert see(log, [BARE] * 5_000, 1) == []


def test_the_past_fades(log: DriftLog) -> None:
    see(log, [FULL] * 9_000)
    for day in range(1, 12):
        see(log, [FULL] + [BARE] * 999, day)
    assert known(log)["zip"].looked <= 10_000
    for day in range(12, 30):
        assert see(log, [FULL] + [BARE] * 999, day) == []
    assert see(log, [BARE] * 600, 30) == [], "few records had it lately"


def test_moments_never_turn_round(log: DriftLog) -> None:
    see(log, [FULL], 5)
    see(log, [FULL], 3)
    see(log, [FULL], 4)
    field = known(log)["zip"]
    assert (field.first_seen, field.last_seen) == (NOW + timedelta(3), NOW + timedelta(5))


def test_tables_do_not_share_a_baseline(log: DriftLog) -> None:
    see(log, [BARE])
    assert note(log, "acme", "s", "other", profile_of([FULL]), NOW) == []
    assert note(log, "initech", "s", "t", profile_of([FULL]), NOW) == []
    assert known(log).keys() == {"id"}


def test_keys_that_are_data_are_folded_over_observations(log: DriftLog) -> None:
    users = [{"by": {f"user{n}": {"at": n}}, "id": n} for n in range(600)]
    see(log, users[:150])
    assert len(known(log)) == 302
    assert see(log, users[150:300], 1) == []
    assert known(log).keys() == {"by", "by.{}", "by.{}.at", "id"}
    assert see(log, users[300:310], 2) == []
    assert said(see(log, [{"by": {"x": {"at": 1, "on": True}}}], 3)) == [("new", "by.{}.on")]
    assert said(see(log, [{"by": {"x": 1.5}}], 4)) == [("retyped", "by.{}")]
    see(log, [{"id": 1, "by": {}}] * 5_000, 5)
    assert not any(drift.kind == "vanished" for drift in log.log("acme"))


def test_a_table_never_has_too_many_fields(log: DriftLog) -> None:
    def bush(prefix: str) -> dict[str, Any]:
        return {f"{prefix}{n}": {f"x{m}": m for m in range(150)} for n in range(10)}

    assert see(log, [bush("a")]) == []
    assert said(see(log, [bush("b")], 1)) == [
        ("new", path) for path in sorted(f"b{n}" for n in range(10))
    ]
    assert len(known(log)) == MOST_PATHS
    assert see(log, [bush("b")], 2) == []
    assert see(log, [bush("c")], 3) == []
    assert len(known(log)) == MOST_PATHS


VALUES = st.recursive(
    st.sampled_from([None, True, 1, 1.5, "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner),
    max_leaves=8,
)
RECORDS = st.lists(st.dictionaries(st.sampled_from("abcdef"), VALUES), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(
    observations=st.lists(RECORDS, min_size=1, max_size=4),
    scope=st.sampled_from(list(Scope)),
    seed=st.randoms(use_true_random=False),
)
def test_noting_again_says_nothing_the_second_time(
    observations: list[list[dict[str, Any]]], scope: Scope, seed: random.Random
) -> None:
    with TemporaryDirectory() as folder:
        log = SqliteControl(Path(folder) / "control.db").drift
        for number, records in enumerate(observations):
            drifts = see(log, records, number, scope)
            assert number or drifts == []
            assert len(set(said(drifts))) == len(drifts)
            assert see(log, records, number, scope) == []
            assert see(log, seed.choice(observations[: number + 1]), number, scope) == []
        fields = profile_of(record for records in observations for record in records).fields()
        held = known(log)
        assert {path: set(held[path].types) for path in held} == {
            path: set(found.types) for path, found in fields.items()
        }
        assert all(drift.path in held for drift in log.log("acme"))


def _observe(folder: str, worker: int) -> list[tuple[str, str]]:
    log = SqliteControl(Path(folder) / "control.db").drift
    lines = []
    for number in range(15):
        record = {"id": 1, f"own{worker}x{number}": 1, f"shared{number}": 1, "typed": worker}
        lines += said(see(log, [record], number))
    return lines


def _check(folder: Path, workers: int, lines: list[tuple[str, str]]) -> None:
    """Asserts that each field and type is known, each was said once, and the counts add up."""
    log = SqliteControl(folder / "control.db").drift
    own = {f"own{worker}x{number}" for worker in range(workers) for number in range(15)}
    shared = {f"shared{number}" for number in range(15)}
    assert known(log).keys() == {"id", "typed"} | own | shared
    expected = [("new", path) for path in sorted(own | shared)]
    assert sorted(lines) == expected
    assert sorted(said(log.log("acme", limit=1_000))) == expected
    counted = known(log)["id"]
    assert (counted.looked, counted.seen) == (1 + 15 * workers, 1 + 15 * workers)


def test_two_threads_that_note_at_once_lose_nothing(tmp_path: Path) -> None:
    see(SqliteControl(tmp_path / "control.db").drift, [{"id": 1, "typed": 0}])
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda worker: _observe(str(tmp_path), worker), range(2)))
    _check(tmp_path, 2, [line for lines in found for line in lines])


def test_two_processes_that_note_at_once_lose_nothing(tmp_path: Path) -> None:
    see(SqliteControl(tmp_path / "control.db").drift, [{"id": 1, "typed": 0}])
    with SPAWN.Pool(2) as pool:
        found = pool.starmap(_observe, [(str(tmp_path), worker) for worker in range(2)])
    _check(tmp_path, 2, [line for lines in found for line in lines])
