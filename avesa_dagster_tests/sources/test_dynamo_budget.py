"""What only the budget in DynamoDB can do wrong: clocks of hosts, round trips, lost answers."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avesa_dagster import aws as aws_module
from avesa_dagster.control.dynamo_database import DynamoDatabase, Key, Row
from avesa_dagster.control.dynamo_tables import BUDGETS, Table
from avesa_dagster.errors import ConfigurationError, StoreError
from avesa_dagster.sources.budget_schedule import Schedule, Waiting
from avesa_dagster.sources.dynamo_budget import DynamoBudget
from avesa_dagster.sources.store_clock import StoreClock
from avesa_dagster_tests.control.conftest import environment_of
from avesa_dagster_tests.lossy import Lossy
from avesa_dagster_tests.moto import Moto

from .budgets import KEY, HostClock, MemoryItems, World, open_budget, worst_window


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World("dynamodb", tmp_path / "nothing")


class DistantItems(MemoryItems):
    """A store that is a round trip away, in virtual time; of two who change at once, one is late
    and tries again."""

    def __init__(self, sleep: Callable[[float], None], trip: float) -> None:
        super().__init__()
        self._sleep, self._trip = sleep, trip

    def change(
        self, table: Table, key: Key, change: Callable[[Row | None], Mapping[str, Any] | None]
    ) -> Row | None:
        self._sleep(self._trip)
        while True:
            held = self.rows.get(key)
            attributes = change(held)
            self._sleep(self._trip)
            self.visits += 1
            if self.rows.get(key) is held:
                assert attributes is not None
                self.rows[key] = Row(table.name, key, attributes)
                return self.rows[key]


OFF = st.floats(-1e6, 1e6)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    limit=st.integers(1, 12),
    hosts=st.lists(
        st.tuples(
            OFF,
            st.tuples(st.floats(0, 2), st.floats(0, 2)),
            st.lists(st.sampled_from([0.0, 0.2, 3.0, 40.0]), min_size=1, max_size=8),
            st.booleans(),
        ),
        min_size=1,
        max_size=4,
    ),
    trip=st.sampled_from([0.0, 0.01, 0.7]),
)
def test_clocks_that_disagree_by_days_do_not_break_the_limit(
    tmp_path: Path,
    limit: int,
    hosts: list[tuple[float, tuple[float, float], list[float], bool]],
    trip: float,
) -> None:
    world = World("dynamodb", tmp_path)
    world.items = DistantItems(world.time.sleep, trip)
    world.time.run(
        [
            partial(
                world.requests,
                world.dynamo(clock=HostClock(world.time, ahead, bounds)),
                limit,
                latencies,
                live=live,
            )
            for ahead, bounds, latencies, live in hosts
        ]
    )
    assert len(world.done) == sum(len(latencies) for _, _, latencies, _ in hosts)
    assert worst_window(world.done, 60.0) <= limit


@pytest.mark.parametrize("limit", [60, 300])
def test_four_hosts_with_a_store_10_ms_away_use_95_percent(world: World, limit: int) -> None:
    world.items = DistantItems(world.time.sleep, 0.01)
    clocks = [HostClock(world.time, ahead, (0.05, 0.07)) for ahead in (0.0, 3.0, -5.0, 600.0)]
    budgets = [world.dynamo(clock=clock) for clock in clocks]
    latencies = [0.2] * (limit * 13 // 16)
    world.time.run([partial(world.requests, one, limit, latencies) for one in budgets])
    begin = 1_000 + 60
    used = sum(begin <= start < begin + 120 for start, _, _ in world.done) / (2 * limit)
    assert used >= 0.95
    assert worst_window(world.done, 60.0) <= limit


class Unreported(DynamoBudget):
    """Nobody but the next visit tells what ended: the reporter's thread knows no virtual time."""

    def _report_in_time(self, queue: Any) -> None:
        pass


def unreported(world: World, ahead: float = 0.0) -> Unreported:
    clock = HostClock(world.time, ahead)
    return Unreported(world.items, linger=1.0, clock=clock, sleep=world.time.sleep)


