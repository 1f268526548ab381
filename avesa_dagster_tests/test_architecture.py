"""Imports point one way, and only the Dagster face knows Dagster."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import avesa_dagster

PACKAGE = Path(avesa_dagster.__file__).parent
ORDER = (
    "errors", "logs", "names", "settings", "aws", "outside", "catalog", "control.base",
    "sources.base", "control", "sources", "lake", "extract", "canonical", "lake.reader", "backfill",
    "watch", "profiles", "installation", "erasure", "migration", "doctor", "sandbox", "conformance",
    "defs", "definitions", "cli",
)  # fmt: skip
DAGSTER_FACES = ("defs", "definitions")


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def room(module: str) -> str:
    """The room of the plan that a module `a.b.c` of the package stands in."""
    matching = [r for r in ORDER if module == r or module.startswith(f"{r}.")]
    assert matching, f"{module} stands in no room of the plan"
    return max(matching, key=len)


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_module_imports_only_from_rooms_before_its_own(path: Path) -> None:
    here = ORDER.index(room(name_of(path)))
    for imported in imports(path):
        own = imported.removeprefix("avesa_dagster.")
        if own == imported or not (PACKAGE / own.split(".")[0]).exists():
            continue
        target = PACKAGE.joinpath(*own.split("."))
        if not (target.is_dir() or target.with_suffix(".py").exists()):
            continue
        if name_of(path) == "defs.onboarding" and own == "definitions":
            continue  # builds the new definitions before it lets them be loaded
        assert ORDER.index(room(own)) <= here, f"{name_of(path)} imports {own}"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_only_the_dagster_face_imports_dagster(path: Path) -> None:
    if room(name_of(path)) not in DAGSTER_FACES:
        assert not [i for i in imports(path) if i.split(".")[0].startswith("dagster")]


@pytest.mark.parametrize("module", ["cli.main", "definitions"])
def test_the_embedded_profile_loads_nothing_of_aws(module: str) -> None:
    said = f"import sys, avesa_dagster.{module}; print({{'boto3', 'botocore'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[-2] == "set()"
