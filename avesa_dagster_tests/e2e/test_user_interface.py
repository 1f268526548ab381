"""The story of a person at the Dagster UI, in a real browser on a real `avesa dev`.

The acts build on each other and are told in order; each prints what it saw. Its pictures lie in
pytest's temporary folder; with AVESA_E2E_PICTURES=docs the README's goes to `docs/ui.png`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from .browser import README_SIZE, SIZE
from .conftest import ROOT, Stage, say, secrets_of

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]

TABLES = ("companies", "contacts", "tickets", "time_entries")
HISTORY = (
    "select md5(string_agg(h::varchar, chr(10) order by h::varchar)) as md5, count(*) as n "
    "from tickets_history h"
)


def partitioned(tenant: str) -> set[str]:
    return {f"{tenant}/{layer}/connectwise/{t}" for layer in ("raw", "canonical") for t in TABLES}


def test_a_newly_connected_tenant_appears_and_is_backfilled_without_a_restart(
    stage: Stage,
) -> None:
    assert stage.api.groups() == {}
    stage.connect("acme", stage.simulator.credentials)
    seconds = stage.wait("assets of acme", lambda: "acme__connectwise" in stage.api.groups(), 60)
    groups = stage.api.groups()
    assert groups["acme__connectwise"] == partitioned("acme")
    assert groups["acme__history"] == {f"acme/history/{table}" for table in TABLES}
    say(f"acme connected; its {sum(map(len, groups.values()))} assets after {seconds:.0f} s")

    runs = stage.api.ended_runs(3, 120, avesa_tenant="acme")
    assert {run.status for run in runs} == {"SUCCESS"}
    for asset in partitioned("acme"):
        assert stage.api.materialized(asset) == [(stage.months[0], stage.months[-1])], asset
    say(f"the onboarding sensor's {len(runs)} runs succeeded: {stage.months[0]} to now")
    stage.notes["lake"] = canonical_files(stage.home, "acme")
    stage.notes["history"] = stage.query("acme", HISTORY)


def test_the_group_shows_raw_and_canonical_all_green(stage: Stage) -> None:
    ui = stage.ui
    ui.page.set_viewport_size(README_SIZE)
    ui.open_group("acme__connectwise")
    for table in TABLES:
        ui.see(table)
    ui.see("Latest event")
    ui.page.wait_for_function("() => document.body.innerText.split('100% filled').length - 1 === 8")
    path = ui.picture("ui")
    ui.page.set_viewport_size(SIZE)
    say("the group's page: 8 assets, raw and canonical, each 100% filled")
    folder = os.environ.get("AVESA_E2E_PICTURES")
    if folder:
        shutil.copy(path, ROOT / folder / "ui.png")
        say(f"the README's picture: {ROOT / folder / 'ui.png'}")


def test_a_range_chosen_in_the_dialog_turns_green(stage: Stage) -> None:
    ui, months = stage.ui, stage.months
    stage.api.wipe(sorted(partitioned("acme")))
    ui.open_group("acme__connectwise")
    for table in TABLES:
        ui.see(table)
    ui.see("0% filled")
    ui.picture("group-forgotten")

    first, last = months[1], months[3]
    backfill = ui.launch(8, first, last, partitions=3)
    clicked = time.monotonic()
    say(f"launched backfill {backfill} of {first}...{last} in the dialog, 8 assets")
    ui.open_asset("acme/raw/connectwise/tickets", "partitions")
    assert ui.partition_counts()["Missing"] == len(months)
    ui.await_materialized(3)
    say(f"3 of {len(months)} partitions turned green {time.monotonic() - clicked:.0f} s later")
    counts = ui.partition_counts()
    assert counts == {
        "Failed": 0, "Materialized": 3, "Materializing": 0, "Missing": len(months) - 3
    }  # fmt: skip
    ui.picture("partitions")
    assert ui.await_backfill(backfill) == "Succeeded"
    say(f"the backfill's page says Succeeded {time.monotonic() - clicked:.0f} s after the click")
    ui.picture("backfill")
    assert ui.text().count("100% completed") == 8
    (run,) = stage.api.runs(dagster_backfill=backfill)
    assert run.partitions == (first, last)
    assert set(run.assets) == partitioned("acme")
    stage.notes["run"] = run


def test_the_log_of_the_run_tells_its_progress(stage: Stage) -> None:
    ui, run = stage.ui, stage.notes["run"]
    ui.open_run(run.id)
    ui.filter_log("acme connectwise tickets: chunk")
    ui.see(re.compile(r"acme connectwise tickets: chunk \d+/\d+ \(100 %\)"))
    lines = re.findall(r"acme connectwise tickets: chunk .*", ui.text())
    for line in lines:
        say(f"in the log: {line}")
    assert all(re.search(r"\[\d{4}-\d\d-\d\d.*\) done, \d+ rows, \d+ requests", x) for x in lines)
    ui.picture("run-log")


def test_a_materialization_says_what_it_holds(stage: Stage) -> None:
    ui, month = stage.ui, stage.months[2]
    ui.open_asset("acme/raw/connectwise/tickets", "partitions")
    said = ui.choose_partition(month)
    held = true_count(stage, "tickets", month, stage.months[3])
    assert re.search(rf"partition_row_count\s+{held}\b", said), (held, said)
    for label in ("source count", "new rows", "requests", "windows", "files", "preview"):
        assert re.search(rf"^{label}\s", said, re.MULTILINE), (label, said)
    assert f"[{month}, {stage.months[3]})" in said
    assert str(stage.home / "lake/acme/raw/connectwise/tickets") in said
    for column in ("record_id", "updated_at", "observed_at", "payload"):
        assert column in said
    say(f"raw {month}: {held} rows as the service holds, window, requests, files, preview")
    ui.picture("partition-raw")

    ui.open_asset("acme/canonical/connectwise/tickets", "partitions")
    said = ui.choose_partition(month)
    assert re.search(rf"partition_row_count\s+{held}\b", said), (held, said)
    for label in ("records", "deletions", "file", "preview", "dagster/column_schema"):
        assert re.search(rf"^{label}\s", said, re.MULTILINE), (label, said)
    ui.picture("partition-canonical")
    ui.see("[Show Table Schema]").click()
    schema = ui.page.get_by_role("dialog").inner_text()
    for column in ("ticket_number", "closed_date", "record_hash", "timestamp with time zone"):
        assert column in schema, schema
    ui.picture("column-schema")
    say("canonical: versions, records, deletions, file, preview, column schema")


def test_a_second_tenant_is_queryable_within_a_minute(stage: Stage) -> None:
    added = stage.simulator.control("add_company", company_id="globex_msp", seed=11)
    began = time.monotonic()
    stage.connect("globex", added["credentials"])

    def rows() -> bool:
        asked = stage.avesa("query", "globex", "select count(*) as n from tickets", "--json")
        return asked.returncode == 0 and json.loads(asked.stdout)[0]["n"] > 0

    stage.wait("assets of globex", lambda: "globex__connectwise" in stage.api.groups(), 60)
    appeared = time.monotonic() - began
    stage.wait("a run of globex", lambda: stage.api.runs(avesa_tenant="globex"), 60)
    started = time.monotonic() - began
    stage.wait("rows of globex", rows, 60)
    queryable = time.monotonic() - began
    say(
        f"globex: assets after {appeared:.0f} s, first run after {started:.0f} s, first ticket "
        f"queryable {queryable:.0f} s after `avesa connect` was typed"
    )
    assert queryable < 60
    runs = stage.api.ended_runs(3, 120, avesa_tenant="globex")
    assert {run.status for run in runs} == {"SUCCESS"}


def test_two_tenants_backfilled_together_are_two_runs(stage: Stage) -> None:
    ui, (first, last) = stage.ui, (stage.months[1], stage.months[3])
    runs, status = backfill_both(stage, "together")
    assert status == "Succeeded"
    assert {run.status for run in runs} == {"SUCCESS"}
    assert sorted(map(sorted, (run.tenants for run in runs))) == [["acme"], ["globex"]]
    for run in runs:
        assert run.partitions == (first, last)
        assert set(run.assets) == partitioned(*run.tenants)
        ui.see(run.id[:8])
    say(f"one backfill of both tenants was {len(runs)} runs: {[*map(str, map(tenant, runs))]}")


def test_materializing_a_range_again_changed_nothing(stage: Stage) -> None:
    """By now acme's months were fetched three times: onboarding, and two backfills."""
    (first, last) = (stage.months[1], stage.months[3])
    times = [run for run in stage.api.runs() if f"acme/raw/connectwise/{TABLES[2]}" in run.assets]
    assert sum(spans(run.partitions, first, last) for run in times) == 3
    now = canonical_files(stage.home, "acme")
    differ = sorted(key for key in now if now[key] != stage.notes["lake"].get(key))
    assert now.keys() == stage.notes["lake"].keys()
    assert differ == [], "these canonical files changed, though nothing did at the service"
    assert stage.query("acme", HISTORY) == stage.notes["history"]
    say(
        f"fetched three times: {len(now)} canonical files have the bytes they had, "
        f"{stage.notes['history'][0]['n']} rows of history are the same"
    )