@pytest.mark.parametrize("threads", [1, 20])
def test_a_request_costs_less_than_a_visit(world: World, threads: int) -> None:
    budget = unreported(world)
    each = 1_000 // threads
    world.time.run([partial(world.requests, budget, 3_000, [0.2] * each)] * threads)
    assert len(world.done) == 1_000
    assert world.items.visits <= 550
    assert worst_window(world.done, 60.0) <= 3_000
    budget.close()
    assert _under_way(budget) == 0


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    limit=st.integers(1, 12),
    workers=st.lists(
        st.tuples(
            st.integers(0, 2),
            st.booleans(),
            st.lists(st.sampled_from([0.0, 0.05, 0.2, 3.0]), min_size=1, max_size=15),
            st.sampled_from([0.0, 0.1, 0.7, 30.0]),
        ),
        min_size=1,
        max_size=6,
    ),
)
def test_slots_taken_in_advance_do_not_break_the_limit(
    tmp_path: Path, limit: int, workers: list[tuple[int, bool, list[float], float]]
) -> None:
    world = World("dynamodb", tmp_path)
    budgets = [unreported(world, ahead) for ahead in (0.0, 7.0, -300.0)]
    world.time.run(
        [
            partial(world.requests, budgets[of], limit * 4, latencies, live=live, between=rests)
            for of, live, latencies, rests in workers
        ]
    )
    assert len(world.done) == sum(len(latencies) for _, _, latencies, _ in workers)
    assert worst_window(world.done, 60.0) <= limit * 4


def test_the_item_of_a_large_limit_stays_small(world: World) -> None:
    budgets = [world.dynamo() for _ in range(4)]
    world.time.run([partial(world.requests, one, 5_000, [0.01] * 1_000) for one in budgets])
    document = world.items.rows[(KEY,)].blob("document")
    assert len(document) < 6_000


def test_a_waiting_process_that_died_is_passed_over(world: World) -> None:
    budget = world.dynamo()
    budget.pause(KEY, 2)

    def leave(schedule: Schedule, now: int, latest: int) -> None:
        schedule.waiting.append(Waiting("dead", True, 40, now, now + 1_250_000))

    budget._change(KEY, leave)
    world.time.run([lambda: world.requests(budget, 60, [0.0])])
    assert world.time.now < 1_002.5


@pytest.mark.parametrize("document", [b"no zlib", None])
def test_an_item_that_cannot_be_read_is_replaced_and_a_window_passes(
    world: World, document: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = world.dynamo(), world.dynamo()
    world.time.run([lambda: world.requests(one, 10, [0.0] * 3)])
    begin = world.time.now
    attributes = {} if document is None else {"document": document}
    world.items.rows[(KEY,)] = Row("Budgets-dev", (KEY,), attributes)
    world.time.run([partial(world.requests, budget, 10, [0.0] * 4) for budget in (one, other)])
    assert "Budgets-dev, item connectwise/acme: attribute document" in caplog.text
    assert min(start for start, _, _ in world.done[3:]) >= begin + 60
    assert worst_window(world.done, 60.0) <= 10


def test_a_key_is_forgotten(world: World) -> None:
    budget = world.dynamo()
    world.time.run([lambda: world.requests(budget, 10, [0.0] * 3)])
    assert (budget.forget(KEY), budget.forget(KEY)) == (1, 0)
    assert budget.use(KEY, 10).used == 0


STEPS = st.lists(
    st.tuples(st.floats(0, 50), st.floats(0, 3), st.floats(0, 1), st.floats(-0.05, 0.05)),
    min_size=1,
    max_size=30,
)


@given(offset=OFF, drift=st.floats(-400e-6, 400e-6), steps=STEPS)
def test_the_bounds_of_the_clock_hold_the_truth(
    offset: float, drift: float, steps: list[tuple[float, float, float, float]]
) -> None:
    """Answers of servers that disagree by up to 0.1 s, made somewhere between sending and
    receiving, on a machine whose clock runs wrong."""
    clock, truth = StoreClock(0.05), 1.7e9

    def local(moment: float) -> float:
        return (moment - 1.7e9) * (1 + drift) + offset

    for rests, trip, part, disagrees in steps:
        truth += rests
        made = truth + trip * part + disagrees
        clock.learn(float(int(made)), local(truth), local(truth + trip))
        truth += trip
        low, high = clock.at(local(truth))
        assert low - 2 <= truth * 1e6 <= high + 2
        assert high - low < 1e6 * (1.2 + 2 * max(t for _, t, _, _ in steps) + 0.1)


def test_the_clock_becomes_as_narrow_as_a_round_trip(aws: Moto) -> None:
    clock, client = StoreClock(0.003), aws_module.client("dynamodb")
    with pytest.raises(StoreError, match="Date"):
        clock.at(clock.moment())
    clock.watch(client)
    clock.watch(client)
    until = time.monotonic() + 2.0
    while time.monotonic() < until:
        client.list_tables()
        time.sleep(0.017)
    low, high = clock.at(clock.moment())
    assert high - low < 200_000
    assert low - 100_000 < time.time() * 1e6 < high + 100_000


def test_visits_whose_answers_are_lost_count_once(lossy: Lossy, tmp_path: Path) -> None:
    budget = open_budget("dynamodb", tmp_path)
    assert isinstance(budget, DynamoBudget)
    lossy.faults.drop = 3

    def ask(_: int) -> None:
        with budget.request(KEY, 1_000):
            pass

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(40)))
    lossy.faults.drop = 0
    budget.close()
    assert lossy.lost >= 3
    assert budget.use(KEY, 1_000).used == 40


