"""What every Ledger does, against a model that fits on a page."""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from avesa_dagster.control.base import Chunk, ChunkState, Covered, Ledger
from avesa_dagster.control.coverage import union
from avesa_dagster.errors import ConfigurationError, StoreError

from .conftest import OPENERS, Control, Opener, day


def chunk(number: int = 0, token: str = "run", tenant: str = "acme", table: str = "t") -> Chunk:
    return Chunk(
        token,
        tenant,
        "connectwise",
        table,
        f"c{number:04}",
        f"2026-01-{number % 28 // 7 * 7 + 1:02}",
        "window",
        day(number),
        day(number + 1),
    )


Key = tuple[str, str, str]


class Model:
    """The ledger as one dict, with the objects of each chunk kept for ever beside it."""

    def __init__(self) -> None:
        self.chunks: dict[Key, Chunk] = {}
        self.written: dict[Key, list[str]] = {}

    def change(self, key: Key, **fields: object) -> Chunk:
        self.chunks[key] = replace(self.chunks[key], **fields)  # type: ignore[arg-type]
        return self.chunks[key]


def key_of(one: Chunk) -> Key:
    return one.token, one.table, one.chunk_id


class LedgerMachine(RuleBasedStateMachine):
    """Any sequence of operations leaves the ledger equal to the model."""

    open: Callable[[], Control]

    def __init__(self) -> None:
        super().__init__()
        self.ledger = type(self).open().ledger
        self.model = Model()
        self.seconds = 0

    chunks = st.builds(
        chunk, st.integers(0, 3), st.sampled_from(["run", "job"]), st.just("acme"),
        st.sampled_from(["t", "u"]),
    )  # fmt: skip

    def now(self) -> datetime:
        self.seconds += 1
        return day(self.seconds)

    def known(self, one: Chunk) -> bool:
        if key_of(one) in self.model.chunks:
            return True
        with pytest.raises(StoreError):
            self.ledger.begin(one, now=day(0))
        return False

    @rule(planned=st.lists(chunks, max_size=4))
    def plan(self, planned: list[Chunk]) -> None:
        now = self.now()
        for one in planned:
            self.model.chunks.setdefault(key_of(one), replace(one, planned_at=now))
            self.model.written.setdefault(key_of(one), [])
        rows = self.ledger.plan(planned, now=now)
        assert rows == [self.model.chunks[key_of(one)] for one in planned]

    @rule(one=chunks)
    def begin(self, one: Chunk) -> None:
        if self.known(one):
            now, held = self.now(), self.model.chunks[key_of(one)]
            assert self.ledger.begin(one, now=now) == self.model.change(
                key_of(one),
                state=ChunkState.RUNNING,
                attempts=held.attempts + 1,
                started_at=now,
                finished_at=None,
                error=None,
                as_of=now if held.cursor is None else held.as_of,
            )

    @rule(one=chunks)
    def restart(self, one: Chunk) -> None:
        if self.known(one):
            now = self.now()
            assert self.ledger.restart(one, now=now) == self.model.change(
                key_of(one), cursor=None, rows=0, stored=0, source_count=None, objects=(), as_of=now
            )

    @rule(one=chunks, rows=st.integers(0, 2**40), cursor=st.text(st.characters(codec="utf-8")))
    def progress(self, one: Chunk, rows: int, cursor: str) -> None:
        if self.known(one):
            held = self.model.chunks[key_of(one)]
            objects = [f"{one.token}-{self.seconds}-é", f"{one.token}-{self.seconds}-b"]
            self.model.written[key_of(one)] += objects
            assert self.ledger.progress(
                one, cursor=cursor, rows=rows, stored=1, requests=2, objects=objects, now=self.now()
            ) == self.model.change(
                key_of(one),
                cursor=cursor,
                rows=held.rows + rows,
                stored=held.stored + 1,
                requests=held.requests + 2,
                objects=(*held.objects, *objects),
            )

    @rule(one=chunks, count=st.none() | st.integers(0, 9))
    def complete(self, one: Chunk, count: int | None) -> None:
        if self.known(one):
            now, held = self.now(), self.model.chunks[key_of(one)]
            assert self.ledger.complete(
                one, source_count=count, requests=1, now=now
            ) == self.model.change(
                key_of(one),
                state=ChunkState.COMPLETED,
                source_count=count,
                requests=held.requests + 1,
                finished_at=now,
            )

    @rule(one=chunks)
    def fail(self, one: Chunk) -> None:
        if self.known(one):
            now, held = self.now(), self.model.chunks[key_of(one)]
            failed = {"state": ChunkState.FAILED, "error": "lost 'it'", "finished_at": now}
            if held.state is ChunkState.COMPLETED:
                failed = {}
            assert self.ledger.fail(
                one, error="lost 'it'", requests=1, now=now
            ) == self.model.change(key_of(one), requests=held.requests + 1, **failed)

    @invariant()
    def reads_agree(self) -> None:
        for token in ("run", "job"):
            expected = [
                one
                for (held_token, table, _), one in self.model.chunks.items()
                if (held_token, table) == (token, "t")
            ]
            expected.sort(key=lambda one: one.start, reverse=True)
            assert self.ledger.rows(token, "acme", "connectwise", "t") == expected
        completed = [
            Covered(
                one.table,
                one.partition,
                one.kind,
                one.start,
                one.end,
                one.as_of or one.planned_at or day(0),
                one.rows,
                one.source_count,
            )
            for one in self.model.chunks.values()
            if one.state is ChunkState.COMPLETED
        ]
        covered = self.ledger.covered("acme")
        assert sorted(covered, key=str) == sorted(completed, key=str)
        order = [(one.table, one.start, one.as_of) for one in covered]
        assert order == sorted(order)
        assert self.ledger.covered("acme", None, "u") == [o for o in covered if o.table == "u"]
        assert self.ledger.covered("acme", "connectwise") == covered
        assert self.ledger.covered("other") == []
        assert self.ledger.stretches("acme", "connectwise", "u") == union(
            one for one in covered if one.table == "u"
        )
        written = {
            name
            for (_, table, chunk_id), names in self.model.written.items()
            if table == "t"
            for name in names
        }
        objects = self.ledger.objects("acme", "connectwise", "t", "2026-01-01")
        assert len(objects) == len(set(objects))
        assert set(objects) == written


