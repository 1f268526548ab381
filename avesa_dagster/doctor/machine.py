"""Checks of the machine: Python, packages, limits, disk, and who may look into the home."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import avesa_dagster
from avesa_dagster.doctor.findings import Finding, Findings, problem, warning, well

_DISTRIBUTION = "avesa-dagster"
_PINS = Path(avesa_dagster.__file__).parents[1] / "deploy" / "constraints.txt"
_OPEN_FILES = 1024
_SHORT = 5 * 2**30
_FULL = 500 * 2**20
_WATCHED = 20
"""Files that are named one by one at most."""


def software(pins: Path = _PINS) -> Findings:
    """Python and the packages, against what AVESA is made for and what an install pins."""
    try:
        own = importlib.metadata.distribution(_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        yield problem(
            f"{_DISTRIBUTION} is not installed", "", "install it: pip install avesa-dagster"
        )
        return
    python = platform.python_version()
    wanted = own.metadata["Requires-Python"] or ""
    if not SpecifierSet(wanted).contains(python, prereleases=True):
        yield problem(f"Python is {python}", "", f"AVESA needs {wanted}")
    else:
        yield well(f"Python {python}, AVESA {own.version}")
    yield from _requirements(own.requires or [])
    yield from _pinned(pins)


def _requirements(requires: list[str]) -> Findings:
    for text in requires:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _version(requirement.name)
        if version is None:
            yield problem("is not installed", requirement.name, f"pip install '{text}'")
        elif not requirement.specifier.contains(version, prereleases=True):
            yield problem(
                f"is {version}, not {requirement.specifier}",
                requirement.name,
                f"pip install '{text}'",
            )


def _pinned(pins: Path) -> Findings:
    """What differs from the versions that the suite was run with."""
    if not pins.exists():
        return
    differing = []
    for line in pins.read_text("utf-8").splitlines():
        name, separator, pinned = line.partition("==")
        version = _version(name.strip()) if separator else None
        if version is not None and version != pinned.strip():
            differing.append(f"{name.strip()} {version} (pinned {pinned.strip()})")
    if differing:
        shown = ", ".join(differing[:5]) + (", …" if len(differing) > 5 else "")
        yield warning(
            f"{len(differing)} package(s) are not as pinned: {shown}",
            str(pins),
            f"pip install -c {pins} avesa-dagster",
        )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def limits() -> Findings:
    """How many files a process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _OPEN_FILES:
        yield warning(
            f"a process may open {soft} files only",
            "",
            f"a wide backfill needs more: ulimit -n {4 * _OPEN_FILES}",
        )
        return
    yield well("any number" if soft == resource.RLIM_INFINITY else f"{soft} files")


def space(folder: Path, what: str) -> Findings:
    """Free space where a folder lies, or will lie.

    Args:
        what: What the folder is for.
    """
    there = next(path for path in (folder, *folder.parents) if path.exists())
    usage = shutil.disk_usage(there)
    told = f"{_size(usage.free)} of {_size(usage.total)} are free"
    if usage.free < _FULL:
        yield problem(
            told, str(there), f"make room for {what}; nothing half-written is ever visible"
        )
    elif usage.free < _SHORT:
        yield warning(told, str(there), f"make room for {what} soon")
    else:
        yield well(told, str(there))


def temporary() -> Findings:
    """Free space for what is written before it is uploaded."""
    yield from space(Path(tempfile.gettempdir()), "files that are being uploaded (TMPDIR)")


def home(folder: Path) -> Findings:
    """Whether only its owner may look into the home, and into the secrets in it."""
    if not folder.exists():
        yield warning(
            "there is no such folder yet",
            str(folder),
            "the first avesa connect makes it; set AVESA_HOME if the installation is elsewhere",
        )
        return
    yield from space(folder, "the lake")
    found = list(_open_to_others(folder))
    yield from found[:_WATCHED]
    if len(found) > _WATCHED:
        more = f"and {len(found) - _WATCHED} more files like these"
        yield problem(more, str(folder / "secrets"), "chmod 600 all files in it")
    if not found:
        yield well("only its owner may look into it", str(folder))


def _open_to_others(folder: Path) -> Iterator[Finding]:
    secrets = folder / "secrets"
    for path, why in ((folder, "records of tenants lie there"), (secrets, "credentials lie there")):
        if path.exists():
            yield from _private(path, 0o700, why)
    files = [path for path in (folder / "alerts.json",) if path.exists()]
    if secrets.is_dir() and os.access(secrets, os.R_OK | os.X_OK):
        files += sorted(secrets.glob("*.json"))
    for path in files:
        yield from _private(path, 0o600, "it holds credentials")


def _private(path: Path, mode: int, why: str) -> Iterator[Finding]:
    held = path.stat()
    if held.st_uid != os.geteuid():
        yield problem(
            f"belongs to user {held.st_uid}, and this is user {os.geteuid()}",
            str(path),
            f"run avesa as its owner, or: chown -R {os.geteuid()} {path}",
        )
    given = stat.S_IMODE(held.st_mode)
    if given & 0o077:
        yield problem(
            f"is open to others (mode {given:04o}), and {why}", str(path), f"chmod {mode:o} {path}"
        )


def _size(count: int) -> str:
    return f"{count / 2**30:,.1f} GB"
