"""What AVESA promises, as tests of whichever service is enrolled.

Exactness is proven for every table; the rest for a table that is fetched by windows and one that
is pulled whole, and each kind of fault at one table. Environment:

    AVESA_CONFORMANCE=all           everything for every table
    AVESA_CONFORMANCE_SCRIPTS=n     n drawn hostile scripts (2)
    AVESA_CONFORMANCE_KILLS=n       n kills at random moments (1)
    AVESA_CONFORMANCE_ROWS=n        a window of n records in flat memory (else it is skipped)
"""

from __future__ import annotations

import base64
import itertools
import logging
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import pyarrow.parquet as pq
import pytest
import requests

from avesa_dagster.conformance import child, hostile
from avesa_dagster.conformance.bench import Bench, open_bench, segments_of
from avesa_dagster.conformance.enrolment import Enrolment, Rig
from avesa_dagster.conformance.ground import stored
from avesa_dagster.conformance.judge import assert_truth, distinct, is_due
from avesa_dagster.control.base import ChunkState
from avesa_dagster.errors import AvesaError, CredentialsRefused, Stopped, Suspended
from avesa_dagster.extract.request import Mode, Request

NewBench = Callable[..., Bench]

_ALL = os.environ.get("AVESA_CONFORMANCE") == "all"
_SCRIPTS = int(os.environ.get("AVESA_CONFORMANCE_SCRIPTS", "2"))
_KILLS = int(os.environ.get("AVESA_CONFORMANCE_KILLS", "1"))
_ROWS = int(os.environ.get("AVESA_CONFORMANCE_ROWS", "0"))
_SEGMENT = 20
_WAYS = ("fails", "is-stopped")
_TIME_ZONES = ("Pacific/Kiritimati", "America/St_Johns")
_MEMORY = 300 * 1024 * 1024
"""What a large window may take more than a small one."""


