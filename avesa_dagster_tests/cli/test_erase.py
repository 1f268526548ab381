"""`avesa erase` asks twice, refuses what is wrong at once, and gives a receipt."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from avesa_dagster.cli.main import main
from avesa_dagster.defs.homes import prepare
from avesa_dagster.defs.processes import instance_in, sole_daemon
from avesa_dagster_tests.defs.conftest import House
from avesa_dagster_tests.erasable import files_of, furnish, processing, rows_of, traces

Avesa = Callable[..., tuple[int, str, str]]
ACME = "acme(?!2)"


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> House:
    """Two tenants, one's name a prefix of the other's."""
    house = House(tmp_path_factory.mktemp("origin") / "home")
    for tenant in ("acme", "acme2"):
        furnish(house.installation, tenant)
    with instance_in(prepare(house.settings)):
        return house


@pytest.fixture
def house(origin: House, tmp_path: Path) -> House:
    shutil.copytree(origin.home, tmp_path / "home")
    return House(tmp_path / "home")


@pytest.fixture
def avesa(
    house: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Avesa:
    """Runs `avesa erase …` in this process: exit code, standard output, standard error."""

    def run(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setenv("AVESA_HOME", str(house.home))
        monkeypatch.setenv("DAGSTER_HOME", str(house.settings.dagster_home))
        monkeypatch.setattr(sys, "argv", ["avesa", "erase", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, said.out, said.err

    return run


def test_a_person_types_the_name_and_confirms(house: House, avesa: Avesa) -> None:
    other = files_of(house.home, "acme2"), rows_of(house.home, "acme2")
    code, out, err = avesa("acme", stdin="acme\ny\n")
    assert code == 0, err
    assert "4 objects" in err
    receipt = json.loads(out[out.index("{") :])
    assert (receipt["tenant"], receipt["objects"]) == ("acme", 4)
    assert traces(house.home, ACME) == []
    assert (files_of(house.home, "acme2"), rows_of(house.home, "acme2")) == other


def test_a_name_mistyped_once_may_be_typed_again(house: House, avesa: Avesa) -> None:
    code, _, err = avesa("acme", stdin="acme2\nacme\ny\n")
    assert code == 0, err
    assert "That is another name" in err
    assert files_of(house.home, "acme2")


@pytest.mark.parametrize(
    ("stdin", "said"),
    [
        ("acme2\nACME\n", "'ACME', is not 'acme'"),
        ("acme2\nacme2\n", "'acme2', is not 'acme'"),
        ("acme\nn\n", "stopped"),
        ("acme\n\n", "stopped"),
        ("acme\n", "stopped"),
        ("", "stopped"),
    ],
)
def test_anything_else_touches_nothing(house: House, avesa: Avesa, stdin: str, said: str) -> None:
    before = files_of(house.home, "acme"), rows_of(house.home, "acme")
    code, out, err = avesa("acme", stdin=stdin)
    assert code != 0
    assert said in err and "{" not in out
    assert (files_of(house.home, "acme"), rows_of(house.home, "acme")) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("acme", "--yes-erase", "acme2"), "nothing was erased"),
        (("acme", "--yes-erase", ""), "nothing was erased"),
        (("acm", "--yes-erase", "acm"), "nothing is known of a tenant 'acm'"),
        (("acme/raw", "--yes-erase", "acme/raw"), "no valid tenant name"),
        (("../acme", "--yes-erase", "../acme"), "no valid tenant name"),
        (("Acme", "--yes-erase", "Acme"), "no valid tenant name"),
        (("acme", "--yes-erase", "acme", "--wait", "-1"), "--wait"),
        (("acme", "acme2"), "acme2"),
    ],
)
def test_bad_input_is_refused(
    house: House, avesa: Avesa, arguments: tuple[str, ...], said: str
) -> None:
    before = [(files_of(house.home, name), rows_of(house.home, name)) for name in ("acme", "acme2")]
    code, _, err = avesa(*arguments)
    assert code != 0
    assert said in err
    after = [(files_of(house.home, name), rows_of(house.home, name)) for name in ("acme", "acme2")]
    assert after == before


def test_the_receipt_is_written_for_its_owner_only(
    house: House, avesa: Avesa, tmp_path: Path
) -> None:
    path = tmp_path / "receipt.json"
    code, out, err = avesa("acme", "--yes-erase", "acme", "--receipt", str(path))
    assert code == 0, err
    assert json.loads(path.read_text()) == json.loads(out)
    assert path.stat().st_mode & 0o077 == 0
    assert [each.name for each in tmp_path.iterdir() if "receipt" in each.name] == ["receipt.json"]
    assert "content" not in path.read_text()


def test_a_receipt_in_the_home_is_all_that_names_the_tenant_then(
    house: House, avesa: Avesa
) -> None:
    path = house.home / "receipt.json"
    path.touch()  # as a kill leaves it
    assert avesa("acme", "--yes-erase", "acme", "--receipt", str(path))[0] == 0
    assert {hit.split(" at ")[0] for hit in traces(house.home, ACME)} == {"receipt.json"}
    assert avesa("acme", "--yes-erase", "acme")[0] == 1


def test_what_is_left_is_said_to_the_person_too(house: House, avesa: Avesa) -> None:
    log = house.settings.dagster_home / "dagster.log"
    log.write_text("acme connectwise tickets: chunk 1/2 done\n")
    with sole_daemon(house.settings.dagster_home):
        code, out, err = avesa("acme", "--yes-erase", "acme")
    assert code == 0, err
    assert "not erased: lines of dagster.log: stop `avesa dev`" in err
    assert json.loads(out)["not_erased"]


def test_a_receipt_that_cannot_be_written_is_found_out_first(
    house: House, avesa: Avesa, tmp_path: Path
) -> None:
    taken, blocked = tmp_path / "taken.json", tmp_path / "file"
    taken.write_text("an older receipt")
    blocked.write_text("")
    before = files_of(house.home, "acme")
    for path, said in (
        (taken, "is there already"),
        (blocked / "receipt.json", "cannot be written"),
    ):
        code, _, err = avesa("acme", "--yes-erase", "acme", "--receipt", str(path))
        assert code == 1
        assert said in err
    assert files_of(house.home, "acme") == before
    assert taken.read_text() == "an older receipt"


def test_while_a_run_is_under_way_it_says_so_and_what_to_do(house: House, avesa: Avesa) -> None:
    installation = house.installation
    before = files_of(house.home, "acme")
    running = processing(installation, "acme")
    installation.control.processing.claim(running, stale_before=installation.clock())
    code, out, err = avesa("acme", "--yes-erase", "acme", "--wait", "0")
    assert (code, out) == (1, "")
    assert "run run-of-acme (connectwise tickets)" in err and "run it again" in err
    assert files_of(house.home, "acme") == before
    installation.control.processing.forget("acme")
    assert avesa("acme", "--yes-erase", "acme")[0] == 0


def test_a_second_time_nothing_is_known(avesa: Avesa) -> None:
    assert avesa("acme", "--yes-erase", "acme")[0] == 0
    code, _, err = avesa("acme", "--yes-erase", "acme")
    assert code == 1
    assert "nothing is known" in err


def test_it_has_help_with_examples(avesa: Avesa) -> None:
    code, out, _ = avesa("--help")
    assert code == 0
    assert "avesa erase acme --yes-erase acme" in out