def test_an_asset_shows_its_coverage_and_its_checks(stage: Stage) -> None:
    ui = stage.ui
    ui.open_asset("acme/raw/connectwise/tickets", "checks")
    for check in (
        "reconciles", "history_complete", "synced_recently", "schema_unchanged", "stored_once",
        "service_answers",
    ):  # fmt: skip
        ui.see(check)
    ui.picture("checks")
    ui.open_asset("acme/raw/connectwise/tickets")
    ui.see(re.compile(r"^coverage$"))
    calendar = ui.page.locator("img[src^='data:image/png']").first
    calendar.scroll_into_view_if_needed()
    box = calendar.bounding_box()
    assert box and box["width"] > 50 and box["height"] > 10
    ui.picture("coverage")
    say(f"six checks; the coverage is drawn on the asset, {box['width']:.0f} pixels wide")


def test_cancelling_a_jobs_backfill_on_its_page_cancels_the_job(stage: Stage) -> None:
    ui = stage.ui
    stage.simulator.control("latency", latency_ms=4000)
    asked = stage.avesa("backfill", "acme", "connectwise", "--chunk-size-days", "3", "--json")
    assert asked.returncode == 0, asked.stderr
    job = json.loads(asked.stdout)["job_id"]
    stage.wait("its run", lambda: running(stage, job), 60)
    (run,) = running(stage, job)
    stage.wait("its backfill", lambda: "dagster/backfill" in run.tags, 10)
    ui.open_backfill(run.tags["dagster/backfill"])
    ui.picture("job-backfill")
    clicked = time.monotonic()
    ui.cancel_backfill()

    def status() -> str:
        return str(json.loads(stage.avesa("job", job, "--json").stdout)["status"])

    stage.wait("the job to be cancelled", lambda: status() == "cancelled", 60)
    said = time.monotonic() - clicked
    stage.wait("its run to end", lambda: not running(stage, job), 60)
    over = time.monotonic() - clicked
    stage.simulator.control("stats_reset")
    time.sleep(4)
    assert stage.simulator.control("stats")["total"] == 0
    stage.simulator.control("latency", latency_ms=0)
    say(f"cancelled on its page: the job says so after {said:.0f} s, its run ended {over:.0f} s")