class Conformance:
    """The suite; a subclass names the service.

    class TestNotes(Conformance):
        enrolment = Enrolment("notes", start=SimulatedNotes, secret=("token",))
    """

    enrolment: ClassVar[Enrolment]

    # What pytest asks

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Tables, kinds of hostility and ways, for the tests that want them."""
        names = set(metafunc.fixturenames)
        tables = self.enrolment.proven()
        if {"bulk", "table"} <= names:
            known = self.enrolment.catalog.services[self.enrolment.service]
            able = tables if _ALL else self._typical(tables)
            ways = [(table, False) for table in tables]
            ways += [(table, True) for table in able if known.bulk_records is not None]
            names_of = [f"{table}-{_how(bulk)}" for table, bulk in ways]
            metafunc.parametrize(("table", "bulk"), ways, ids=names_of)
        elif {"way", "typical"} <= names:
            both = [(table, way) for table in self._typical(tables) for way in _WAYS]
            metafunc.parametrize(("typical", "way"), both if _ALL else both[::3])
        elif {"fault", "table"} <= names:
            faults = (*hostile.PASSING, *hostile.DOUBTFUL, *self.enrolment.faults)
            if not _ALL:  # one of each kind
                faults = tuple({fault["kind"]: fault for fault in reversed(faults)}.values())
            cases = [
                pytest.param(fault, table, id=f"{hostile.name(fault)}-{table}")
                for number, fault in enumerate(faults)
                for table in (tables if _ALL else [tables[number % len(tables)]])
            ]
            metafunc.parametrize(("fault", "table"), cases)
        elif "table" in names:
            metafunc.parametrize("table", tables)
        elif "typical" in names and "zone" not in names:
            metafunc.parametrize("typical", self._typical(tables))
        if {"zone", "typical"} <= names:
            pairs = [(table, zone) for table in self._typical(tables) for zone in _TIME_ZONES]
            metafunc.parametrize(("typical", "zone"), pairs if _ALL else pairs[::3])
        if "script" in names:
            metafunc.parametrize("script", range(_SCRIPTS))

    def _typical(self, tables: tuple[str, ...]) -> list[str]:
        """A table that is fetched by windows, and one that is pulled whole, if there are; with
        AVESA_CONFORMANCE=all the others, too."""
        known = self.enrolment.catalog.services[self.enrolment.service].tables
        first = {known[name].master_data: name for name in reversed(tables)}
        chosen = [first[whole] for whole in sorted(first)]
        return chosen + [name for name in tables if _ALL and name not in chosen]

    @pytest.fixture(scope="class")
    @classmethod
    def rig(cls) -> Iterator[Rig]:
        """The simulated service, for all tests of the class."""
        started = cls.enrolment.start()
        yield started
        started.stop()

    @pytest.fixture
    def new_bench(self, rig: Rig, tmp_path: Path) -> Iterator[NewBench]:
        """Makes a bench with `open_bench`'s options, in a folder of its own."""
        numbers = itertools.count()
        yield lambda table, **options: open_bench(
            rig, self.enrolment, tmp_path / f"home-{next(numbers)}", table, **options
        )
        rig.control("hostility")

    # Exactness

    def test_the_lake_holds_the_truth(self, new_bench: NewBench, table: str, bulk: bool) -> None:
        """After a backfill, after the sync of changes, after deletions and undeletions."""
        bench = new_bench(table, bulk=bulk)
        bench.extract()
        assert_truth(bench, "after the backfill")
        bench.change("mutate", count=12)
        bench.change("create", count=4)
        lasting = table in self.enrolment.lasting
        gone = [] if lasting else bench.change("delete", count=6)
        bench.settle()
        bench.extract(Mode.SYNC)
        assert_truth(bench, "after the sync", deletions=False)
        bench.extract(Mode.FULL)
        assert_truth(bench, "after deletions")
        assert lasting or bench.change("undelete", ids=gone[:3])
        bench.settle()
        bench.extract(Mode.FULL)
        assert_truth(bench, "after undeletions", read=True)

    def test_ties_are_all_read(self, new_bench: NewBench, typical: str) -> None:
        """More records on one second than a page holds, and changes on the edges of windows."""
        bench = new_bench(typical, page_clamp=7, chunk_days=10)
        bench.change("mutate", count=30, at="2026-03-01T00:00:00Z")
        edges = {p.start for p in bench.partitions()} | {p.end for p in bench.partitions()}
        for edge in sorted(moment for moment in edges if moment < bench.clock()):
            bench.change("mutate", count=2, at=edge.isoformat())
        bench.extract()
        rows = bench.raw()
        assert_truth(bench)
        assert len(rows) == len({row["record_id"] for row in rows}), "a record is stored twice"

    def test_moving_records_take_no_other_with_them(
        self, new_bench: NewBench, typical: str
    ) -> None:
        """Records change, vanish and appear between one page and the next."""
        bench = new_bench(typical, page_clamp=7)
        before = bench.truth()
        bench.hostile(
            page_clamp=7, mutate_per_request=2, delete_per_request=1, create_per_request=1
        )
        request = bench.request()
        with segments_of(_SEGMENT):
            try:
                bench.run(request)
            except AvesaError:  # it said so; what stands still is fetched now
                bench.hostile(page_clamp=7)
                bench.run(request)
        bench.hostile()
        after, held = bench.truth(), {row["record_id"] for row in bench.raw()}
        still = {
            record_id
            for record_id, known in before.items()
            if after[record_id] == known and not known.deleted and is_due(bench, known)
        }
        assert still, "nothing stood still"
        assert still <= held, f"these stood still and were lost: {sorted(still - held)}"
        bench.settle()
        bench.extract(Mode.SYNC)
        bench.extract(Mode.FULL)
        assert_truth(bench, "in the end")

    def test_what_shows_up_late_is_not_lost(self, new_bench: NewBench, typical: str) -> None:
        """A change that lists show only some time after its second, within the service's lag."""
        bench = new_bench(typical)
        bench.extract()
        bench.hostile(late_seconds=bench.lag - 6)
        bench.change("mutate", count=6)
        bench.change("create", count=3)
        for _ in range(4):
            bench.advance(bench.lag / 2)
            bench.extract(Mode.SYNC)
        bench.hostile()
        bench.settle()
        bench.extract(Mode.SYNC)
        assert_truth(bench)

    def test_what_is_hidden_is_not_taken_for_deleted(
        self, new_bench: NewBench, typical: str
    ) -> None:
        """The user loses the right to read half of the records."""
        bench = new_bench(typical)
        bench.extract()
        held = len(bench.raw())
        bench.hostile(restricted_share=0.5)
        request = bench.request(Mode.FULL)
        try:
            found = bench.run(request)
            assert found.deleted == 0, "records that the user may not see were closed"
        except AvesaError as error:
            _assert_named(bench, error, request)
        bench.hostile()
        assert not any(row["is_deleted"] for row in bench.raw())
        assert len(bench.raw()) == held
        bench.extract(Mode.FULL)
        assert_truth(bench)

    # Hostility

    def test_a_fault_loses_nothing(
        self, new_bench: NewBench, fault: Mapping[str, Any], table: str
    ) -> None:
        bench = new_bench(table, page_clamp=7, parallel=1)
        bench.hostile({"at": [1, 3, 5, 8], **fault}, page_clamp=7)
        request = bench.request()
        try:
            bench.run(request)
        except AvesaError as error:
            _assert_named(bench, error, request, fault)
            assert fault in hostile.DOUBTFUL, f"{fault} is not survived: {error}"
            bench.hostile()
            bench.run(request)
        bench.hostile()
        assert_truth(bench, fault)

    def test_a_script_ends_in_the_truth_or_says_where(
        self, new_bench: NewBench, script: int
    ) -> None:
        """Drawn scripts: several kinds at once, at any rate."""
        rng = Random(f"{self.enrolment.service} {script}")
        table = rng.choice(self.enrolment.proven())
        bench = new_bench(table, seed=script, chunk_days=rng.choice((10, 30)))
        drawn = hostile.draw(rng, self.enrolment.faults)
        note = f"script {script}: {drawn}"
        modes = rng.choice(((Mode.BACKFILL,), (Mode.BACKFILL, Mode.SYNC), (Mode.FULL,)))
        hidden = False
        for mode in modes:
            request = bench.request(mode)
            bench.hostile(*drawn["faults"], **{k: v for k, v in drawn.items() if k != "faults"})
            with segments_of(rng.choice((15, 60, 20_000))):
                try:
                    bench.run(request)
                except AvesaError as error:
                    _assert_named(bench, error, request, note)
                    bench.hostile()
                    bench.advance(120)  # until a suspended service is probed
                    bench.run(request)
            bench.hostile()
            chunks = bench.chunks(request.token)
            hidden = hidden or any(c.rows < (c.source_count or 0) for c in chunks)
            bench.advance(rng.choice((5, 90, 4_000)))
        bench.settle()
        if hidden or Mode.BACKFILL not in modes:  # the ledger says that something is missing
            bench.extract(Mode.BACKFILL)
        for mode in (Mode.SYNC, Mode.FULL):
            bench.extract(mode)
        assert_truth(bench, note)

    def test_what_cannot_be_answered_says_where(self, new_bench: NewBench, typical: str) -> None:
        """A service that lists nothing of what it counts, whatever one does. Where lists may leave
        out what a user may not see, the ledger counts it."""
        bench = new_bench(typical, page_clamp=20)
        bench.hostile({"kind": "drop_row", "rows": 1000, "probability": 1.0}, page_clamp=20)
        request = bench.request()
        try:
            chunks = bench.run(request).chunks
            assert sum(c.rows for c in chunks) < sum(c.source_count or 0 for c in chunks)
        except AvesaError as error:
            _assert_named(bench, error, request)
            failed = [c for c in bench.chunks(request.token) if c.state is ChunkState.FAILED]
            assert failed, "the ledger does not say which window failed"
        bench.hostile()
        bench.extract()
        assert_truth(bench)

    # Resuming and stopping

    def test_it_goes_on_from_every_page(
        self, new_bench: NewBench, typical: str, way: str, tmp_path: Path
    ) -> None:
        """A run ends at its first request, at its second, and so on; the same run again fetches
        the rest, and nothing that was finished."""
        bench = new_bench(typical, page_clamp=6, parallel=1, records=18)
        for ordinal in itertools.count(1):
            here = bench.again(tmp_path / f"{way}-{ordinal}")
            with segments_of(6):
                ended = _ends_at(here, ordinal, way)
                assert_truth(here, f"{way} at {ordinal}")
            rows = here.raw()
            assert len(rows) == len({row["record_id"] for row in rows}), "stored twice"
            if not ended:
                break
        assert ordinal > 5, "there were hardly any pages"

    def test_a_finished_run_asks_for_nothing(self, new_bench: NewBench, typical: str) -> None:
        bench = new_bench(typical)
        bench.extract(token="t")
        before = bench.raw()
        bench.control("stats_reset")
        bench.extract(token="t")
        assert bench.asked() == 0
        bench.extract(token="another")
        assert bench.asked() > 0
        assert distinct(bench.raw()) == distinct(before)

    def test_it_stops_within_a_request(self, new_bench: NewBench, typical: str) -> None:
        """Cancelling ends a run at the next request; nothing failed, and the rest comes later."""
        bench = new_bench(typical, page_clamp=7, chunk_days=10, parallel=2)
        request = bench.request()
        asked, seen = itertools.count(), [0]

        def cancelled() -> bool:
            if next(asked) < 6:
                return False
            seen[0] = seen[0] or bench.requests_seen()
            return True

        with pytest.raises(Stopped):
            bench.run(request, cancelled=cancelled)
        assert bench.requests_seen() - seen[0] <= 2, "requests were made after the end"
        states = {chunk.state for chunk in bench.chunks(request.token)}
        assert ChunkState.FAILED not in states
        bench.run(request)
        assert_truth(bench)

    def test_killed_it_loses_and_doubles_nothing(self, new_bench: NewBench) -> None:
        tables, rng = self.enrolment.proven(), Random(self.enrolment.service)
        for number in range(_KILLS):
            bench = new_bench(tables[number % len(tables)], page_clamp=9)
            bench.control("latency", latency_ms=4)
            small = {"segment_rows": _SEGMENT, "chunk_days": 10}
            process = child.start(bench, "t", **small)
            time.sleep(rng.uniform(0.0, 0.3))
            process.kill()
            child.ended(process)
            assert bench.raw() is not None, "every object is whole"
            bench.control("latency", latency_ms=0)
            assert child.ended(child.start(bench, "t", **small)) is not None
            rows = bench.raw()
            assert_truth(bench, f"kill {number}")
            assert len(rows) == len({row["record_id"] for row in rows}), "stored twice"

    # Limits

    def test_no_request_goes_beyond_the_budget(self, new_bench: NewBench, typical: str) -> None:
        """A quarter of the limit at once, then evenly; and every request is paid for."""
        limit, seconds = 60, 1.5
        bench = new_bench(typical, page_clamp=4, page_size=4, records=120)
        here = bench.again(bench.home.with_name("limited"))
        key = f"{bench.service}/{here.connection.tenant}"
        here.installation.control.registry.connect(
            here.connection.tenant,
            bench.service,
            history_start=here.connection.history_start,
            tables=(typical,),
            requests_per_minute=limit,
            now=here.clock(),
        )
        for each in (bench, here):
            each.installation.budget.close()  # gives back what it took in advance
        paid = here.installation.budget.use(key, limit).used
        bench.control("limit", limit_per_minute=limit)
        bench.control("stats_reset")
        end = time.monotonic() + seconds
        with pytest.raises(Stopped):
            here.run(here.request(), cancelled=lambda: time.monotonic() > end)
        stats = bench.control("stats")
        bench.control("limit", limit_per_minute=None)
        here.installation.budget.close()
        assert stats["refused"] == 0, "the service had to refuse requests"
        assert stats["total"] <= limit / 4 + seconds * limit / 60 + 1, "faster than it may"
        assert stats["total"] <= here.installation.budget.use(key, limit).used - paid, (
            "requests were made that nobody paid for"
        )
        assert stats["total"] >= 5, "it hardly began"

    def test_segments_are_stored_as_they_come(self, new_bench: NewBench, typical: str) -> None:
        """However large a window: no more than a segment and a page are held at once."""
        bench = new_bench(typical, page_clamp=10, page_size=10, records=100)
        bench.control("mutate", table=bench.called, count=100, at="2026-02-03T04:05:06Z")
        with segments_of(_SEGMENT):
            bench.extract()
        opened = [bench.installation.objects.open(key) for key in bench.raw_keys()]
        sizes = [pq.ParquetFile(file).metadata.num_rows for file in opened]
        assert max(sizes) <= _SEGMENT + 10
        assert_truth(bench)

    @pytest.mark.skipif(not _ROWS, reason="AVESA_CONFORMANCE_ROWS says how many")
    @pytest.mark.timeout(7200)
    def test_a_large_window_takes_no_more_memory(self, new_bench: NewBench) -> None:
        """Windows of a month, however many records they hold."""
        peaks = []
        table = self._typical(self.enrolment.proven())[0]
        for records in (1_000, min(_ROWS, self.enrolment.most)):
            bench = new_bench(table, records=records, page_clamp=100_000)
            wide = {"chunk_days": 31, "max_chunk_records": 10_000_000, "parallel": 1}
            process = child.start(bench, "t", page_size=None, bulk=None, **wide)
            peak = child.ended(process, within=7000)
            assert peak is not None
            peaks.append(peak)
            chunks = bench.chunks("t")
            assert sum(chunk.rows for chunk in chunks) == records
            assert max(chunk.rows for chunk in chunks) > records / 4, "no window is large"
        assert peaks[1] - peaks[0] < _MEMORY, f"{peaks[0]:,} and then {peaks[1]:,} bytes"

    # What is asked, and what is not there

    def test_empty_windows_are_asked_for(self, new_bench: NewBench, typical: str) -> None:
        """A table with a record, and then one without any: an empty answer is an answer."""
        bench = new_bench(typical, records=1)
        done = bench.extract()
        assert all(partition.windows for partition in done.partitions)
        assert sum(chunk.rows for chunk in done.chunks) == 1
        if typical in self.enrolment.lasting:
            return
        bench.change("delete", count=1)
        bench.settle()
        bench.extract(Mode.SYNC)
        bench.extract(Mode.FULL)
        assert_truth(bench, "empty")
        empty = bench.again(bench.home.with_name("empty"))
        for mode in (Mode.BACKFILL, Mode.SYNC, Mode.FULL):
            assert all(partition.windows for partition in empty.extract(mode).partitions)
        assert not [row for row in empty.raw() if not row["is_deleted"]]

    def test_the_time_zone_of_this_machine_changes_nothing(
        self, new_bench: NewBench, typical: str, zone: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        try:
            monkeypatch.setenv("TZ", zone)
            time.tzset()
            bench = new_bench(typical)
            bench.extract()
            bench.change("mutate", count=5)
            bench.settle()
            bench.extract(Mode.SYNC)
            assert_truth(bench, zone)
        finally:
            monkeypatch.undo()
            time.tzset()

    def test_the_time_zone_of_the_user_changes_nothing(
        self, new_bench: NewBench, typical: str
    ) -> None:
        if self.enrolment.zone is None:
            pytest.skip("it has no time zone of a user")
        bench = new_bench(typical)
        method, arguments = self.enrolment.zone
        bench.control(method, **arguments)
        bench.extract()
        bench.change("mutate", count=5)
        bench.settle()
        bench.extract(Mode.SYNC)
        assert_truth(bench)

    def test_a_new_field_is_kept_and_told(self, new_bench: NewBench, typical: str) -> None:
        if self.enrolment.drift is None:
            pytest.skip("the simulated service cannot add a field")
        bench = new_bench(typical)
        bench.extract()
        added = self.enrolment.drift(bench.rig, bench.called)
        bench.settle()
        bench.change("mutate", count=30)
        bench.settle()
        bench.extract(Mode.SYNC)
        bench.extract(Mode.FULL)
        assert_truth(bench)
        assert any(added in row["payload"] for row in bench.raw() if row["payload"])
        log = bench.installation.control.drift.log(
            bench.connection.tenant, bench.service, bench.table
        )
        assert any(d.kind == "new" and d.path.startswith(added) for d in log), log

    # Credentials

    def test_credentials_that_end_in_the_middle_are_renewed(
        self, new_bench: NewBench, typical: str
    ) -> None:
        if self.enrolment.expire is None:
            pytest.skip("it gives no access tokens")
        bench = new_bench(typical, page_clamp=7, chunk_days=10, parallel=1)
        method, arguments = self.enrolment.expire
        asked = itertools.count(1)

        def cancelled() -> bool:
            if next(asked) % 15 == 0:  # not between a renewal and its request
                bench.control(method, **arguments)
            return False

        bench.run(bench.request(), cancelled=cancelled)
        assert next(asked) > 30, "there was no middle"
        assert_truth(bench)

    def test_credentials_that_are_replaced_in_the_middle_go_unnoticed(
        self, new_bench: NewBench, typical: str
    ) -> None:
        bench = new_bench(typical, page_clamp=7, chunk_days=10, parallel=2)
        secrets, asked = bench.installation.secrets, itertools.count(1)
        held = secrets.get(bench.connection.tenant, bench.service)

        def cancelled() -> bool:
            if next(asked) == 12:
                fresh = bench.control("rotate")["credentials"]
                changed = {name: fresh[name] for name in self.enrolment.secret if name in fresh}
                assert changed.items() - held.items(), "the rig gave none that are new"
                secrets.put(bench.connection.tenant, bench.service, held | changed)
                bench.control("retire")
                if self.enrolment.expire is not None:
                    method, arguments = self.enrolment.expire
                    bench.control(method, **arguments)
            return False

        bench.run(bench.request(), cancelled=cancelled)
        assert next(asked) > 24, "there was no middle"
        assert_truth(bench)

    def test_credentials_that_are_revoked_end_the_run_at_once(
        self, new_bench: NewBench, typical: str
    ) -> None:
        bench = new_bench(typical, page_clamp=7, chunk_days=10, parallel=2)
        request, asked = bench.request(), itertools.count(1)

        def cancelled() -> bool:
            if next(asked) == 12:
                bench.control("revoke")
            return False

        with pytest.raises(CredentialsRefused) as caught:
            bench.run(request, cancelled=cancelled)
        where = caught.value.where
        assert (where.tenant, where.service) == (bench.connection.tenant, bench.service)
        assert bench.control("stats")["by_status"].get("401", 0) <= 6, "it was asked on and on"
        bench.control("restore")
        bench.advance(120)
        bench.run(request)
        assert_truth(bench)

    def test_secrets_are_seen_nowhere(
        self,
        new_bench: NewBench,
        typical: str,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Neither in logs, nor in errors, nor in any file but that of the secrets."""
        caplog.set_level(logging.DEBUG)
        sent = _headers_sent(monkeypatch)
        bench = new_bench(typical)
        texts = []
        for fault in (*hostile.DEADLY, {"kind": "status", "status": 500}):
            bench.hostile({**fault, "probability": 1.0})
            texts.append(_failure(bench))
            bench.advance(120)
        bench.hostile()
        bench.control("revoke")
        texts.append(_failure(bench))
        bench.control("restore")
        bench.advance(120)
        bench.extract()
        seen = "\n".join((*texts, caplog.text)).encode()
        seen += b"".join(stored(bench.installation))
        secrets = {bench.rig.credentials[name] for name in self.enrolment.secret} | sent
        assert secrets
        for secret in secrets:
            for form in _forms(secret):
                assert form not in seen, f"a secret of {len(secret)} characters is there to read"


def _how(bulk: bool) -> str:
    return "in-bulk" if bulk else "by-pages"


def _assert_named(bench: Bench, error: AvesaError, request: Request, note: object = "") -> None:
    """The error names tenant, service and table, and the window as soon as there was one."""
    where, place = error.where, (bench.connection.tenant, bench.service, bench.table)
    assert (where.tenant, where.service, where.table) == place, f"{note}: {error}"
    if bench.chunks(request.token) and not isinstance(error, Suspended):
        assert where.window or "windows failed" in str(error), f"{note}: {error}"


def _ends_at(bench: Bench, ordinal: int, way: str) -> bool:
    """Runs a backfill that ends at a request of the table, and then the same again.

    Returns:
        Whether it ended there; False if it had fewer requests.
    """
    request = bench.request()
    bench.control("stats_reset")
    if way == "fails":
        bench.hostile({"kind": "status", "status": 400, "at": [ordinal]}, page_clamp=6)
    try:
        bench.run(
            request,
            cancelled=lambda: way == "is-stopped" and bench.requests_seen() >= ordinal,
        )
        ended = False
    except AvesaError:
        ended = True
    bench.hostile(page_clamp=6)
    done = {c.chunk_id: c for c in bench.chunks(request.token) if c.state is ChunkState.COMPLETED}
    bench.run(request)
    for chunk in bench.chunks(request.token):
        before = done.get(chunk.chunk_id)
        assert before in (None, chunk), f"{chunk.chunk_id} was finished and is fetched again"
    return ended


def _failure(bench: Bench) -> str:
    """All that a run that fails says of it."""
    try:
        bench.extract()
    except AvesaError as error:
        return "\n".join((str(error), repr(error), *traceback.format_exception(error)))
    raise AssertionError("it did not fail")


def _headers_sent(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Will hold every credential that a request carries in its Authorization header."""
    sent: set[str] = set()
    ask = requests.Session.request

    def noted(session: requests.Session, *args: Any, **kwargs: Any) -> requests.Response:
        headers = kwargs.get("headers") or {}
        value = str(headers.get("Authorization", ""))
        if value:
            sent.add(value.split(" ")[-1])
        return ask(session, *args, **kwargs)

    monkeypatch.setattr(requests.Session, "request", noted)
    return sent


def _forms(secret: str) -> set[bytes]:
    """A secret as it is, and in base64 at any place of a longer text."""
    plain = secret.encode()
    forms = {plain}
    for shift in range(3):
        text = base64.b64encode(b"\0" * shift + plain)
        forms.add(text[4 if shift else 0 : -4])
    return {form for form in forms if len(form) >= 6}