def test_any_sequence_of_operations_equals_the_model(
    opener_name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    class Machine(LedgerMachine):
        @staticmethod
        def open() -> Control:
            return OPENERS[opener_name](tmp_path_factory.mktemp("ledger"))

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=15 if opener_name == "sqlite" else 6,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def _fetch(name: str, folder: str, number: int, parts: int) -> None:
    ledger = OPENERS[name](Path(folder)).ledger
    mine = ledger.begin(chunk(number), now=day(1))
    for part in range(parts):
        ledger.progress(
            mine, cursor=f"{part}", rows=1, stored=1, requests=1, objects=[f"{number}-{part}"],
            now=day(2),
        )  # fmt: skip
        shared = chunk(9)
        ledger.progress(
            shared, cursor="x", rows=1, stored=0, requests=0, objects=[f"s{number}-{part}"],
            now=day(2),
        )  # fmt: skip
    ledger.complete(mine, source_count=parts, requests=0, now=day(3))


def test_two_processes_progress_at_once_and_lose_nothing(opener_name: str, tmp_path: Path) -> None:
    ledger = OPENERS[opener_name](tmp_path).ledger
    ledger.plan([chunk(1), chunk(2), chunk(9)], now=day(0))
    spawn = multiprocessing.get_context("spawn")
    processes = [
        spawn.Process(target=_fetch, args=(opener_name, str(tmp_path), n, 40)) for n in (1, 2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    shared, second, first = ledger.rows("run", "acme", "connectwise", "t")
    assert (first.rows, second.rows, shared.rows) == (40, 40, 80)
    assert first.objects == tuple(f"1-{part}" for part in range(40))
    assert len(set(shared.objects)) == 80
    assert {first.state, second.state} == {ChunkState.COMPLETED}


def test_beginning_one_chunk_from_many_threads_counts_every_attempt(
    opener: Opener, tmp_path: Path
) -> None:
    controls = [opener(tmp_path) for _ in range(4)]
    controls[0].ledger.plan([chunk()], now=day(0))
    with ThreadPoolExecutor(4) as pool:
        attempts = list(
            pool.map(
                lambda n: controls[n % 4].ledger.begin(chunk(), now=day(1)).attempts, range(32)
            )
        )
    assert sorted(attempts) == list(range(1, 33))


def test_planning_again_keeps_what_is_there(control: Control) -> None:
    control.ledger.plan([chunk(1)], now=day(0))
    begun = control.ledger.begin(chunk(1), now=day(1))
    rows = control.ledger.plan([chunk(2), chunk(1)], now=day(5))
    assert rows == [replace(chunk(2), planned_at=day(5)), begun]
    assert control.ledger.plan([], now=day(5)) == []


def test_a_bad_name_plans_nothing(control: Control) -> None:
    with pytest.raises(ConfigurationError):
        control.ledger.plan([chunk(1), chunk(2, tenant="../acme")], now=day(0))
    assert control.ledger.rows("run", "acme", "connectwise", "t") == []


def test_an_unknown_chunk_is_named(control: Control) -> None:
    with pytest.raises(StoreError, match=r"c0003.*tenant=acme service=connectwise table=t"):
        control.ledger.complete(chunk(3), source_count=None, requests=0, now=day(0))


def test_an_error_text_of_any_kind_is_stored(control: Control) -> None:
    control.ledger.plan([chunk()], now=day(0))
    failed = control.ledger.fail(chunk(), error="bad \ud800 and \0", requests=0, now=day(1))
    assert control.ledger.rows("run", "acme", "connectwise", "t") == [failed]
    assert failed.error == "bad ? and \0"


def test_every_field_of_a_chunk_survives(control: Control) -> None:
    full = Chunk(
        "r", "a", "b", "c", "d", "p", "full", day(-700_000), day(1), ChunkState.FAILED, "cur", 1, 2,
        3, 4, ("x", "y"), 5, "e", day(2), day(3), day(4), day(5),
    )  # fmt: skip
    assert len(dataclasses.fields(Chunk)) == 22
    assert control.ledger.plan([full], now=day(2)) == [full]
    assert control.ledger.rows("r", "a", "b", "c") == [full]


def test_stretches_are_what_completed_windows_and_full_pulls_cover(control: Control) -> None:
    def done(first: int, last: int, kind: str = "window", **of: str) -> None:
        one = replace(
            chunk(), chunk_id=f"{kind}{first}-{last}", kind=kind, start=day(first), end=day(last),
            **of,
        )  # fmt: skip
        control.ledger.plan([one], now=day(0))
        control.ledger.begin(one, now=day(0))
        control.ledger.complete(one, source_count=0, requests=0, now=day(0))

    for first, last in ((8, 9), (0, 2), (1, 4), (4, 5), (1, 2), (7, 7)):
        done(first, last)
    done(11, 12, "full")
    done(6, 20, "sweep")
    done(5, 6, tenant="other")
    done(5, 6, service="other")
    done(5, 6, table="other")
    control.ledger.plan([replace(chunk(), chunk_id="open", start=day(5), end=day(6))], now=day(0))
    expected = [(day(0), day(5)), (day(8), day(9)), (day(11), day(12))]
    assert control.ledger.stretches("acme", "connectwise", "t") == expected
    assert union(control.ledger.covered("acme", "connectwise", "t")) == expected


def window_of(number: int, start: datetime, end: datetime) -> Chunk:
    return replace(chunk(), chunk_id=f"part{number}", start=start, end=end)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    cuts=st.lists(st.floats(0.001, 0.999), min_size=1, max_size=4, unique=True),
    requests=st.integers(0, 9),
    fails=st.booleans(),
)
def test_a_chunk_without_progress_is_replaced_by_its_parts(
    opener: Opener, tmp_path_factory: pytest.TempPathFactory, cuts: list[float], requests: int,
    fails: bool,
) -> None:  # fmt: skip
    ledger = opener(tmp_path_factory.mktemp("ledger")).ledger
    (whole, _) = ledger.plan([chunk(0), chunk(1)], now=day(0))
    if fails:
        ledger.begin(whole, now=day(1))
        whole = ledger.fail(whole, error="no answer in time", requests=requests, now=day(1))
    edges = [day(0), *(day(cut) for cut in sorted(cuts)), day(1)]
    parts = [window_of(n, *edges[n : n + 2]) for n in reversed(range(len(edges) - 1))]
    stored = ledger.split(whole, parts, now=day(2))
    assert [(one.chunk_id, one.start, one.end) for one in stored] == [
        (one.chunk_id, one.start, one.end) for one in parts
    ]
    assert {one.state for one in stored} == {ChunkState.PLANNED}
    assert {one.planned_at for one in stored} == {day(2)}
    assert {one.partition for one in stored} == {whole.partition}
    spent = requests if fails else 0
    assert [one.requests for one in stored] == [spent, *[0] * (len(parts) - 1)]
    rows = ledger.rows("run", "acme", "connectwise", "t")
    assert rows == [replace(chunk(1), planned_at=day(0)), *stored]
    assert union(
        Covered("t", one.partition, one.kind, one.start, one.end, day(2), 0, 0) for one in stored
    ) == [(day(0), day(1))]
    assert ledger.split(whole, parts, now=day(3)) == [], "it is gone"
    assert ledger.rows("run", "acme", "connectwise", "t") == rows


HALVES = [window_of(1, day(0.5), day(1)), window_of(0, day(0), day(0.5))]


@pytest.mark.parametrize(
    "touch",
    [
        pytest.param(
            lambda ledger: ledger.complete(chunk(), source_count=0, requests=0, now=day(2)),
            id="completed"),
        pytest.param(lambda ledger: ledger.begin(chunk(), now=day(2)), id="under way"),
        pytest.param(
            lambda ledger: ledger.progress(chunk(), cursor="5", rows=1, stored=0, requests=0,
                                           objects=[], now=day(2)),
            id="has a cursor"),
        pytest.param(
            lambda ledger: (
                ledger.progress(chunk(), cursor="5", rows=1, stored=1, requests=0, objects=["x"],
                                now=day(2)),
                ledger.restart(chunk(), now=day(2)),
            ),
            id="wrote an object once"),
    ],
)  # fmt: skip
def test_what_is_done_under_way_or_has_progress_is_not_split(
    control: Control, touch: Callable[[Ledger], object]
) -> None:
    (whole,) = control.ledger.plan([chunk()], now=day(0))
    touch(control.ledger)
    before = control.ledger.rows("run", "acme", "connectwise", "t")
    objects = control.ledger.objects("acme", "connectwise", "t", whole.partition)
    assert control.ledger.split(whole, HALVES, now=day(3)) == []
    assert control.ledger.rows("run", "acme", "connectwise", "t") == before
    assert control.ledger.objects("acme", "connectwise", "t", whole.partition) == objects


def test_a_part_that_is_there_already_stays_as_it_is(control: Control) -> None:
    (whole, _) = control.ledger.plan([chunk(), HALVES[0]], now=day(0))
    done = control.ledger.complete(HALVES[0], source_count=3, requests=2, now=day(1))
    stored = control.ledger.split(whole, HALVES, now=day(2))
    assert stored == [done, replace(HALVES[1], planned_at=day(2))]


def test_of_many_who_split_a_chunk_one_does(opener: Opener, tmp_path: Path) -> None:
    ledgers = [opener(tmp_path).ledger for _ in range(4)]
    (whole,) = ledgers[0].plan([chunk()], now=day(0))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: ledgers[n % 4].split(whole, HALVES, now=day(n)), range(12)))
    assert sorted(map(len, found)) == [0] * 11 + [2]
    assert len(ledgers[0].rows("run", "acme", "connectwise", "t")) == 2