def running(stage: Stage, job: str) -> list[Any]:
    return [run for run in stage.api.runs(avesa_job=job) if run.status == "STARTED"]


def test_revoked_credentials_fail_their_tenant_alone_and_clearly(stage: Stage) -> None:
    ui = stage.ui
    stage.simulator.control("revoke", company_id="globex_msp")
    runs, status = backfill_both(stage, "revoked")
    assert status == "Failed"
    (failed,) = (run for run in runs if run.tenants == {"globex"})
    (unharmed,) = (run for run in runs if run.tenants == {"acme"})
    assert (failed.status, unharmed.status) == ("FAILURE", "SUCCESS")

    ui.open_run(failed.id)
    ui.see("RUN_FAILURE")
    ui.see(re.compile("refused the credentials"))
    message = re.findall(r"[^\n]*refused the credentials[^\n]*", ui.text())[0]
    ui.picture("revoked-run")
    say(f"the failed run says: {' '.join(message.split())}")
    for part in ("tenant=globex", "service=connectwise", "avesa connect globex connectwise"):
        assert part in message
    assert "globex" not in json.dumps(stage.api.events(unharmed))
    stage.notes["failed"] = failed
    assert stage.query("globex", "select count(*) as n from tickets")[0]["n"] > 0
    say("acme's run of the same backfill succeeded; globex's data stays queryable")


