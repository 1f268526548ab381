"""What every DriftLog does: it keeps what is known of the fields, and the log, as one."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from avesa_dagster.control.health import Drift, DriftLog, Fields, FieldSeen
from avesa_dagster.errors import ConfigurationError, DataError

from .conftest import Control, Opener, day

SPAWN = multiprocessing.get_context("spawn")


def field(path: str, *types: str, seen: int = 0) -> FieldSeen:
    return FieldSeen(path, types or ("string",), day(0), day(seen), looked=9, seen=4, absent=2)


def line(path: str, number: int = 0, table: str = "t", service: str = "s") -> Drift:
    return Drift("acme", service, table, "new", path, f"detail {number}", day(number))


def put(log: DriftLog, fields: Sequence[FieldSeen], drifts: Sequence[Drift] = ()) -> list[Drift]:
    known = {field.path: field for field in fields}
    return log.note("acme", "s", "t", lambda _: (known, drifts))


def test_nothing_is_known_at_first(control: Control) -> None:
    assert control.drift.fields("acme", "s", "t") == {}
    assert control.drift.log("acme") == []


def test_what_was_noted_is_known_whole(opener: Opener, tmp_path: Path) -> None:
    fields = [field("a[].x", "array", "null"), field("ä"), FieldSeen("b", (), day(0), day(1))]
    lines = [line("ä"), line("b", 1)]
    assert put(opener(tmp_path).drift, fields, lines) == lines
    log = opener(tmp_path).drift
    assert log.fields("acme", "s", "t") == {field.path: field for field in fields}
    assert list(log.fields("acme", "s", "t")) == ["a[].x", "b", "ä"]
    assert log.log("acme") == lines[::-1]
    assert log.fields("acme", "s", "other") == {}


def test_the_judge_is_given_what_is_known_and_replaces_it(control: Control) -> None:
    put(control.drift, [field("a"), field("b")])
    seen: list[Fields] = []

    def judge(known: Fields) -> tuple[Fields, Sequence[Drift]]:
        seen.append(dict(known))
        return {"b": field("b", seen=5)}, []

    assert control.drift.note("acme", "s", "t", judge) == []
    assert seen[0] == {"a": field("a"), "b": field("b")}
    assert control.drift.fields("acme", "s", "t") == {"b": field("b", seen=5)}


def test_an_error_of_the_judge_leaves_all_as_it_was(control: Control) -> None:
    put(control.drift, [field("a")], [line("a")])

    def judge(known: Fields) -> tuple[Fields, Sequence[Drift]]:
        raise DataError("no")

    with pytest.raises(DataError):
        control.drift.note("acme", "s", "t", judge)
    naive = FieldSeen("b", (), day(0), day(0).replace(tzinfo=None))
    with pytest.raises(ConfigurationError, match="time zone"):
        put(control.drift, [naive], [line("b")])
    with pytest.raises(ConfigurationError, match="table name"):
        control.drift.note("acme", "s", "../t", lambda known: (known, []))
    assert list(control.drift.fields("acme", "s", "t")) == ["a"]
    assert control.drift.log("acme") == [line("a")]


def test_the_log_is_newest_first_in_a_stable_order(control: Control) -> None:
    put(control.drift, [], [line("a", 1), line("b", 1), line("late", 3)])
    put(control.drift, [], [line("c", 1), line("early", 0)])
    paths = [drift.path for drift in control.drift.log("acme")]
    assert paths == ["late", "c", "b", "a", "early"]
    assert [drift.path for drift in control.drift.log("acme", limit=2)] == paths[:2]
    with pytest.raises(ConfigurationError, match="limit"):
        control.drift.log("acme", limit=0)


def test_the_log_can_be_asked_for_a_service_or_a_table(control: Control) -> None:
    lines = [line("a"), line("b", table="u"), line("c", service="z"), line("d", 0, "u", "z")]
    put(control.drift, [], lines)

    def paths(service: str | None = None, table: str | None = None) -> str:
        return "".join(sorted(d.path for d in control.drift.log("acme", service, table)))

    assert (paths(), paths("s"), paths("z", "u"), paths(None, "u")) == ("abcd", "ab", "d", "bd")
    assert control.drift.log("initech") == []


def test_a_moment_comes_back_to_the_microsecond(control: Control) -> None:
    moment = day(0) + timedelta(microseconds=123_457)
    put(control.drift, [FieldSeen("a", ("null",), moment, moment)])
    held = control.drift.fields("acme", "s", "t")["a"]
    assert (held.first_seen, held.last_seen) == (moment, moment)
    assert held.last_seen.utcoffset() == timedelta(0)


def test_a_tenant_is_forgotten(control: Control) -> None:
    put(control.drift, [field("a")], [line("a"), line("b")])
    control.drift.note("initech", "s", "t", lambda _: ({"a": field("a")}, []))
    assert control.drift.forget("acme") == 3
    assert control.drift.fields("acme", "s", "t") == {}
    assert control.drift.log("acme") == []
    assert list(control.drift.fields("initech", "s", "t")) == ["a"]


def _note_often(opener: Opener, folder: str, worker: int) -> None:
    log = opener(Path(folder)).drift
    for number in range(20):
        path = f"p{worker}-{number}"

        def judge(known: Fields, path: str = path) -> tuple[Fields, Sequence[Drift]]:
            return {**known, path: field(path)}, [line(path)]

        log.note("acme", "s", "t", judge)


def test_no_note_of_several_processes_is_lost(opener: Opener, tmp_path: Path) -> None:
    workers = [SPAWN.Process(target=_note_often, args=(opener, str(tmp_path), n)) for n in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    expected = {f"p{worker}-{number}" for worker in range(2) for number in range(20)}
    log = opener(tmp_path).drift
    assert set(log.fields("acme", "s", "t")) == expected
    assert {drift.path for drift in log.log("acme")} == expected
