"""Logs as JSON: whose line it is, from errors, threads and Dagster's runs; and never a secret."""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avesa_dagster import logs
from avesa_dagster.defs import tags
from avesa_dagster.defs.aws_home import PYTHON_LOGS
from avesa_dagster.defs.keys import canonical_key, history_key, op_name, raw_key
from avesa_dagster.errors import AvesaError, ConfigurationError, DataError, RetriableError, Where
from avesa_dagster.extract.request import Mode
from avesa_dagster.logs import JsonFormatter, place
from avesa_dagster.sandbox.process import Simulator
from avesa_dagster_tests.extract.support import Bench, open_bench

WHERE = Where("acme", "connectwise", "tickets", "[2026-02-01, 2026-03-01)")


@contextmanager
def listening(name: str = "avesa_dagster_tests.logs") -> Iterator[tuple[logging.Logger, Lines]]:
    """A logger whose records are written by the formatter, and its lines."""
    logger, lines = logging.getLogger(name), Lines()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(JsonFormatter())
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield logger, lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


class Lines(io.StringIO):
    """What was logged."""

    def all(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]

    def one(self) -> dict[str, Any]:
        [line] = self.all()
        return line


@given(text=st.text(), arg=st.text())
def test_every_record_is_one_line_of_ascii_that_says_the_same(text: str, arg: str) -> None:
    with listening() as (logger, lines):
        logger.warning("%s", text + arg)
        logger.info(text.replace("%", "%%") + "%s", arg)
    assert lines.getvalue().isascii()
    first, second = lines.all()
    assert first["message"] == second["message"] == text + arg
    assert (first["level"], second["level"]) == ("warning", "info")
    assert first["logger"] == "avesa_dagster_tests.logs"


def test_the_time_is_in_utc() -> None:
    record = logging.LogRecord("a", logging.INFO, "f", 1, "x", None, None)
    record.created = 1_773_144_000.25
    assert json.loads(JsonFormatter().format(record)) == {
        "time": "2026-03-10T12:00:00.250Z", "level": "info", "logger": "a", "message": "x",
    }  # fmt: skip


def test_a_logged_error_says_whose_data_it_is_about() -> None:
    with listening() as (logger, lines):
        try:
            try:
                raise RetriableError("it answers 500", where=WHERE)
            except AvesaError as error:
                raise RuntimeError("around it") from error
        except RuntimeError:
            logger.exception("failed")
    said = lines.one()
    assert {name: said[name] for name in ("tenant", "service", "table", "window")} == {
        "tenant": "acme", "service": "connectwise", "table": "tickets",
        "window": "[2026-02-01, 2026-03-01)",
    }  # fmt: skip
    assert said["exception"]["type"] == "RuntimeError"
    assert "it answers 500 [tenant=acme" in said["exception"]["text"]
    assert "Traceback" in said["exception"]["text"]


def test_an_error_or_a_place_among_the_arguments_does_too() -> None:
    with listening() as (logger, lines):
        logger.warning("the notifier %s failed: %s", "sns", DataError("short", where=WHERE))
        logger.warning("read again [%s]", WHERE)
        logger.warning("%(a)s", {"a": WHERE})
    first, second, third = lines.all()
    assert first["tenant"] == second["tenant"] == "acme"
    assert "tenant" not in third


def test_a_place_holds_for_its_block_and_its_thread() -> None:
    barrier = threading.Barrier(3)

    def work(table: str) -> None:
        with place(table=table, run=f"run-{table}"):
            barrier.wait(10)
            logger.info("inside")
            with place(window="w", table=None):
                logger.info("deeper")
        logger.info("outside")

    with listening() as (logger, lines), ThreadPoolExecutor(3) as pool, place(tenant="main"):
        list(pool.map(work, ["a", "b", "c"]))
    said = lines.all()
    assert sorted((one["table"], one["run"]) for one in said if one["message"] == "inside") == [
        ("a", "run-a"), ("b", "run-b"), ("c", "run-c"),
    ]  # fmt: skip
    assert all(one["window"] == "w" for one in said if one["message"] == "deeper")
    assert all(one["table"] in "abc" for one in said if one["message"] == "deeper")
    assert not [one for one in said if one["message"] == "outside" and "table" in one]
    assert not [one for one in said if "tenant" in one]  # a thread has a place of its own


def test_an_error_knows_better_than_the_place() -> None:
    with listening() as (logger, lines), place(tenant="acme", table="tickets", job="j1"):
        logger.error("%s", DataError("x", where=Where(table="companies")))
    said = lines.one()
    assert (said["tenant"], said["table"], said["job"]) == ("acme", "companies", "j1")


