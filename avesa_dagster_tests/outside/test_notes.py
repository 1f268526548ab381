"""A service that another package brings: the steps of docs/add-a-service.md, as its author and
whoever installs it take them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

import avesa_dagster
from avesa_dagster import outside
from avesa_dagster.catalog.load import load_catalog
from avesa_dagster.errors import ConfigurationError
from avesa_dagster.settings import Settings
from avesa_dagster.sources.registry import source_module

HERE = Path(__file__).parent
SHIPPED = Settings.from_environment({}).mappings
MODULE = "FIELDS = ()\ndef check(values, where): ...\ndef connect(*parts, **more): ...\n"


def install(site: Path, package: str, entry: str) -> None:
    """Writes what pip writes of a distribution beside its modules."""
    info = site / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[avesa.services]\n{entry}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of packages on the path of this process."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(folder):
            del sys.modules[name]


@pytest.fixture
def notes(site: Path) -> Path:
    """`site` with avesa-notes in it."""
    (site / "avesa_notes").symlink_to(HERE / "avesa_notes")
    install(site, "avesa-notes", "notes = avesa_notes")
    return site


Run = Callable[..., str]


@pytest.fixture
def run(notes: Path, tmp_path: Path) -> Run:
    """Runs a program of this environment, with avesa-notes installed; returns what it said.

    Its `code` is how the program is to end.
    """
    home = tmp_path / "home"
    above = str(Path(avesa_dagster.__file__).parents[1])
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join((str(notes), above)),
        "AVESA_HOME": str(home),
        "DAGSTER_HOME": str(home / "dagster"),
    }

    def said(*command: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *command],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == code, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout

    return said


def test_it_conforms(run: Run) -> None:
    said = run("pytest", "-q", "-p", "no:cacheprovider", str(HERE / "conforms.py"))
    found = re.search(r"(\d+) passed", said)
    assert found and int(found[1]) >= 40, said
    assert "failed" not in said


UNPAID = """(lambda url, parse, params: parse(__import__("requests").get(
            url, params, headers=self._http._dialect.headers(self._http)).content))("""
LOSING = """decode(body)
            records[:] = [r for r in records if int(r.record_id) % 7]
"""


@pytest.mark.parametrize(
    ("sound", "broken", "test"),
    [
        ("except NotFound:", "except FatalError:", "hidden"),
        (".start.timestamp()", ".start.replace(tzinfo=None).timestamp()", "zone_of_this_machine"),
        ("self._http.get(", UNPAID, "budget"),
        ("decode(body)\n", LOSING, "holds_the_truth"),
    ],
    ids=["gone-or-hidden", "local-time", "unpaid-requests", "lost-record"],
)
def test_one_that_is_broken_does_not_conform(
    run: Run, notes: Path, sound: str, broken: str, test: str
) -> None:
    (notes / "avesa_notes").unlink()
    shutil.copytree(HERE / "avesa_notes", notes / "avesa_notes")
    module = notes / "avesa_notes" / "__init__.py"
    text = module.read_text()
    assert sound in text
    named = text.replace("import Where", "import FatalError, Where")
    module.write_text(named.replace(sound, broken))
    said = run("pytest", "-q", "-x", "-p", "no:cacheprovider", str(HERE / "conforms.py"),
               "-k", test, code=1)  # fmt: skip
    assert re.search(r"FAILED .*" + test, said), said


def test_it_is_connected_backfilled_and_queried(run: Run, tmp_path: Path) -> None:
    from .avesa_notes.simulated import SimulatedNotes

    service = SimulatedNotes()
    try:
        credentials = tmp_path / "notes.json"
        credentials.write_text(json.dumps(dict(service.credentials)))
        run("avesa_dagster.cli.main", "connect", "acme", "notes",
            "--credentials", str(credentials), "--lookback-days", "730")  # fmt: skip
        run("avesa_dagster.cli.main", "env")  # writes Dagster's home
        connected = json.loads(run("avesa_dagster.cli.main", "tenants", "--json"))
        start = connected[0]["history_start"][:10]
        run("dagster", "asset", "materialize", "-m", "avesa_dagster.definitions",
            "--select", 'key:"acme/*/notes/*"',
            "--partition-range", f"{start}...{datetime.now(UTC):%Y-%m-01}")  # fmt: skip
        for table in ("notes", "contacts"):
            query = f"select count(*) n from {table}"
            rows = json.loads(run("avesa_dagster.cli.main", "query", "acme", query, "--json"))
            assert rows == [{"n": 25}]
    finally:
        service.stop()


def test_it_is_small() -> None:
    """As docs/add-a-service.md says: module, mappings and what simulates it."""
    files = [*(HERE / "avesa_notes").rglob("*.py"), *(HERE / "avesa_notes").rglob("*.json")]
    assert len(files) == 6
    assert sum(len(file.read_text().splitlines()) for file in files) <= 150


def test_it_is_found_and_belongs_to_the_catalog(notes: Path) -> None:
    found = outside.services()
    assert (found["notes"].package, set(found)) == ("avesa-notes", {"notes"})
    assert source_module("notes") is found["notes"].module
    catalog, shipped = load_catalog(SHIPPED), load_catalog(SHIPPED, [])
    assert set(catalog.services) - set(shipped.services) == {"notes"}
    assert set(catalog.canonical) - set(shipped.canonical) == {"notes"}
    assert catalog.settings("acme", "notes").requests_per_minute == 120
    contacts = catalog.canonical["contacts"]
    assert contacts.sources["notes"] == {"v1/people": {"id": "id", "first_name": "text"}}
    del contacts.sources["notes"]
    assert contacts == shipped.canonical["contacts"]


def test_settings_of_the_installation_go_before_those_of_the_package(
    notes: Path, tmp_path: Path
) -> None:
    own = tmp_path / "mappings"
    own.mkdir()
    for folder in ("services", "canonical"):
        (own / folder).symlink_to(SHIPPED / folder)
    document = json.loads((SHIPPED / "backfill_config.json").read_text())
    document["services"]["notes"] = document["services"]["servicenow"] | {"lookback_days": 17}
    (own / "backfill_config.json").write_text(json.dumps(document))
    assert load_catalog(own).settings("acme", "notes").lookback_days == 17


def test_without_it_nothing_knows_it() -> None:
    with pytest.raises(ConfigurationError, match=r"no service 'notes'.*known: connectwise"):
        source_module("notes")
    assert "notes" not in load_catalog(SHIPPED).services


@pytest.mark.parametrize(
    ("entry", "module", "said"),
    [
        ("other = avesa_other", None, "avesa-other: entry point other .*cannot be loaded: Module"),
        ("other = avesa_other", "def check(:", "cannot be loaded: SyntaxError"),
        ("other = avesa_other", "FIELDS = ()", "has no check, connect — see docs"),
        ("other = avesa_other:FIELDS", MODULE, "is no module — name the module, without ':'"),
        ("other = avesa_other", MODULE + "MAPPINGS = '/none'", "MAPPINGS /none is no folder"),
        ("salesforce = avesa_other", MODULE, "AVESA itself has a service of that name"),
        ("notes = avesa_other", MODULE, "two packages bring a service 'notes': avesa-"),
    ],
)
def test_a_package_that_cannot_be_used_is_named(
    notes: Path, entry: str, module: str | None, said: str
) -> None:
    install(notes, "avesa-other", entry)
    if module is not None:
        (notes / "avesa_other.py").write_text(module)
    with pytest.raises(ConfigurationError, match=said) as caught:
        load_catalog(SHIPPED)
    assert "avesa-other" in str(caught.value)


NOTES = HERE / "avesa_notes" / "mappings"


@pytest.mark.parametrize(
    ("file", "document", "said"),
    [
        (
            "services/connectwise.json",
            json.loads((SHIPPED / "services/connectwise.json").read_text()),
            "the service 'connectwise' is described already, by .*mappings/services/connectwise",
        ),
        (
            "canonical/tickets.json",
            {"table": "tickets", "scd_type": "type_1", "fields": {"id": "string"}, "sources": {}},
            "the canonical table 'tickets' is there already, in .*give only table and sources",
        ),
        (
            "canonical/tickets.json",
            {"table": "tickets", "sources": {"connectwise": {"service/tickets": {"id": "id"}}}},
            "sources.connectwise: .*mappings/canonical/tickets.json maps this service already",
        ),
        (
            "canonical/tickets.json",
            {"table": "tickets", "sources": {"others": {"v1/notes": {"id": "id"}}}},
            "sources.others: unknown service; known: ",
        ),
        (
            "canonical/tickets.json",
            {"table": "tickets", "sources": {"notes": {"v1/notes": {"id": "id", "x": "text"}}}},
            "unknown field 'x'",
        ),
        ("backfill_config.json", {"services": {}, "breaker": {}}, "breaker: unknown key"),
        ("backfill_config.json", {"services": {}}, "services has no 'notes'"),
    ],
)
def test_what_collides_is_named(tmp_path: Path, file: str, document: object, said: str) -> None:
    theirs = tmp_path / "theirs"
    for folder in ("services", "canonical"):
        (theirs / folder).mkdir(parents=True)
    for path in (*NOTES.rglob("*.json"),):
        (theirs / path.relative_to(NOTES)).write_text(path.read_text())
    (theirs / file).write_text(json.dumps(document))
    with pytest.raises(ConfigurationError, match=said):
        load_catalog(SHIPPED, [theirs])
