"""Whose turn it is: few at once, fair between tenants, deep history at night."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avesa_dagster.backfill.schedule import Turn, off_peak_now, turns
from avesa_dagster.catalog.models import Catalog, OffPeak
from avesa_dagster.control.health import Breaker, BreakerState
from avesa_dagster.control.jobs import ACTIVE, Job, JobStatus, PieceState

from .support import NOW, SERVICE, catalog_of, job_of, piece_of

LAUNCHED, WAITING, DONE = PieceState.LAUNCHED, PieceState.WAITING, PieceState.DONE
NIGHT = OffPeak(start=time(22), end=time(6))


def launched(found: list[Turn]) -> list[tuple[str, int]]:
    return [(turn.job.job_id, turn.piece.number) for turn in found if turn.piece is not None]


def waiting(found: list[Turn]) -> dict[str, str]:
    return {turn.job.job_id: turn.note for turn in found if turn.piece is None}


def big(job_id: str, tenant: str, length: int, first: int = 0, **fields: object) -> Job:
    """A job of so many pieces, the first ones recent."""
    pieces = [piece_of(number, recent=number < first) for number in range(length)]
    return job_of(job_id, *pieces, tenant=tenant, **fields)


def open_breaker(
    tenant: str, state: BreakerState = BreakerState.OPEN
) -> dict[tuple[str, str], Breaker]:
    breaker = Breaker(tenant, SERVICE, state, 5, "it answers 500", probe_at=NOW)
    return {(tenant, SERVICE): breaker}


def test_at_most_so_many_tenants_and_jobs_fetch_at_once() -> None:
    jobs = [job_of(f"b{n}", tenant=f"t{n}", created_at=NOW + timedelta(n)) for n in range(9)]
    few = turns(jobs, {}, catalog_of(max_tenants=3, max_jobs=5), NOW)
    assert launched(few) == [("b0", 0), ("b1", 0), ("b2", 0)]
    assert set(waiting(few).values()) == {"waits: 3 tenants are being backfilled"}
    few = turns(jobs, {}, catalog_of(max_tenants=8, max_jobs=5), NOW)
    assert launched(few) == [(f"b{n}", 0) for n in range(5)]
    assert set(waiting(few).values()) == {"waits: 5 backfills are running"}


def test_those_that_fetch_already_count() -> None:
    jobs = [job_of("b0", piece_of(state=LAUNCHED), tenant="t0")]
    jobs += [job_of(f"b{n}", tenant=f"t{n}") for n in (1, 2)]
    assert launched(turns(jobs, {}, catalog_of(max_tenants=2), NOW)) == [("b1", 0)]
    assert launched(turns(jobs, {}, catalog_of(max_jobs=2), NOW)) == [("b1", 0)]


def test_two_services_of_a_tenant_are_two_jobs_and_one_tenant() -> None:
    jobs = [replace(job_of(f"b{n}"), service=f"s{n}") for n in range(3)]
    assert len(launched(turns(jobs, {}, catalog_of(max_tenants=1, max_jobs=2), NOW))) == 2


def test_a_lane_has_one_job_at_a_time() -> None:
    jobs = [job_of("b0", created_at=NOW), job_of("b1", created_at=NOW + timedelta(1))]
    found = turns(jobs, {}, catalog_of(), NOW)
    assert launched(found) == [("b0", 0)]
    assert waiting(found) == {"b1": "waits for another backfill of this tenant's service"}
    jobs = [job_of("b0", piece_of(state=LAUNCHED), piece_of(1)), job_of("b1")]
    found = turns(jobs, {}, catalog_of(), NOW)
    assert launched(found) == [], "nor is anything launched ahead where somebody waits"


@pytest.mark.parametrize("status", sorted(set(JobStatus) - ACTIVE))
def test_what_does_not_fetch_has_no_turn_and_no_place(status: JobStatus) -> None:
    jobs = [
        job_of("b0", piece_of(state=LAUNCHED), piece_of(1), status=status),
        job_of("b1"),
    ]
    found = turns(jobs, {}, catalog_of(max_jobs=1, max_tenants=1), NOW)
    assert launched(found) == [("b1", 0)]


def test_recent_months_go_before_deep_history_however_old_that_job_is() -> None:
    old = big("b0", "t0", 3, created_at=NOW - timedelta(9))
    new = big("b1", "t1", 3, first=1, created_at=NOW)
    assert launched(turns([old, new], {}, catalog_of(max_tenants=1), NOW)) == [("b1", 0)]


def test_who_was_served_longest_ago_goes_first_then_who_asked_first() -> None:
    done = piece_of(0, state=DONE)
    jobs = [
        job_of("b0", replace(done, launched_at=NOW - timedelta(hours=1)), piece_of(1), tenant="t0"),
        job_of("b1", replace(done, launched_at=NOW - timedelta(hours=2)), piece_of(1), tenant="t1"),
        job_of("b3", tenant="t3", created_at=NOW + timedelta(2)),
        job_of("b2", tenant="t2", created_at=NOW + timedelta(1)),
    ]
    order = []
    while jobs:
        (one,) = launched(turns(jobs, {}, catalog_of(max_tenants=1, max_jobs=1), NOW))
        order.append(one[0])
        jobs = [job for job in jobs if job.job_id != one[0]]
    assert order == ["b2", "b3", "b1", "b0"]


def test_a_tenant_whose_job_ended_lately_was_served_lately() -> None:
    ended = job_of("b0", piece_of(state=DONE, launched_at=NOW), status=JobStatus.COMPLETED)
    jobs = [ended, job_of("b1"), job_of("b2", tenant="t2", created_at=NOW + timedelta(1))]
    assert launched(turns(jobs, {}, catalog_of(max_tenants=1), NOW)) == [("b2", 0)]


def drive(
    jobs: list[Job], catalog: Catalog, lasts: Callable[[str], int] = lambda tenant: 1
) -> list[list[str]]:
    """A tick is a minute; the tenants launched in each.

    Args:
        lasts: Ticks that each run of a tenant takes.
    """
    now, served = NOW, []
    while any(job.status in ACTIVE for job in jobs):
        jobs = [_went_on(job, now, lasts(job.tenant)) for job in jobs]
        known = {job.job_id: job for job in jobs}
        tick = []
        for turn in turns(jobs, {}, catalog, now):
            job = known[turn.job.job_id]
            if turn.piece is None or any(piece.state is LAUNCHED for piece in job.pieces):
                continue  # nothing is launched ahead here
            pieces = list(job.pieces)
            pieces[turn.piece.number] = replace(turn.piece, state=LAUNCHED, launched_at=now)
            known[job.job_id] = replace(job, pieces=tuple(pieces), status=JobStatus.RUNNING)
            tick.append(job.tenant)
        served.append(tick)
        jobs = list(known.values())
        now += timedelta(minutes=1)
    return served


def _went_on(job: Job, now: datetime, minutes: int) -> Job:
    over = now - timedelta(minutes=minutes)
    pieces = tuple(
        replace(piece, state=DONE, ended_at=now)
        if piece.state is LAUNCHED and piece.launched_at and piece.launched_at <= over
        else piece
        for piece in job.pieces
    )
    ended = all(piece.state is DONE for piece in pieces)
    return replace(job, pieces=pieces, status=JobStatus.COMPLETED if ended else job.status)


@settings(max_examples=12, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=49, max_size=49),
    place=st.integers(0, 49),
    max_tenants=st.integers(1, 5),
)
def test_with_50_queued_none_waits_for_the_end_of_a_big_one(
    lengths: list[int], place: int, max_tenants: int
) -> None:
    lengths.insert(place, 60)
    jobs = [
        big(f"b{n}", f"t{n}", length, created_at=NOW + timedelta(seconds=n))
        for n, length in enumerate(lengths)
    ]
    served = drive(jobs, catalog_of(max_tenants=max_tenants, max_jobs=5))
    flat = [tenant for tick in served for tenant in tick]
    for n, length in enumerate(lengths):
        places = [at for at, tenant in enumerate(flat) if tenant == f"t{n}"]
        assert len(places) == length
        assert places[0] < 50 + max_tenants, "each has a turn in the first round"
        waits = [later - earlier for earlier, later in pairwise(places)]
        assert max(waits, default=0) <= 2 * (50 + max_tenants), "and then soon again"
    assert all(len(tick) == len(set(tick)) <= max_tenants for tick in served)


def test_a_tenant_that_is_ten_times_as_slow_takes_no_more_time_than_the_others() -> None:
    def others_end(*slow: str) -> int:
        """Ticks until the 27 have ended."""
        tenants = [*slow, *(f"t{n}" for n in range(27))]
        jobs = [
            big(f"b{tenant}", tenant, 3, created_at=NOW + timedelta(seconds=n))
            for n, tenant in enumerate(tenants)
        ]
        served = drive(jobs, catalog_of(max_tenants=3), lambda t: 10 if t in slow else 1)
        last = max(at for at, tick in enumerate(served) if set(tick) - set(slow))
        assert {tenant for tick in served for tenant in tick} == set(tenants), "nor is it forgotten"
        return last + 1

    assert others_end("slow") <= 1.2 * others_end()


def test_where_nobody_waits_the_next_piece_is_launched_ahead_and_one_only() -> None:
    job = job_of("b0", piece_of(0, state=LAUNCHED), piece_of(1), piece_of(2))
    assert launched(turns([job], {}, catalog_of(), NOW)) == [("b0", 1)]
    job = job_of("b0", piece_of(0, state=LAUNCHED), piece_of(1, state=LAUNCHED), piece_of(2))
    assert turns([job], {}, catalog_of(), NOW) == []


def test_nothing_is_launched_ahead_past_the_night_or_the_breaker() -> None:
    job = job_of("b0", piece_of(0, state=LAUNCHED), piece_of(1, recent=False))
    night = catalog_of(off_peak=NIGHT)
    assert turns([job], {}, night, NOW) == []
    assert launched(turns([job], {}, night, NOW.replace(hour=23))) == [("b0", 1)]
    assert turns([job], open_breaker("acme"), catalog_of(), NOW) == []
    assert turns([job], {}, catalog_of(), NOW, {"b0": "waits until its assets are loaded"}) == []


def test_who_cannot_go_on_anyway_keeps_nobody_from_launching_ahead() -> None:
    ahead = job_of("b0", piece_of(0, state=LAUNCHED), piece_of(1))
    suspended = job_of("b1", tenant="t1")
    night = job_of("b2", piece_of(0, recent=False), tenant="t2")
    held = job_of("b3", tenant="t3")
    found = turns(
        [ahead, suspended, night, held], open_breaker("t1"), catalog_of(off_peak=NIGHT), NOW,
        {"b3": "waits until it is connected"},
    )  # fmt: skip
    assert launched(found) == [("b0", 1)]
    assert set(waiting(found)) == {"b1", "b2", "b3"}


@pytest.mark.parametrize("state", [BreakerState.OPEN, BreakerState.HALF_OPEN])
def test_a_suspended_service_waits_and_says_why_and_until_when(state: BreakerState) -> None:
    jobs = [job_of("b0"), job_of("b1", tenant="t1")]
    found = turns(jobs, open_breaker("acme", state), catalog_of(max_jobs=1), NOW)
    assert launched(found) == [("b1", 0)]
    assert waiting(found) == {"b0": "suspended: it answers 500; probed again at 10:00:00 UTC"}


def test_failures_that_have_not_opened_the_breaker_hold_nobody() -> None:
    found = turns([job_of("b0")], open_breaker("acme", BreakerState.CLOSED), catalog_of(), NOW)
    assert launched(found) == [("b0", 0)]


def test_a_job_that_is_held_takes_no_place_and_says_why() -> None:
    jobs = [job_of("b0"), job_of("b1", tenant="t1"), job_of("b2")]
    found = turns(jobs, {}, catalog_of(max_jobs=2, max_tenants=2), NOW, {"b0": "not loaded"})
    assert launched(found) == [("b1", 0), ("b2", 0)]
    assert waiting(found) == {"b0": "not loaded"}


# The night.


def may(moment: datetime, zone: str = "Europe/Berlin", hours: OffPeak = NIGHT) -> bool:
    catalog = catalog_of(off_peak=hours, zones={"acme": zone})
    return off_peak_now(job_of(), piece_of(recent=False), catalog, moment)


def test_deep_history_waits_for_the_night_of_the_tenant() -> None:
    catalog = catalog_of(off_peak=NIGHT, zones={"tokyo": "Asia/Tokyo"})
    jobs = [job_of(f"b{t}", piece_of(recent=False), tenant=t) for t in ("tokyo", "utc")]
    noon = NOW.replace(hour=13)  # 22:00 in Tokyo
    found = turns(jobs, {}, catalog, noon)
    assert launched(found) == [("btokyo", 0)]
    assert waiting(found) == {"butc": "waits for the off-peak hours, from 22:00 in UTC"}


def test_recent_months_and_jobs_for_now_do_not_wait_for_it() -> None:
    catalog = catalog_of(off_peak=NIGHT)
    deep = piece_of(recent=False)
    assert not off_peak_now(job_of(), deep, catalog, NOW)
    assert off_peak_now(job_of(), piece_of(), catalog, NOW)
    assert off_peak_now(job_of(at_once=True), deep, catalog, NOW)
    assert off_peak_now(job_of(), deep, catalog_of(), NOW), "off unless it is set"


@pytest.mark.parametrize(
    ("local", "holds"),
    [
        ("21:59:59", False), ("22:00:00", True), ("23:59:59", True), ("00:00:00", True),
        ("05:59:59", True), ("06:00:00", False), ("12:00:00", False),
    ],
)  # fmt: skip
def test_it_reaches_over_midnight_in_summer_and_in_winter(local: str, holds: bool) -> None:
    for day in ("2026-01-14", "2026-07-14"):
        moment = datetime.fromisoformat(f"{day} {local}").replace(tzinfo=ZoneInfo("Europe/Berlin"))
        assert may(moment.astimezone(UTC)) is holds, day


def test_hours_within_a_day() -> None:
    lunch = OffPeak(start=time(12), end=time(13))
    hours = [hour for hour in range(24) if may(NOW.replace(hour=hour), "UTC", lunch)]
    assert hours == [12]


@pytest.mark.parametrize(
    ("day", "long"),
    [("2026-03-29", 7), ("2026-10-25", 9), ("2026-07-14", 8)],
)
def test_the_night_of_a_clock_change_is_an_hour_shorter_or_longer(day: str, long: int) -> None:
    noon_before = datetime.fromisoformat(f"{day}T12:00+00:00") - timedelta(days=1)
    minutes = [noon_before + timedelta(minutes=n) for n in range(24 * 60)]
    held = [minute for minute in minutes if may(minute)]
    assert len(held) == long * 60
    assert all(later - earlier == timedelta(minutes=1) for earlier, later in pairwise(held))
    assert {held[0].astimezone(ZoneInfo("Europe/Berlin")).hour} == {22}


@given(
    moment=st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1)),
    zone=st.sampled_from(
        ["UTC", "Europe/Berlin", "America/St_Johns", "Asia/Kathmandu", "Pacific/Apia"]
    ),
    start=st.times(),
    end=st.times(),
)
def test_the_hours_and_those_that_are_not_are_the_whole_day(
    moment: datetime, zone: str, start: time, end: time
) -> None:
    if start == end:
        return
    here = moment.replace(tzinfo=UTC)
    inside, outside = OffPeak(start=start, end=end), OffPeak(start=end, end=start)
    assert may(here, zone, inside) is not may(here, zone, outside)