def test_an_error_in_a_ring_of_causes_is_told() -> None:
    one, two = DataError("one", where=WHERE), DataError("two")
    one.__cause__, two.__cause__ = two, one
    with listening() as (logger, lines):
        logger.error("failed", exc_info=two)
    assert lines.one()["tenant"] == "acme"


def test_what_is_endless_is_cut_below_what_log_drivers_take() -> None:
    with listening() as (logger, lines):
        try:
            raise ValueError("first" + "x" * 50_000 + "last")
        except ValueError:
            logger.exception("m" * 50_000)
    assert len(lines.getvalue()) < 16_384
    assert lines.one()["exception"]["text"].endswith("last")


def dagster_record(**meta: Any) -> dict[str, Any]:
    """What the formatter makes of a record of Dagster's."""
    record = logging.LogRecord("dagster", logging.INFO, "f", 1, "job - run - said", None, None)
    record.dagster_meta = {"orig_message": "said", "job_tags": {}, **meta}
    line: dict[str, Any] = json.loads(JsonFormatter().format(record))
    return line


def test_a_run_is_known_by_its_tags() -> None:
    ours = {tags.TENANT: "acme", tags.SERVICE: "connectwise", tags.JOB: "j1"}
    said = dagster_record(run_id="r1", job_tags=ours)
    assert {n: said[n] for n in ("message", "run", "tenant", "service", "job")} == {
        "message": "said", "run": "r1", "tenant": "acme", "service": "connectwise", "job": "j1",
    }  # fmt: skip
    by_lane = dagster_record(job_tags={tags.LANE: tags.lane(Mode.BACKFILL, "acme", "connectwise")})
    assert (by_lane["tenant"], by_lane["service"]) == ("acme", "connectwise")
    assert "tenant" not in dagster_record(job_tags={tags.LANE: "verify"})


@pytest.mark.parametrize("key", [raw_key, canonical_key])
def test_a_step_or_an_event_says_the_table(
    key: Callable[[str, str, str], dg.AssetKey],
) -> None:
    def step(tenant: str, service: str, table: str) -> str | None:
        name = op_name(key(tenant, service, table), 12)
        ours = {tags.TENANT: tenant, tags.SERVICE: service}
        told = dagster_record(step_key=name, job_tags=ours)
        assert (told["tenant"], told["service"], told["step"]) == (tenant, service, name)
        known: str | None = told.get("table")
        return known

    assert step("acme", "connectwise", "time_entries") == "time_entries"
    assert step("acme-corp", "connectwise", "tickets") == "tickets"
    assert step("a__b", "connectwise", "tickets") == "tickets"
    # `time_entries` and `time-entries` have the same step there.
    assert step("acme-corp", "connectwise", "time_entries") is None
    assert step("acme", "connectwise", "time-entries") is None
    event = SimpleNamespace(asset_key=key("acme-corp", "connectwise", "time-entries"))
    assert dagster_record(dagster_event=event)["table"] == "time-entries"


def test_a_step_tells_what_no_tag_does() -> None:
    said = dagster_record(step_key=op_name(raw_key("acme", "connectwise", "tickets"), 1))
    assert (said["tenant"], said["service"], said["table"]) == ("acme", "connectwise", "tickets")
    said = dagster_record(step_key=op_name(history_key("acme", "tickets"), 1))
    assert (said["tenant"], said["table"]) == ("acme", "tickets")
    assert "table" not in dagster_record(step_key="compare_with_source")


def test_a_real_run_of_dagster_is_told_in_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n" + PYTHON_LOGS)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))

    @dg.asset(key=raw_key("acme", "connectwise", "tickets"))
    def tickets() -> None:
        dg.AssetExecutionContext.get().log.info("hello")
        raise dg.Failure("in words") from DataError("short page", where=WHERE)

    with dg.DagsterInstance.get() as instance:
        run = dg.materialize(
            [tickets],
            instance=instance,
            raise_on_error=False,
            tags={tags.JOB: "j1"},
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )
    lines = [json.loads(x) for x in capfd.readouterr().err.splitlines() if x.startswith("{")]
    [hello] = [line for line in lines if line["message"] == "hello"]
    assert (hello["run"], hello["job"], hello["tenant"]) == (run.run_id, "j1", "acme")
    [failure] = [line for line in lines if line.get("event") == "STEP_FAILURE"]
    assert (failure["level"], failure["table"]) == ("error", "tickets")
    assert failure["exception"]["type"] == "DataError"
    assert "short page" in failure["exception"]["text"]


