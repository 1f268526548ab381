"""The image's recipe: what it copies is there, what it runs exists, and it is nobody's root."""

from __future__ import annotations

import re
import sys
import tomllib

from avesa_dagster_tests.deploy.template import ROOT

RECIPE = ROOT / "deploy" / "aws" / "Dockerfile"
LINES = RECIPE.read_text("utf-8").replace("\\\n", " ").splitlines()


def _all(instruction: str) -> list[list[str]]:
    return [line.split()[1:] for line in LINES if line.split()[:1] == [instruction]]


def test_what_it_copies_is_there_and_not_ignored() -> None:
    ignored = (RECIPE.parent / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    copied = [
        path for words in _all("COPY") if not words[0].startswith("--") for path in words[:-1]
    ]
    assert copied
    for path in copied:
        assert (ROOT / path).exists(), path
        assert f"!{path}" in ignored, path


def test_all_that_the_build_needs_is_copied() -> None:
    """setuptools reads these; a wheel without mappings would be an installation without any."""
    copied = {path for words in _all("COPY") for path in words[:-1]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert {"pyproject.toml", "setup.py", project["project"]["readme"], "LICENSE"} <= copied
    globs = [g for gs in project["tool"]["setuptools"]["data-files"].values() for g in gs]
    assert {pattern.split("/")[0] for pattern in globs} <= copied


def test_versions_are_pinned() -> None:
    install = next(line for line in LINES if "pip install" in line)
    assert "--constraint constraints.txt" in install
    assert next(words[0] for words in _all("ARG")) == "PYTHON=python:3.11-slim"


def test_it_does_not_run_as_root() -> None:
    users = _all("USER")
    assert users and users[-1][0] not in ("0", "root")
    after = LINES[[line.split()[:1] for line in LINES].index(["USER"]) :]
    assert not [line for line in after if "pip install" in line]


def test_what_it_runs_exists() -> None:
    modules = re.findall(r"python -m (avesa_dagster\.[\w.]+)", "\n".join(LINES))
    assert modules == ["avesa_dagster.defs.aws_home"]
    for module in modules:
        assert (ROOT / f"{module.replace('.', '/')}.py").exists()
    assert sys.version_info[:2] >= (3, 11)


def test_no_host_of_a_registry_stands_in_it() -> None:
    text = RECIPE.read_text("utf-8")
    assert not re.search(r"https?://|index-url|\.(com|io|org)/", text)
