"""Checks stand by themselves: what fails is a finding, and what needs it is not asked."""

from __future__ import annotations

from collections.abc import Iterator

from avesa_dagster.doctor.findings import (
    Check,
    Finding,
    Level,
    counts,
    look_through,
    problem,
    together,
    warning,
    well,
)
from avesa_dagster.errors import ConfigurationError, Where

SECRET = "S3CRET-in-a-text"


def crash() -> Iterator[Finding]:
    yield well("so far")
    raise KeyError(SECRET)


def refuse() -> Iterator[Finding]:
    raise ConfigurationError("it is wrong", where=Where("acme"), hint="mend it")
    yield


def test_a_check_that_crashes_is_a_finding_without_its_text_and_the_others_go_on() -> None:
    first, second = look_through([Check("a", "A", crash), Check("b", "B", lambda: [well("good")])])
    assert [finding.level for finding in first.findings] == [Level.WELL, Level.PROBLEM]
    assert "KeyError" in first.findings[1].what and "test_findings.py" in first.findings[1].where
    assert SECRET not in repr(first)
    assert second.level is Level.WELL


def test_an_error_of_avesa_is_a_finding_that_says_what_to_do() -> None:
    (one,) = look_through([Check("a", "A", refuse)])
    assert one.findings == (problem("it is wrong", "tenant=acme", "mend it", blocking=True),)


def test_the_doctor_does_not_send_people_to_the_doctor() -> None:
    def circular() -> Iterator[Finding]:
        raise ConfigurationError("403", hint="avesa doctor says which permission is missing")
        yield

    (one,) = look_through([Check("a", "A", circular)])
    assert one.findings[0].todo and "avesa doctor" not in one.findings[0].todo


def test_what_needs_a_check_that_failed_is_not_asked_and_names_the_root() -> None:
    asked = []

    def look(name: str) -> list[Finding]:
        asked.append(name)
        return [well(name)]

    looked = list(
        look_through(
            [
                Check("a", "A", refuse),
                Check("b", "B", lambda: look("b"), ("a",)),
                Check("c", "C", lambda: look("c"), ("a", "b")),
                Check("d", "D", lambda: look("d"), ("unknown",)),
            ]
        )
    )
    assert asked == ["d"]
    assert [one.lacking for one in looked] == [(), ("A",), ("A",), ()]
    assert counts(looked)[Level.SKIPPED] == 2 and counts(looked)[Level.PROBLEM] == 1
    (later,) = look_through([Check("e", "E", lambda: look("e"), ("c",))], before=looked)
    assert later.lacking == ("A",) and asked == ["d"]


def test_what_does_not_block_lets_the_next_one_look() -> None:
    checks = [
        Check("a", "A", lambda: [problem("p", "", "t")]),
        Check("b", "B", lambda: [warning("w", "", "t")], ("a",)),
    ]
    assert [one.level for one in look_through(checks)] == [Level.PROBLEM, Level.WARNING]


def test_many_alike_are_told_in_short() -> None:
    found = [problem(f"p{n}", f"w{n}", "t") for n in range(25)] + [warning("w", "", "t")]
    told = list(together(found, most=3))
    assert [one.what for one in told] == ["p0", "p1", "p2", "and 22 more like this", "w"]
    assert list(together(found[:3], most=3)) == found[:3]
