"""A profile says which fields payloads have, whatever the order and split in which it sees them."""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avesa_dagster.extract import profile as module
from avesa_dagster.extract.profile import MOST_PATHS, Found, Profile, absent, fold, sample
from avesa_dagster.sandbox.poison import POISONS
from avesa_dagster.sandbox.schema import TABLES
from avesa_dagster.sandbox.world import World, WorldSpec

from .support import NOW, catalog

NAMES = {
    dict: "object", list: "array", str: "string", bool: "boolean", int: "integer",
    float: "number", type(None): "null",
}  # fmt: skip


def profile_of(records: Iterable[Any]) -> Profile:
    profile = Profile()
    profile.add(json.dumps(record).encode() for record in records)
    return profile


def types_of(profile: Profile) -> dict[str, str]:
    return {path: " ".join(sorted(found.types)) for path, found in profile.fields().items()}


def test_nested_objects_and_arrays_are_walked() -> None:
    profile = profile_of(
        [
            {"id": 1, "company": {"id": 7, "_info": {"href": "x"}}, "customFields": []},
            {"id": 2, "company": None, "rate": 1.5, "on": True},
            {
                "id": 3,
                "rate": 2,
                "customFields": [{"id": 1, "value": "a"}, {"id": 2, "value": 3}, {"id": 3}],
                "matrix": [[1, 2], [], [None]],
            },
        ]
    )
    assert profile.fields() == {
        "company": Found(frozenset({"object", "null"}), 2),
        "company._info": Found(frozenset({"object"}), 1),
        "company._info.href": Found(frozenset({"string"}), 1),
        "company.id": Found(frozenset({"integer"}), 1),
        "customFields": Found(frozenset({"array"}), 2),
        "customFields[]": Found(frozenset({"object"}), 1),
        "customFields[].id": Found(frozenset({"integer"}), 1),
        "customFields[].value": Found(frozenset({"string", "integer"}), 1),
        "id": Found(frozenset({"integer"}), 3),
        "matrix": Found(frozenset({"array"}), 1),
        "matrix[]": Found(frozenset({"array"}), 1),
        "matrix[][]": Found(frozenset({"integer", "null"}), 1),
        "on": Found(frozenset({"boolean"}), 1),
        "rate": Found(frozenset({"number", "integer"}), 2),
    }
    assert (profile.records, profile.unreadable) == (3, 0)


def test_names_that_would_be_ambiguous_are_told_apart() -> None:
    record = {
        "a": {"b": 1}, "a.b": "x", "l": [1], "l[]": None, "": {"": 1}, "{}": 1, "%": 1, "%25": 1,
        "line\nbreak": 1, "half \ud83d": 1, "ä": 1,
    }  # fmt: skip
    assert types_of(profile_of([record])) == {
        "a": "object", "a.b": "integer", "a%2Eb": "string", "l": "array", "l[]": "integer",
        "l%5B%5D": "null", "%": "object", "%.%": "integer", "%7B%7D": "integer", "%25": "integer",
        "%2525": "integer", "line%0Abreak": "integer", "half ?": "integer", "ä": "integer",
    }  # fmt: skip


def test_what_is_no_record_is_counted_and_counts_for_nothing_else() -> None:
    profile = Profile()
    profile.add([b"[1]", b"{", b"", b"null", b'{"a": "\xff"}', b"[" * 100_000, '{"a": 1}'])
    assert (profile.records, profile.unreadable) == (1, 6)
    assert types_of(profile) == {"a": "integer"}


@pytest.mark.parametrize("kind", POISONS)
def test_a_poisoned_record_is_looked_at_or_counted(kind: str) -> None:
    world = World(1, WorldSpec(tickets=3), NOW.timestamp())
    [(_, record_id)] = world.poison("tickets", [kind], int(NOW.timestamp())).items()
    profile = Profile()
    profile.add([world.tables["tickets"].records[record_id].versions[-1].payload])
    assert profile.records + profile.unreadable == 1
    assert profile.records == 1 or not profile.fields()
    assert len(profile.fields()) <= MOST_PATHS