def test_a_chunk_that_is_released_is_planned_again_and_keeps_its_progress(
    control: Control,
) -> None:
    control.ledger.plan([chunk()], now=day(0))
    control.ledger.begin(chunk(), now=day(1))
    held = control.ledger.progress(
        chunk(), cursor="5", rows=1, stored=1, requests=1, objects=["x"], now=day(1)
    )
    released = control.ledger.release(chunk(), requests=2)
    assert released == replace(held, state=ChunkState.PLANNED, requests=3)
    done = control.ledger.complete(chunk(), source_count=1, requests=0, now=day(2))
    assert control.ledger.release(chunk(), requests=1) == replace(done, requests=4)


def test_resting_chunks_are_those_with_a_cursor_that_nobody_touched(control: Control) -> None:
    ledger = control.ledger
    kinds = [chunk(number, token) for number, token in enumerate("abcdef")]
    ledger.plan([*kinds, chunk(6, "a", tenant="other"), chunk(7, "a", table="u")], now=day(0))

    def worked(one: Chunk, begun: int, cursor: str | None = "here") -> Chunk:
        one = ledger.begin(one, now=day(begun))
        if cursor is None:
            return one
        return ledger.progress(
            one, cursor=cursor, rows=0, stored=0, requests=0, objects=[], now=day(begun)
        )

    worked(kinds[0], 1)
    worked(kinds[1], 1, None)
    ledger.fail(worked(kinds[2], 1), error="no", requests=0, now=day(2))
    ledger.fail(worked(kinds[3], 1), error="no", requests=0, now=day(4))
    ledger.complete(worked(kinds[4], 1), source_count=0, requests=0, now=day(1))
    worked(kinds[5], 3)
    worked(chunk(6, "a", tenant="other"), 1)
    worked(chunk(7, "a", table="u"), 1)
    found = ledger.resting("acme", "connectwise", "t", before=day(3))
    assert [(one.token, one.cursor) for one in found] == [("a", "here"), ("c", "here")]