def test_the_variable_switches_it_on_once(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", list(root.handlers))
    ours = logging.getLogger("avesa_dagster")
    monkeypatch.setattr(ours, "level", ours.level)
    before = list(root.handlers)
    for environ in ({}, {"AVESA_LOGS": ""}, {"AVESA_LOGS": "text"}):
        logs.configure(environ)
    assert root.handlers == before
    with pytest.raises(ConfigurationError, match="AVESA_LOGS is 'xml'"):
        logs.configure({"AVESA_LOGS": "xml"})
    for _ in range(2):
        logs.configure({"AVESA_LOGS": "json"})
    assert len(root.handlers) == len(before) + 1


def test_a_process_of_dagster_says_each_thing_once_and_in_json() -> None:
    code = (
        "import logging, os\n"
        "from dagster._utils.log import configure_loggers\n"
        "configure_loggers(log_level='INFO')\n"
        "from avesa_dagster import logs\n"
        "logs.configure(os.environ)\n"
        "logging.getLogger('dagster.daemon').info('of dagster')\n"
        "logging.getLogger('avesa_dagster.x').info('of ours')\n"
        "logging.getLogger('botocore').info('not told')\n"
        "logging.getLogger('botocore').warning('of a library')\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "AVESA_LOGS": "json"}, capture_output=True, text=True, timeout=60,
        check=True,
    )  # fmt: skip
    assert ran.stdout == ""
    assert [json.loads(line)["message"] for line in ran.stderr.splitlines()] == [
        "of dagster", "of ours", "of a library",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with Simulator(tickets=20, time_entries=5, companies=5, contacts=5) as running:
        yield running


@pytest.fixture
def bench(simulator: Simulator, tmp_path: Path) -> Bench:
    return open_bench(simulator, tmp_path / "home", lookback_days=40)


def test_what_is_logged_in_the_threads_of_a_fetch_says_the_chunk(bench: Bench) -> None:
    objects, real = bench.installation.objects, type(bench.installation.objects).put
    request = bench.request("tickets", token="job-7")
    with listening() as (logger, lines), pytest.MonkeyPatch.context() as patched:

        def put(self: object, key: str, data: bytes) -> Any:
            logger.info("put %s", key)
            return real(objects, key, data)

        create = type(objects).create

        def creating(self: Any, key: str) -> Any:
            logger.info("create %s", key)
            return create(self, key)

        patched.setattr(type(objects), "put", put)
        patched.setattr(type(objects), "create", creating)
        bench.run(request)
    told = [line for line in lines.all() if "/dt=" in line["message"]]
    windows = {
        f"[{chunk.start:%Y-%m-%d}" for chunk in bench.chunks("job-7", "tickets") if chunk.objects
    }
    assert windows
    assert {line["window"].split(",")[0].split("T")[0] for line in told} == windows
    for line in told:
        assert (line["tenant"], line["service"], line["table"]) == (
            "acme", "connectwise", "tickets",
        )  # fmt: skip
        assert line["run"] == request.run_id


FAULTS: list[dict[str, Any]] = [
    {"kind": "status", "status": 401},
    {"kind": "status", "status": 403},
    {"kind": "status", "status": 500},
    {"kind": "status", "status": 502, "body": "html"},
    {"kind": "html_200"},
    {"kind": "error_object_200"},
    {"kind": "cut_body", "framing": "content-length"},
    {"kind": "broken_json", "fraction": 0.99},
    {"kind": "reset_after_headers"},
    {"kind": "drop_row", "rows": 1000},
    {"kind": "filter_ignored"},
]


def secrets_of(credentials: dict[str, str]) -> list[str]:
    user = f"{credentials['company_id']}+{credentials['public_key']}"
    pair = f"{user}:{credentials['private_key']}"
    names = ("public_key", "private_key", "client_id")
    return [base64.b64encode(pair.encode()).decode(), *(credentials[name] for name in names)]


def test_no_secret_is_in_the_logs_of_a_run_that_fails_in_many_ways(bench: Bench) -> None:
    secrets = secrets_of(bench.simulator.credentials)
    failed = 0
    with listening("") as (_, lines):  # everything that anybody logs, from DEBUG on
        log = logging.getLogger("avesa_dagster.of_the_test")
        for fault in FAULTS:
            bench.control("hostility", faults=[fault | {"probability": 1}], page_clamp=20)
            bench.installation.control.breakers.succeeded("acme", "connectwise")
            try:
                bench.extract("tickets")
            except AvesaError as error:
                failed += 1
                log.exception("failed: %s", error)
        broken = {**bench.simulator.credentials, "private_key": "n0t-the-private-key"}
        try:
            bench.installation.connect("other", "connectwise", broken)
        except AvesaError:
            log.exception("refused")
            failed += 1
    assert failed > len(FAULTS) / 2
    told = lines.getvalue()
    assert any(line["logger"].startswith("urllib3") for line in lines.all())  # it listened
    for secret in (*secrets, "n0t-the-private-key"):
        assert len(secret) > 6
        assert secret not in told
        assert secret not in json.dumps(lines.all(), ensure_ascii=False)