# Few names and low limits, so that objects with too many names are common.
VALUES = st.recursive(
    st.sampled_from([None, True, 1, 1.5, "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcde"), inner),
    max_leaves=12,
)
RECORDS = st.lists(st.dictionaries(st.sampled_from(["a", "b", "c", "d.e", "{}"]), VALUES))


@contextmanager
def low_limits() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_MOST_NAMES", 2)
        patch.setattr(module, "_MOST_TOP_NAMES", 4)
        yield


def oracle(records: list[dict[str, Any]], most: tuple[int, int]) -> dict[str, Found]:
    """The fields by the words of the rule, from all of the records at once."""
    types: dict[str, set[str]] = {}
    count: dict[str, int] = {}

    def note(path: str, values: list[list[Any]]) -> None:
        """`values`: for each record (and key, where keys are data), what it holds at the path."""
        types[path] = {NAMES[type(value)] for own in values for value in own}
        count[path] = len(values)
        objects = [[v for v in own if isinstance(v, dict)] for own in values]
        walk(path, [own for own in objects if own], most[0])
        arrays = [[e for v in own if isinstance(v, list) for e in v] for own in values]
        if inner := [own for own in arrays if own]:
            note(f"{path}[]", inner)

    def walk(path: str, groups: list[list[dict[str, Any]]], limit: int) -> None:
        names = {name for group in groups for one in group for name in one}
        inner: dict[str, list[list[Any]]] = {}
        for group in groups:
            for name in sorted({name for one in group for name in one}):
                written = name.replace(".", "%2E").replace("{}", "%7B%7D")
                shown = "{}" if len(names) > limit else written
                held = [one[name] for one in group if name in one]
                inner.setdefault(f"{path}.{shown}" if path else shown, []).append(held)
        for below, values in inner.items():
            note(below, values)

    walk("", [[record] for record in records], most[1])
    return {path: Found(frozenset(types[path]), count[path]) for path in types}


@settings(max_examples=120, deadline=None)
@given(records=RECORDS, seed=st.randoms(use_true_random=False))
def test_any_split_order_and_merge_gives_what_all_records_at_once_give(
    records: list[dict[str, Any]], seed: random.Random
) -> None:
    with low_limits():
        expected = oracle(records, (2, 4))
        assert profile_of(records).fields() == expected
        assert _scattered(records, seed).fields() == expected


def _scattered(records: list[dict[str, Any]], seed: random.Random) -> Profile:
    """The profile of the records in another order, in parts, which are merged."""
    shuffled = seed.sample(records, len(records))
    parts = [Profile() for _ in range(seed.randint(1, 4))]
    for record in shuffled:
        seed.choice(parts).add([json.dumps(record)])
    while len(parts) > 1:
        other = parts.pop(seed.randrange(len(parts)))
        seed.choice(parts).merge(other)
    assert parts[0].records == len(records)
    return parts[0]


def test_threads_may_add_to_one_profile() -> None:
    records = [{"id": n, "by": {f"user{n}": n}, "l": [{"x": n}]} for n in range(400)]
    shared = Profile()
    gate = threading.Barrier(4)

    def work(part: int) -> None:
        gate.wait(10)
        for record in records[part::4]:
            shared.add([json.dumps(record)])

    threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    finally:
        sys.setswitchinterval(interval)
    assert shared.records == 400
    assert shared.fields() == profile_of(records).fields()


def test_keys_that_are_data_do_not_become_fields() -> None:
    users = [{"by": {f"user{n}": {"at": n}, "x": 1}} for n in range(300)]
    assert types_of(profile_of(users)) == {
        "by": "object",
        "by.{}": "integer object",
        "by.{}.at": "integer",
    }
    few = profile_of(users[:150])
    assert len(few.fields()) == 302
    few.merge(profile_of(users[150:]))
    assert few.fields() == profile_of(users).fields()


def test_a_record_itself_may_have_hundreds_of_columns() -> None:
    wide = {f"column{n}": n for n in range(800)}
    assert len(profile_of([wide]).fields()) == 800
    wider = [{f"column{n}": n for n in range(part * 600, part * 600 + 600)} for part in range(2)]
    assert types_of(profile_of(wider)) == {"{}": "integer"}