def test_the_secrets_are_in_no_file_no_output_and_no_event(stage: Stage) -> None:
    secrets = secrets_of(stage.credentials["globex"])
    own = stage.home / "secrets" / "globex.json"
    assert set(held_in(own.read_bytes(), secrets)) == {"public_key", "private_key", "client_id"}

    searched, found = 0, []
    for path in [*stage.home.rglob("*"), stage.log]:
        if not path.is_file() or path == own:
            continue
        searched += 1
        found += [(str(path), name) for text in contents(path) for name in held_in(text, secrets)]
    assert found == []
    failed_events = stage.api.events(stage.notes["failed"])
    assert any("refused the credentials" in json.dumps(event) for event in failed_events)
    events = 0
    for run in stage.api.runs():
        told: list[Any] = stage.api.events(run)
        events += len(told)
        text = json.dumps([told, run.tags]).encode()
        assert list(held_in(text, secrets)) == [], run
    assert list(held_in(stage.ui.page.content().encode(), secrets)) == []
    say(f"globex's secrets: in none of {searched} other files, none of {events} events, no tag")


def backfill_both(stage: Stage, name: str) -> tuple[list[Any], str]:
    """Selects both tenants' raw and canonical assets in the UI and backfills three months."""
    ui = stage.ui
    ui.open_lineage('key:"*/raw/connectwise/*" or key:"*/canonical/connectwise/*"')
    backfill = ui.launch(16, stage.months[1], stage.months[3], partitions=3)
    say(f"launched backfill {backfill} of both tenants' 16 assets in one dialog")
    status = ui.await_backfill(backfill)
    ui.picture(f"{name}-backfill")
    runs = stage.api.ended_runs(2, 60, dagster_backfill=backfill)
    assert len(runs) == 2, runs
    ui.open_backfill(backfill, "runs")
    for run in runs:
        ui.see(run.id[:8])
    ui.picture(f"{name}-runs")
    return runs, status


def tenant(run: Any) -> str:
    (only,) = run.tenants
    return str(only)


def spans(partitions: tuple[str | None, str | None], first: str, last: str) -> bool:
    start, end = partitions
    return bool(start and end and start <= first and last <= end)


def canonical_files(home: Path, tenant: str) -> dict[str, str]:
    """Key -> SHA-256 of every versions file of a tenant."""
    folder = home / "lake" / tenant / "canonical"
    files = sorted(folder.rglob("versions.parquet"))
    assert files
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }


def true_count(stage: Stage, table: str, start: str, end: str) -> int:
    """How many records the service shows whose change time lies in the window."""
    truth = stage.simulator.control("truth_current", table=table)["records"]
    days = [datetime.fromisoformat(day).strftime("%Y-%m-%d") for day in (start, end)]
    return sum(
        days[0] <= record["updated_at"][:10] < days[1]
        for record in truth.values()
        if not record["deleted"] and not record["restricted"]
    )


def contents(path: Path) -> Iterator[bytes]:
    """A file's bytes, and what a Parquet file holds compressed."""
    yield path.read_bytes()
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        for column in table.columns:
            if pa.types.is_string(column.type):
                yield "\n".join(filter(None, column.to_pylist())).encode()


def held_in(text: bytes, secrets: dict[str, str]) -> Iterator[str]:
    for name, secret in secrets.items():
        if secret.encode() in text:
            yield name
