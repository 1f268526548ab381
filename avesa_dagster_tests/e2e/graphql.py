"""What Dagster's own API says; the browser is believed only where both agree."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_RUNS = """query($filter: RunsFilter) { runsOrError(filter: $filter) { ... on Runs { results {
    runId status startTime endTime tags { key value } assetSelection { path } } } } }"""
_BACKFILL = """query($id: String!) { partitionBackfillOrError(backfillId: $id) {
    ... on PartitionBackfill { status } } }"""
_LOCATIONS = """{ workspaceOrError { ... on Workspace { locationEntries { name
    locationOrLoadError { ... on PythonError { message } } } } } }"""
_GROUPS = "{ assetNodes { groupName assetKey { path } } }"
_STATUSES = """query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode {
    assetPartitionStatuses { ... on TimePartitionStatuses { ranges {
        status startKey endKey } } } } } }"""
_WIPE = """mutation($ranges: [PartitionsByAssetSelector!]!) {
    wipeAssets(assetPartitionRanges: $ranges) { __typename ... on PythonError { message } } }"""
_EVENTS = """query($id: ID!, $cursor: String) { logsForRun(runId: $id, afterCursor: $cursor) {
    ... on EventConnection { hasMore cursor events { __typename
        ... on MessageEvent { message level stepKey }
        ... on ExecutionStepFailureEvent {
            error { message stack causes { message stack } } failureMetadata { description } }
        ... on RunFailureEvent { error { message stack causes { message stack } } }
        ... on MaterializationEvent { metadataEntries { label description
            ... on TextMetadataEntry { text } ... on UrlMetadataEntry { url }
            ... on JsonMetadataEntry { jsonString } } } } } } }"""


@dataclass(frozen=True)
class Run:
    """One run as Dagster keeps it."""

    id: str
    status: str
    tags: dict[str, str]
    assets: tuple[str, ...]

    @property
    def tenants(self) -> set[str]:
        return {asset.split("/", 1)[0] for asset in self.assets}

    @property
    def ended(self) -> bool:
        return self.status in ("SUCCESS", "FAILURE", "CANCELED")

    @property
    def partitions(self) -> tuple[str | None, str | None]:
        prefix = "dagster/asset_partition_range_"
        return self.tags.get(f"{prefix}start"), self.tags.get(f"{prefix}end")


class GraphQL:
    """The API of one webserver."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/graphql"

    def ask(self, query: str, **variables: Any) -> Any:
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            said = json.loads(answer.read())
        assert "errors" not in said, said["errors"]
        return said["data"]

    def location(self) -> str:
        """The one code location, which must have loaded."""
        entries = self.ask(_LOCATIONS)["workspaceOrError"]["locationEntries"]
        assert len(entries) == 1, entries
        assert "message" not in (entries[0]["locationOrLoadError"] or {}), entries
        return str(entries[0]["name"])

    def groups(self) -> dict[str, set[str]]:
        """Group -> asset keys."""
        groups: dict[str, set[str]] = {}
        for node in self.ask(_GROUPS)["assetNodes"]:
            groups.setdefault(node["groupName"], set()).add("/".join(node["assetKey"]["path"]))
        return groups

    def runs(self, **tags: str) -> list[Run]:
        """Runs that carry these tags (`_` for `/`), newest first."""
        wanted = [{"key": k.replace("_", "/"), "value": v} for k, v in tags.items()]
        found = self.ask(_RUNS, filter={"tags": wanted})["runsOrError"]["results"]
        return [
            Run(
                row["runId"],
                row["status"],
                {tag["key"]: tag["value"] for tag in row["tags"]},
                tuple("/".join(key["path"]) for key in row["assetSelection"] or ()),
            )
            for row in found
        ]

    def ended_runs(self, at_least: int, within: float, **tags: str) -> list[Run]:
        """Waits until there are so many runs with these tags and all have ended."""
        deadline = time.monotonic() + within
        while True:
            runs = self.runs(**tags)
            if len(runs) >= at_least and all(run.ended for run in runs):
                return runs
            assert time.monotonic() < deadline, f"after {within} s: {runs}"
            time.sleep(0.5)

    def backfill_status(self, id_: str) -> str:
        return str(self.ask(_BACKFILL, id=id_)["partitionBackfillOrError"]["status"])

    def materialized(self, asset: str) -> list[tuple[str, str]]:
        """First and last key of each materialized stretch of partitions."""
        node = self.ask(_STATUSES, key={"path": asset.split("/")})["assetNodeOrError"]
        return [
            (stretch["startKey"], stretch["endKey"])
            for stretch in node["assetPartitionStatuses"]["ranges"]
            if stretch["status"] == "MATERIALIZED"
        ]

    def wipe(self, assets: Sequence[str]) -> None:
        """What "Wipe materializations" in the UI does: Dagster forgets, the lake does not."""
        ranges = [{"assetKey": {"path": asset.split("/")}} for asset in assets]
        said = self.ask(_WIPE, ranges=ranges)["wipeAssets"]
        assert said["__typename"] == "AssetWipeSuccess", said

    def events(self, run: Run) -> list[dict[str, Any]]:
        """Every event of a run, with errors, stacks and metadata."""
        events: list[dict[str, Any]] = []
        cursor = None
        while True:
            page = self.ask(_EVENTS, id=run.id, cursor=cursor)["logsForRun"]
            events += page["events"]
            cursor = page["cursor"]
            if not page["hasMore"]:
                return events
