"""What every Counters does: it adds, and loses no amount."""

from __future__ import annotations

import math
import multiprocessing
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avesa_dagster.control.health import Sample
from avesa_dagster.errors import ConfigurationError

from .conftest import Control, Opener

SPAWN = multiprocessing.get_context("spawn")


def sample(name: str, value: float, **labels: str) -> Sample:
    return Sample(name, tuple(sorted(labels.items())), value)


def test_there_are_none_at_first_and_nothing_adds_nothing(control: Control) -> None:
    control.counters.add([])
    assert control.counters.all() == []


def test_amounts_add_up_for_each_name_and_labels(control: Control) -> None:
    control.counters.add([sample("rows", 3, tenant="acme"), sample("rows", 4, tenant="initech")])
    control.counters.add([sample("rows", 2.5, tenant="acme"), sample("rows", 1), sample("none", 0)])
    assert control.counters.all() == [
        sample("none", 0),
        sample("rows", 1),
        sample("rows", 5.5, tenant="acme"),
        sample("rows", 4, tenant="initech"),
    ]


def test_the_order_of_labels_does_not_matter(control: Control) -> None:
    control.counters.add([Sample("n", (("b", "2"), ("a", "1")), 1)])
    control.counters.add([Sample("n", (("a", "1"), ("b", "2")), 1)])
    assert control.counters.all() == [Sample("n", (("a", "1"), ("b", "2")), 2)]


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SAMPLES = st.builds(
    lambda name, labels, value: Sample(name, tuple(sorted(labels.items())), value),
    TEXTS,
    st.dictionaries(TEXTS, TEXTS, max_size=3),
    st.integers(0, 1_000_000),
)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(calls=st.lists(st.lists(SAMPLES, max_size=5), max_size=4))
def test_it_is_a_sum(control: Control, calls: list[list[Sample]]) -> None:
    counters = control.counters
    expected = Counter({(one.name, one.labels): one.value for one in counters.all()})
    for call in calls:
        counters.add(call)
        for amount in call:
            expected[amount.name, amount.labels] += amount.value
    assert counters.all() == [Sample(*key, expected[key]) for key in sorted(expected)]


@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
def test_an_amount_that_is_none_spoils_the_whole_call(control: Control, value: float) -> None:
    with pytest.raises(ConfigurationError, match="only grows"):
        control.counters.add([sample("good", 1), sample("bad", value)])
    with pytest.raises(ConfigurationError, match="twice"):
        control.counters.add([sample("good", 1), Sample("bad", (("a", "1"), ("a", "2")), 1)])
    assert control.counters.all() == []


def test_a_tenant_is_forgotten_with_all_its_counters(control: Control) -> None:
    control.counters.add(
        [
            sample("a", 1, tenant="acme"),
            sample("b", 1, tenant="acme", table="t"),
            sample("a", 1, tenant="acme2"),
            sample("a", 1, service="acme"),
        ]
    )
    assert control.counters.forget("acme") == 2
    assert control.counters.forget("acme") == 0
    assert control.counters.all() == [
        sample("a", 1, service="acme"),
        sample("a", 1, tenant="acme2"),
    ]


def test_fifty_samples_are_one_quick_transaction(control: Control) -> None:
    amounts = [sample(f"n{n % 10}", 1, tenant="acme", table=f"t{n // 10}") for n in range(50)]
    control.counters.add(amounts)
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        control.counters.add(amounts)
        taken.append(time.perf_counter() - start)
    assert min(taken) < 0.1
    assert {one.value for one in control.counters.all()} == {6}


def _add_often(opener: Opener, folder: str, worker: int) -> None:
    counters = opener(Path(folder)).counters
    for _ in range(50):
        counters.add([sample("shared", 1), sample("own", 2, worker=str(worker))])


def test_no_amount_of_several_processes_is_lost(opener: Opener, tmp_path: Path) -> None:
    workers = [SPAWN.Process(target=_add_often, args=(opener, str(tmp_path), n)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert opener(tmp_path).counters.all() == [
        *(sample("own", 100, worker=str(n)) for n in range(3)),
        sample("shared", 150),
    ]