def test_what_ended_is_told_within_a_moment_and_at_the_end(aws: Moto, tmp_path: Path) -> None:
    before = threading.active_count()  # other tests of this worker may have left some
    budget, other = open_budget("dynamodb", tmp_path, linger=0.2), open_budget("dynamodb", tmp_path)
    assert isinstance(budget, DynamoBudget) and isinstance(other, DynamoBudget)
    for count in (1, 2):
        with budget.request(KEY, 100):
            pass
        until = time.monotonic() + 10
        while _under_way(other) and time.monotonic() < until:
            time.sleep(0.05)
        assert (_under_way(other), other.use(KEY, 100).used) == (0, count)
    assert threading.active_count() <= before + 2  # one for each of the two, however many requests
    with other.request(KEY, 100):
        pass
    assert _under_way(budget) == 1
    other.close()
    assert _under_way(budget) == 0


def _under_way(budget: DynamoBudget) -> int:
    """Slots whose requests have not ended, as far as the store knows."""
    found: list[int] = []
    budget._change(KEY, lambda schedule, now, latest: found.append(len(schedule.granted)))
    return found[-1]


def _ask_in_a_child(budget: DynamoBudget) -> None:
    with budget.request(KEY, 100):
        pass
    budget.close()


def test_a_child_made_by_fork_asks_for_itself(aws: Moto, tmp_path: Path) -> None:
    budget = open_budget("dynamodb", tmp_path)
    assert isinstance(budget, DynamoBudget)
    with budget.request(KEY, 100):
        child = multiprocessing.get_context("fork").Process(target=_ask_in_a_child, args=(budget,))
        child.start()
        child.join(60)
        assert child.exitcode == 0
        assert _under_way(budget) == 1
    assert budget.use(KEY, 100).used == 2


def test_without_the_store_no_request_is_made_and_no_response_is_lost(
    lossy: Lossy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    budget = open_budget("dynamodb", tmp_path, linger=0)
    with budget.request(KEY, 100):
        lossy.faults.refuse = 1
    assert "ended unrecorded" in caplog.text
    with pytest.raises(StoreError, match=r"connectwise/acme.*no request was made"):
        budget.request(KEY, 100).__enter__()
    lossy.faults.refuse = 0
    aws_module.client.cache_clear()
    assert budget.use(KEY, 100).used == 1


def test_a_missing_table_says_what_to_do(aws: Moto, tmp_path: Path) -> None:
    budget = DynamoBudget(DynamoDatabase(environment_of(tmp_path)))
    with pytest.raises(ConfigurationError, match=rf"{BUDGETS.name}-.*avesa bootstrap"):
        budget.request(KEY, 100).__enter__()
