"""What every Breakers does: it opens in time, waits longer each time, and lets one caller probe."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from datetime import datetime, timedelta
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avesa_dagster.control.health import Breaker, Breakers, BreakerState
from avesa_dagster.errors import ConfigurationError

from .conftest import Control, Opener, day

SPAWN = multiprocessing.get_context("spawn")
THRESHOLD, WAIT, LONGEST = 5, 60, 3600  # the defaults of BreakerSettings
NOON = day(0)


def after(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def fail(breakers: Breakers, seconds: float = 0, *, credentials: bool = False) -> Breaker:
    return breakers.failed(
        "acme", "connectwise", f"failure at {seconds}", credentials=credentials, now=after(seconds)
    )


def probe(breakers: Breakers, seconds: float) -> bool:
    return breakers.probe("acme", "connectwise", now=after(seconds))


def get(breakers: Breakers) -> Breaker:
    return breakers.get("acme", "connectwise")


def open_it(breakers: Breakers) -> Breaker:
    return [fail(breakers) for _ in range(THRESHOLD)][-1]


def test_an_unknown_one_is_closed_and_nothing_is_to_probe(control: Control) -> None:
    assert get(control.breakers) == Breaker("acme", "connectwise")
    assert control.breakers.all() == []
    assert not probe(control.breakers, 1e6)


def test_a_failure_that_speaks_for_all_opens_it_at_once(control: Control) -> None:
    breakers = control.breakers
    opened = breakers.failed(
        "acme", "connectwise", "used up", credentials=False, now=NOON, at_once=True
    )
    assert opened.state is BreakerState.OPEN and not opened.credentials
    assert opened.probe_at == after(WAIT)
    assert probe(breakers, WAIT)


def test_failures_in_a_row_open_it_and_a_success_between_forgets_them(control: Control) -> None:
    breakers = control.breakers
    for number in range(1, THRESHOLD):
        assert (fail(breakers).state, get(breakers).failures) == (BreakerState.CLOSED, number)
    assert breakers.succeeded("acme", "connectwise") == Breaker("acme", "connectwise")
    for _ in range(THRESHOLD - 1):
        assert fail(breakers, 7).state is BreakerState.CLOSED
    opened = fail(breakers, 8)
    assert opened == get(breakers)
    assert opened == Breaker(
        "acme", "connectwise", BreakerState.OPEN, THRESHOLD, "failure at 8", False,
        opened_at=after(8), probe_at=after(8 + WAIT), openings=1,
    )  # fmt: skip


def test_the_count_outlives_the_process(opener: Opener, tmp_path: Path) -> None:
    for _ in range(THRESHOLD - 1):
        assert fail(opener(tmp_path).breakers).state is BreakerState.CLOSED
    assert fail(opener(tmp_path).breakers).state is BreakerState.OPEN


def test_refused_credentials_open_at_once(control: Control) -> None:
    opened = fail(control.breakers, credentials=True)
    assert (opened.state, opened.credentials, opened.failures) == (BreakerState.OPEN, True, 1)


def test_what_fails_while_it_is_open_is_counted_and_puts_no_probe_off(control: Control) -> None:
    opened = open_it(control.breakers)
    late = fail(control.breakers, 30)
    assert (late.failures, late.reason) == (THRESHOLD + 1, "failure at 30")
    assert (late.state, late.probe_at, late.openings) == (BreakerState.OPEN, opened.probe_at, 1)


def test_a_straggler_does_not_hide_that_credentials_were_refused(control: Control) -> None:
    refused = fail(control.breakers, credentials=True)
    late = fail(control.breakers, 1)
    assert (late.credentials, late.reason, late.failures) == (True, refused.reason, 2)
    assert probe(control.breakers, WAIT)
    probed = fail(control.breakers, WAIT)
    assert (probed.credentials, probed.reason) == (False, f"failure at {WAIT}")


def test_one_caller_probes_once_the_wait_is_over(control: Control) -> None:
    open_it(control.breakers)
    assert not probe(control.breakers, WAIT - 0.001)
    assert probe(control.breakers, WAIT)
    assert get(control.breakers).state is BreakerState.HALF_OPEN
    assert not probe(control.breakers, WAIT + 119.999)
    assert probe(control.breakers, WAIT + 120), "the prober has died"
    assert not probe(control.breakers, WAIT + 121)


def test_a_probe_that_fails_doubles_the_wait_up_to_the_longest(control: Control) -> None:
    opened = open_it(control.breakers)
    now, waits = 0.0, []
    for _ in range(80):
        assert opened.probe_at is not None
        waits.append((opened.probe_at - after(now)).total_seconds())
        now = (opened.probe_at - NOON).total_seconds()
        assert probe(control.breakers, now)
        opened = fail(control.breakers, now)
        assert opened.opened_at == NOON, "it is wrong since then"
    assert waits[:8] == [60, 120, 240, 480, 960, 1920, 3600, 3600]
    assert set(waits[8:]) == {LONGEST}
    assert opened.openings == 81


def test_a_probe_that_succeeds_closes_it_and_the_waits_begin_anew(control: Control) -> None:
    open_it(control.breakers)
    assert probe(control.breakers, 60)
    fail(control.breakers, 60)
    assert probe(control.breakers, 200)
    control.breakers.succeeded("acme", "connectwise")
    assert control.breakers.all() == []
    assert open_it(control.breakers).probe_at == after(WAIT)


def test_nobody_else_waits(control: Control) -> None:
    open_it(control.breakers)
    control.breakers.failed("acme", "servicenow", "x", credentials=False, now=NOON)
    assert control.breakers.get("initech", "connectwise").state is BreakerState.CLOSED
    assert [(b.service, b.failures) for b in control.breakers.all()] == [
        ("connectwise", 5),
        ("servicenow", 1),
    ]
    control.breakers.failed("initech", "servicenow", "x", credentials=True, now=NOON)
    assert control.breakers.forget("acme") == 2
    assert [b.tenant for b in control.breakers.all()] == ["initech"]


def test_what_cannot_be_kept_is_refused(control: Control) -> None:
    with pytest.raises(ConfigurationError, match="tenant name"):
        control.breakers.failed("../x", "s", "x", credentials=False, now=NOON)
    with pytest.raises(ConfigurationError, match="time zone"):
        naive = NOON.replace(tzinfo=None)
        control.breakers.failed("acme", "s", "x", credentials=True, now=naive)
    assert control.breakers.all() == []


def test_a_reason_with_half_a_surrogate_pair_is_kept_as_far_as_it_goes(control: Control) -> None:
    reason = control.breakers.failed("acme", "s", "a\ud800b", credentials=False, now=NOON).reason
    assert reason == "a?b"
    assert control.breakers.get("acme", "s").reason == reason


@dataclass(slots=True)
class Model:
    """The rules, written once more: times in seconds, `until` is when somebody may probe."""

    failures: int = 0
    openings: int = 0
    until: float | None = None
    probing: bool = False

    def failed(self, now: float, credentials: bool) -> None:
        self.failures += 1
        opens = self.until is None and (credentials or self.failures >= THRESHOLD)
        if opens or self.probing:
            self.until = now + min(WAIT * 2**self.openings, LONGEST)
            self.openings += 1
            self.probing = False

    def probe(self, now: float) -> bool:
        if self.until is None or now < self.until:
            return False
        self.until, self.probing = now + 120, True
        return True

    @property
    def state(self) -> BreakerState:
        if self.until is None:
            return BreakerState.CLOSED
        return BreakerState.HALF_OPEN if self.probing else BreakerState.OPEN


STEPS = st.tuples(
    st.sampled_from(["failed", "failed", "failed", "refused", "succeeded", "probe", "probe"]),
    st.sampled_from([0, 1, 59, 60, 61, 119, 120, 121, 240, 3600]),
)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(steps=st.lists(STEPS, max_size=40))
def test_it_follows_the_rules_whatever_happens(
    control: Control, steps: list[tuple[str, int]]
) -> None:
    control.breakers.forget("acme")
    _follow(control.breakers, steps)


def _follow(breakers: Breakers, steps: list[tuple[str, int]]) -> None:
    model, now = Model(), 0.0
    for step, passes in steps:
        now += passes
        match step:
            case "succeeded":
                breakers.succeeded("acme", "connectwise")
                model = Model()
            case "probe":
                assert probe(breakers, now) is model.probe(now)
            case _:
                fail(breakers, now, credentials=step == "refused")
                model.failed(now, step == "refused")
        held = get(breakers)
        assert (held.state, held.failures, held.openings) == (
            model.state,
            model.failures,
            model.openings,
        )
        assert held.probe_at == (None if model.until is None else after(model.until))
        assert (held.opened_at is None) is (held.state is BreakerState.CLOSED)
        assert breakers.all() == ([held] if model.failures else [])


def _probe_at_once(opener: Opener, folder: str, gate: Barrier, won: str, worker: int) -> None:
    breakers = opener(Path(folder)).breakers
    for number in range(15):
        gate.wait(60)
        if breakers.probe(f"t{number}", "s", now=after(WAIT)):
            (Path(won) / f"{number}-{worker}").touch()


def test_of_several_processes_one_probes(opener: Opener, tmp_path: Path) -> None:
    won = tmp_path / "won"
    won.mkdir()
    breakers = opener(tmp_path).breakers
    for number in range(15):
        breakers.failed(f"t{number}", "s", "x", credentials=True, now=NOON)
    gate = SPAWN.Barrier(3)
    workers = [
        SPAWN.Process(target=_probe_at_once, args=(opener, str(tmp_path), gate, str(won), worker))
        for worker in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert sorted(int(path.name.split("-")[0]) for path in won.iterdir()) == list(range(15))


def _fail_often(opener: Opener, folder: str, times: int) -> None:
    breakers = opener(Path(folder)).breakers
    for _ in range(times):
        fail(breakers)


def test_no_failure_of_several_processes_is_lost(opener: Opener, tmp_path: Path) -> None:
    workers = [
        SPAWN.Process(target=_fail_often, args=(opener, str(tmp_path), 20)) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    held = get(opener(tmp_path).breakers)
    assert (held.failures, held.openings) == (40, 1)
