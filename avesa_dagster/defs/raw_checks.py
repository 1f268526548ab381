"""What is checked of a raw table after each fetch: reconciled, complete, fresh, unchanged, once."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import dagster as dg

from avesa_dagster.canonical.checks import doubled_observations, raw_objects, together
from avesa_dagster.control.coverage import PartitionCoverage
from avesa_dagster.control.health import Breaker, Drift
from avesa_dagster.defs.shared import ANSWERS, STALE
from avesa_dagster.extract.reconcile import reconcile
from avesa_dagster.extract.request import Extracted, Mode, Request
from avesa_dagster.installation import Installation

RECONCILES = "reconciles_with_source"
COMPLETE = "history_complete"
RECENT = "synced_recently"
UNCHANGED = "schema_unchanged"
ONCE = "stored_once"
_SPECS = {
    RECONCILES: "The lake holds at least what the service counted, window by window.",
    COMPLETE: "Every stretch of the history was fetched; holes are named.",
    RECENT: "The live sync is on time.",
    UNCHANGED: "Records have the fields and types that are known; the drift log keeps the rest.",
    ONCE: "No observation is stored twice.",
    ANSWERS: "The service answers: the breaker of this tenant's service is closed.",
}
_SHOWN = 10
Result = dg.AssetCheckResult


def specs(key: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    return [dg.AssetCheckSpec(n, asset=key, description=text) for n, text in _SPECS.items()]


def results(
    installation: Installation,
    request: Request,
    extracted: Extracted,
    covered: Sequence[PartitionCoverage],
) -> list[Result]:
    """One result of each check, after a fetch that ended well."""
    return [
        _reconciled(installation, extracted),
        _complete(covered),
        _recent(installation, request),
        _unchanged(extracted.drifts),
        _once(installation, request),
        _answers(),
    ]


def _reconciled(installation: Installation, extracted: Extracted) -> Result:
    missing = reconcile(installation.objects, extracted.chunks)
    said = (
        f"{m.window}: counted {m.counted}, shown to this user {m.shown}, held {m.held}"
        for m in missing
    )
    lost = any(m.lost for m in missing)
    return Result(
        check_name=RECONCILES,
        passed=not missing,
        severity=dg.AssetCheckSeverity.ERROR if lost else dg.AssetCheckSeverity.WARN,
        metadata={
            "windows compared": len(extracted.chunks),
            "windows that disagree": ", ".join(said) or "none",
        },
    )


def _complete(covered: Sequence[PartitionCoverage]) -> Result:
    holes = [str(hole) for item in covered for hole in item.holes]
    more = f" and {len(holes) - _SHOWN} more" if len(holes) > _SHOWN else ""
    share = sum(item.share for item in covered) / max(1, len(covered))
    return Result(
        check_name=COMPLETE,
        passed=not holes,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"covered": f"{share:.1%}", "holes": ", ".join(holes[:_SHOWN]) + more or "none"},
    )


def _recent(installation: Installation, request: Request) -> Result:
    """A warning after the alert's threshold, an error after a day."""
    mark = installation.control.watermarks.get(request.tenant, request.service, request.table)
    late = timedelta(minutes=installation.catalog.backfill.alerts.fresh_minutes)
    behind = installation.clock() - mark.upper if mark else None
    grave = behind is not None and behind > STALE
    return Result(
        check_name=RECENT,
        passed=behind is not None and behind <= late,
        severity=dg.AssetCheckSeverity.ERROR if grave else dg.AssetCheckSeverity.WARN,
        metadata={
            "synced up to": f"{mark.upper:%Y-%m-%d %H:%M:%S} UTC" if mark else "never yet",
            "late after": f"{late.total_seconds() / 60:.0f} minutes",
        },
    )


def _unchanged(drifts: Sequence[Drift]) -> Result:
    said = [f"{drift.kind} {drift.path}: {drift.detail}" for drift in drifts[:_SHOWN]]
    return Result(
        check_name=UNCHANGED,
        passed=not drifts,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"changes": len(drifts), "what": "; ".join(said) or "none"},
    )


def _once(installation: Installation, request: Request) -> Result:
    """Looks at the partitions of the run; of a long run, at its newest ones."""
    objects = installation.objects
    place = (request.tenant, request.service, request.table)
    looked = request.partitions[-2:] if request.mode is Mode.SYNC else request.partitions
    findings = []
    for partition in looked:
        keys = raw_objects(objects, *place, partition.key)
        findings.append(doubled_observations(objects, keys))
    finding = together(findings)
    return Result(
        check_name=ONCE,
        passed=finding.broken == 0,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"stored twice": finding.broken, "example": finding.example or "none"},
    )


def _answers() -> Result:
    """It has just answered."""
    closed = Breaker("", "")
    return Result(
        check_name=ANSWERS,
        passed=True,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={"breaker": closed.state.value},
    )
