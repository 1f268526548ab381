"""The machine: packages, limits, disk, and a home that others can look into."""

from __future__ import annotations

import resource
from pathlib import Path

import click
import pytest

from avesa_dagster.doctor import machine
from avesa_dagster.doctor.findings import Level
from avesa_dagster_tests.doctor.support import said


def make_home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    (home / "secrets").mkdir(parents=True)
    home.chmod(0o700)
    (home / "secrets").chmod(0o700)
    for file in (home / "secrets" / "acme.json", home / "alerts.json"):
        file.write_text("{}")
        file.chmod(0o600)
    return home


def test_a_private_home_is_well(tmp_path: Path) -> None:
    assert {finding.level for finding in machine.home(make_home(tmp_path))} == {Level.WELL}


@pytest.mark.parametrize("place", [".", "secrets", "secrets/acme.json", "alerts.json"])
def test_a_home_that_is_open_to_others_is_found(tmp_path: Path, place: str) -> None:
    home = make_home(tmp_path)
    path = home / place
    path.chmod(path.stat().st_mode | 0o044)
    (text,) = said(machine.home(home))
    assert text.startswith(f"{path.resolve()}: is open to others")
    assert f"chmod {'700' if path.is_dir() else '600'} {path}" in text


def test_a_home_of_somebody_else_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = make_home(tmp_path)
    monkeypatch.setattr("os.geteuid", lambda: 4711)
    assert all("belongs to user" in text for text in said(machine.home(home)))
    assert len(said(machine.home(home))) == 4


def test_no_home_is_a_warning_and_none_is_made(tmp_path: Path) -> None:
    (text,) = said(machine.home(tmp_path / "none"), Level.WARNING)
    assert "there is no such folder yet" in text
    assert not (tmp_path / "none").exists()


def test_a_full_disk_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "not" / "there"
    assert [finding.level for finding in machine.space(inside, "it")] == [Level.WELL]
    monkeypatch.setattr(machine, "_SHORT", 2**60)
    (text,) = said(machine.space(inside, "it"), Level.WARNING)
    assert text.startswith(f"{tmp_path}: ") and "are free" in text
    monkeypatch.setattr(machine, "_FULL", 2**60)
    assert len(said(machine.space(inside, "it"))) == 1


def test_few_open_files_are_found() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        (text,) = said(machine.limits(), Level.WARNING)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "512 files" in text and "ulimit -n" in text


def test_packages_that_do_not_fit_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = machine._requirements(["click<1", "no-such-package>=1", "rich", "x; extra == 'dev'"])
    old, none = said(found)
    assert old.startswith("click: is ") and "pip install 'click<1'" in old
    assert none.startswith("no-such-package: is not installed")


def test_what_differs_from_the_pins_is_a_warning(tmp_path: Path) -> None:
    pins = tmp_path / "constraints.txt"
    pins.write_text("# made by hand\nclick==1.0\nno-such-package==3\n")
    (text,) = said(machine.software(pins), Level.WARNING)
    version = machine._version("click")
    assert f"click {version} (pinned 1.0)" in text
    pins.write_text(f"click=={version}\n")
    assert not said(machine.software(pins), Level.WARNING)
    assert click


def test_this_installation_fits_what_it_is_made_for() -> None:
    assert not said(machine.software(Path("none")))