def test_there_are_never_too_many_paths_whatever_the_records_hold() -> None:
    def bush(names: int, depth: int) -> Any:
        return {f"n{n}": bush(names, depth - 1) for n in range(names)} if depth else 1

    profile = profile_of([bush(150, 2), {f"o{n}": bush(20, 3) for n in range(20)}])
    fields = profile.fields()
    assert len(fields) == MOST_PATHS
    assert {f"n{n}" for n in range(150)} <= fields.keys(), "the least deep ones are kept"
    assert all(module.parent(path) in fields or module.parent(path) == "" for path in fields)
    assert len(profile._objects) <= module._MOST_PLACES
    deep: Any = 1
    for _ in range(200):
        deep = {"a": [deep]}
    assert max(path.count("a") for path in profile_of([deep]).fields()) <= 13


def test_a_sample_is_bounded_spread_and_of_real_payloads() -> None:
    def picked(count: int) -> list[int]:
        return [int(text) for text in sample([str(n) for n in range(count)])]

    assert picked(0) == []
    assert picked(20) == list(range(20))
    assert picked(1000) == list(range(0, 1000, 50))
    assert len(picked(15_000)) == 100
    huge = picked(1_000_000)
    assert len(huge) == 200
    assert {b - a for a, b in pairwise(huge)} == {5_000}
    assert sample([None, b"{}", None]) == [b"{}"]


def test_a_column_of_a_raw_object_is_sampled() -> None:
    parts = [pa.array([f'{{"p{n}": {n}}}', None], pa.string()) for n in range(3)]
    profile = Profile()
    profile.sample(pa.chunked_array(parts))
    assert types_of(profile) == {"p0": "integer", "p1": "integer", "p2": "integer"}


def test_a_sample_costs_a_small_part_of_splitting_the_pages() -> None:
    payload = _payloads("tickets")[0]
    column = pa.chunked_array([pa.array([payload] * 20_000, pa.string())])
    page = b"[" + b",".join([payload] * 1_000) + b"]"

    def seconds(work: Any) -> float:
        times = []
        for _ in range(5):
            start = time.process_time()
            work()
            times.append(time.process_time() - start)
        return min(times)

    looked = seconds(lambda: Profile().sample(column))
    assert looked < 0.5 * 20 * seconds(lambda: msgspec.json.decode(page))


def _payloads(table: str) -> list[bytes]:
    world = World(3, WorldSpec(), NOW.timestamp())
    return [record.visible.payload for record in world.tables[table].records.values()]


@pytest.mark.parametrize("table", TABLES)
def test_records_of_connectwise_are_described_in_full(table: str) -> None:
    payloads = _payloads(table)
    profile = Profile()
    profile.add(payloads)
    fields = profile.fields()
    assert (profile.records, profile.unreadable) == (len(payloads), 0)
    assert fields["id"] == Found(frozenset({"integer"}), len(payloads))
    assert fields["_info.lastUpdated"].types == {"string"}
    assert fields["customFields[].caption"].records == len(payloads)
    assert "{}" not in " ".join(fields)
    top = {path for path in fields if "." not in path and "[" not in path}
    assert top == {name for payload in payloads for name in json.loads(payload)}
    known = catalog().services["connectwise"].tables[table].record_fields
    assert set(absent(profile, known)) == set(known) - top


def test_absent_are_the_paths_that_no_record_has() -> None:
    record = {"company": {"id": 1, "name": None}, "by": {f"u{n}": {"at": 1} for n in range(300)}}
    profile = profile_of([record, {"id": 1}])
    asked = ["id", "zip", "company.id", "company.name", "company.x", "by.someone.at", "by.u1.no"]
    assert absent(profile, asked) == ["zip", "company.x", "by.u1.no"]
    assert absent(Profile(), asked) == [], "who saw nothing knows nothing"


def test_folding_a_path_keeps_what_is_not_a_key() -> None:
    assert fold("a.b[].c.d", {"a.b[]"}) == "a.b[].{}.d"
    assert fold("a[][].b", {"a[][]"}) == "a[][].{}"
    assert fold("a.b.c", {"a", "a.{}"}) == "a.{}.{}"
    assert fold("a.b[]", {"a"}) == "a.{}[]"
    assert fold("", {""}) == ""
    assert fold("a.b", {""}) == "{}.b"
