"""The lake beside the simulated service: nothing missing, nothing foreign, nothing doubled."""

from __future__ import annotations

import hashlib
import urllib.request
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from avesa_dagster.catalog.models import ScdType
from avesa_dagster.installation import Installation
from avesa_dagster.sandbox.process import Simulator
from avesa_dagster_tests.extract.support import distinct_versions, raw_rows

SERVICE = "connectwise"
TABLES = ("tickets", "time_entries", "companies", "contacts")


class _Version(msgspec.Struct):
    payload: msgspec.Raw


class _History(msgspec.Struct):
    versions: list[_Version]


class _Truth(msgspec.Struct):
    records: dict[str, _History]


_truth = msgspec.json.Decoder(_Truth)


@dataclass(frozen=True, slots=True)
class Compared:
    """One table of one tenant beside the service.

    Attributes:
        records: That the service has now.
        rows: Observations in raw.
        wrong: What differs, in words.
    """

    table: str
    records: int
    rows: int
    wrong: tuple[str, ...]


def compare(
    installation: Installation,
    simulator: Simulator,
    tenant: str,
    company_id: str,
    tables: Iterable[str] = TABLES,
) -> list[Compared]:
    """Compares raw and history with what the service holds, record by record, byte by byte."""
    return [_table(installation, simulator, tenant, company_id, table) for table in tables]


def said(compared: Iterable[Compared]) -> tuple[str, bool]:
    """The comparison in words, and whether everything agrees."""
    compared = list(compared)
    wrong = [text for one in compared for text in one.wrong]
    if wrong:
        return f"{len(wrong)} differences; the first: {wrong[0]}", False
    return f"{sum(one.records for one in compared):,} records agree", True


def _table(
    installation: Installation, simulator: Simulator, tenant: str, company_id: str, table: str
) -> Compared:
    answer = simulator.control("truth_current", table=table, company_id=company_id)
    truth: dict[str, dict[str, Any]] = answer["records"]
    rows = raw_rows(installation.objects, tenant, SERVICE, table)
    wrong = [
        *_newest(table, truth, rows),
        *_foreign(table, _versions(simulator, company_id, table), rows),
        *_history(installation, tenant, table, truth, rows),
    ]
    alive = sum(not record["deleted"] for record in truth.values())
    return Compared(table, alive, len(rows), tuple(wrong))


def _newest(
    table: str, truth: dict[str, dict[str, Any]], rows: Iterable[dict[str, Any]]
) -> Iterable[str]:
    newest: dict[str, dict[str, Any]] = {}
    for row in rows:
        held = newest.get(row["record_id"])
        order = (row["updated_at"], row["observed_at"])
        if held is None or order > (held["updated_at"], held["observed_at"]):
            newest[row["record_id"]] = row
    for record_id, record in truth.items():
        held = newest.get(record_id)
        name = f"{table} {record_id} of {record['updated_at']}"
        if record["deleted"]:
            if held is not None and not held["is_deleted"]:
                yield f"{name} is deleted, and not closed"
        elif held is None:
            yield f"{name} is missing"
        elif held["is_deleted"]:
            yield f"{name} is closed, and is there"
        elif hashlib.sha256(held["payload"].encode()).hexdigest() != record["sha256"]:
            yield f"{name} is held as of {held['updated_at']}"


def _foreign(
    table: str, known: dict[str, set[bytes]], rows: Iterable[dict[str, Any]]
) -> Iterable[str]:
    for row in rows:
        payload = row["payload"]
        if not row["is_deleted"] and payload.encode() not in known.get(row["record_id"], ()):
            yield f"{table} {row['record_id']}: a payload that the service never had"


def _history(
    installation: Installation,
    tenant: str,
    table: str,
    truth: dict[str, dict[str, Any]],
    rows: list[dict[str, Any]],
) -> Iterable[str]:
    """History has each observed version once, and as current what the service has now; of a table
    that keeps no versions, the newest."""
    columns = "id, record_version, is_current, effective_start_date"
    held = installation.reader().history(tenant, table).project(columns).fetchall()
    doubled = [key for key, times in Counter((i, n) for i, n, _, _ in held).items() if times > 1]
    if doubled:
        yield f"{table}: {len(doubled)} versions stand twice in history, as {doubled[0]}"
    current = [(record_id, start) for record_id, _, is_current, start in held if is_current]
    if len(current) != len({record_id for record_id, _ in current}):
        yield f"{table}: a record has two current versions"
    alive = {
        (record_id, datetime.fromisoformat(record["updated_at"]))
        for record_id, record in truth.items()
        if not record["deleted"]
    }
    differs = set(current) ^ alive
    if differs:
        yield f"{table}: {len(differs)} current versions differ, as {min(differs)}"
    if installation.catalog.canonical[table].scd_type is ScdType.TYPE_1:
        return  # it keeps the newest version only
    versions = distinct_versions(row for row in rows if not row["is_deleted"])
    if len({(record_id, updated) for record_id, updated, _ in versions}) != len(held):
        yield f"{table}: history has {len(held)} versions, raw has {len(versions)}"


def _versions(simulator: Simulator, company_id: str, table: str) -> dict[str, set[bytes]]:
    """Record id to the payloads that the service ever held, byte for byte."""
    asked = urllib.request.Request(
        f"{simulator.url}/__sim__/truth",
        data=msgspec.json.encode({"table": table, "company_id": company_id}),
        headers={"X-Sim-Token": simulator._token},
    )
    with urllib.request.urlopen(asked, timeout=120) as answer:
        found = _truth.decode(answer.read())
    return {
        record_id: {bytes(version.payload) for version in record.versions}
        for record_id, record in found.records.items()
    }
