"""An embedded installation moves into AWS.

A tenant's move begins with a claim, an object beside its data that names the source, and ends when
its connections are written: before that nothing in the target works with what is there, so until
then whatever lies there under the claim is this move's own. After a kill at any point, the next
attempt compares and goes on. Nothing else is ever replaced: what the target holds without a claim
must be the same as in the source, and a tenant that arrived is only compared.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from avesa_dagster.control.base import TenantService
from avesa_dagster.control.dynamo import DynamoControl
from avesa_dagster.control.dynamo_locks import DynamoLocks
from avesa_dagster.control.secrets_manager import SecretsManagerSecrets
from avesa_dagster.errors import ConfigurationError, StoreError, Where
from avesa_dagster.installation import Installation
from avesa_dagster.lake.objects import Conflict, ObjectInfo
from avesa_dagster.migration.copying import Difference, Lakes, digest, is_derived
from avesa_dagster.migration.home import Home, opened
from avesa_dagster.migration.rows import Rows, TargetRows
from avesa_dagster.migration.telling import Progress, quiet

_NAMED = 5
_STEPS = ("missing", "foreign", "other")


@dataclass(slots=True)
class TenantReport:
    """What became of one tenant.

    Attributes:
        state: `would be moved`, `moved`, `arrived` (it was there already), `differs`, `refused`.
        objects, bytes: Of the source.
        copied, copied_bytes: By this attempt.
        rows: Table to rows of the source; `secrets` counts services.
        digest: SHA-256 over all keys and hashes of objects (`copying.digest`); empty if they were
            not read.
        differs: What differs between source and target, or is in the way, in words.
        since: What the target did since the tenant arrived, in words.
    """

    tenant: str
    state: str = "refused"
    services: list[str] = field(default_factory=list)
    objects: int = 0
    bytes: int = 0
    copied: int = 0
    copied_bytes: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    digest: str = ""
    differs: list[str] = field(default_factory=list)
    since: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Report:
    """What became of all."""

    source: str
    bucket: str
    environment: str
    seconds: float
    tenants: list[TenantReport]

    @property
    def well(self) -> bool:
        """Whether source and target are the same, or would be."""
        return not any(tenant.differs for tenant in self.tenants)

    def document(self) -> dict[str, Any]:
        """As plain data."""
        return {"well": self.well, **asdict(self)}


@dataclass(frozen=True, slots=True)
class Options:
    """What is to be done.

    Attributes:
        tenants: Those to move; none: all.
        dry_run: Only says what would be moved.
        verify_only: Only compares; writes nothing.
    """

    tenants: tuple[str, ...] = ()
    dry_run: bool = False
    verify_only: bool = False


def migrate(
    folder: Path, target: Installation, options: Options, progress: Progress = quiet
) -> Report:
    """Moves the installation in a folder into the target.

    Raises:
        ConfigurationError: The target is not of the aws profile, the folder is no installation or
            is at work, a tenant is unknown; nothing was written.
        AvesaError: Something cannot be read or written; what was copied stays, and the next
            attempt goes on.
    """
    began = time.monotonic()
    where = target.settings.aws
    if where is None:
        raise ConfigurationError(
            "an embedded installation is moved into AWS, and AVESA_PROFILE is embedded",
            hint="set AVESA_PROFILE=aws, AVESA_BUCKET and AVESA_ENVIRONMENT",
        )
    control = DynamoControl(where)
    secrets = SecretsManagerSecrets(where, DynamoLocks(control.database), cached=0)
    rows = TargetRows(where, control, secrets)
    with opened(folder) as home:
        tenants = _chosen(home, options.tenants)
        busy = home.busy(target.clock())
        if busy and not options.verify_only:
            raise ConfigurationError(
                f"{folder} is at work: {'; '.join(busy[:_NAMED])}",
                hint="pause or cancel its jobs, let its runs end, and stop avesa dev; then run it "
                "again (paused jobs go on in AWS: avesa resume)",
            )
        moves = [_Move(home, target, rows, name, options, progress) for name in tenants]
        surveyed = [move.survey() for move in moves]
        if (
            not options.dry_run
            and not options.verify_only
            and not any(move.report.differs for move in moves)
        ):
            rows.keep_numbers_above(home.numbers_given())
            for move, found in zip(moves, surveyed, strict=True):
                move.carry(found)
            target.refresh_snapshot()
        elif options.verify_only:
            for move in moves:
                move.verify()
    reports = [move.report for move in moves]
    seconds = round(time.monotonic() - began, 1)
    return Report(str(folder), where.bucket, where.environment, seconds, reports)


@dataclass(frozen=True, slots=True)
class _Survey:
    claimed: bool
    arrived: bool


class _Move:
    """One tenant's."""

    def __init__(
        self,
        home: Home,
        target: Installation,
        rows: TargetRows,
        tenant: str,
        options: Options,
        progress: Progress,
    ) -> None:
        self._home = home
        self._target = target
        self._rows = rows
        self._tenant = tenant
        self._options = options
        self._progress = progress
        self._claim_key = f"{tenant}/migration.json"
        self._lakes = Lakes(home.objects, target.objects, tenant, self._claim_key)
        self._connections = home.connections(tenant)
        self._held = home.rows(tenant)
        self.report = TenantReport(tenant, services=[row.service for row in self._connections])

    def survey(self) -> _Survey:
        """Finds out what is there, and says what is in the way."""
        self._progress(f"{self._tenant}: looking", 0, 0)
        source, target = self._lakes.listed()
        claimed = self._claimed()
        connections = self._target_connections()
        self._count(source)
        self._check_numbers()
        found = _Survey(claimed, bool(connections))
        if connections:
            self._check_connections(connections)
        if claimed or connections or self._options.verify_only:
            self.report.state = "arrived" if connections else "would be moved"
            return found
        difference = self._lakes.by_size(source, target)
        if target and not difference.foreign and not difference.other:
            common = {key: source[key] for key in target}
            difference, _ = self._lakes.compare(common, target, self._step("comparing", common))
        self._refuse(difference, self._rows.read(self._tenant, self._held))
        if not self.report.differs:
            self.report.state = "would be moved"
        return found

    def carry(self, found: _Survey) -> None:
        """Copies what is missing, proves that all is there, and lets it work.

        Raises:
            AvesaError: The next attempt goes on.
        """
        if found.arrived:
            self.verify()
            if found.claimed and not self.report.differs:
                self._target.objects.delete(self._claim_key)
            return
        if not found.claimed:
            self._claim()
        self._copy_objects()
        self._copy_rows()
        if self._compare():
            self._repair()
            if left := self._compare():
                raise StoreError(
                    f"what was copied is not what is there: {left[0]}",
                    where=Where(self._tenant),
                    hint="is somebody else writing there, or into the source? Run it again",
                )
        self._check_still()
        for row in self._connections:
            self._rows.connect(row)
        self._check_connections(self._target_connections())
        self._target.objects.delete(self._claim_key)
        self.report.state = "differs" if self.report.differs else "moved"

    def verify(self) -> None:
        """Compares everything; writes nothing.

        Where the target has fetched since the tenant arrived, what it derives and notes is its own:
        then every raw object of the source must be there as it was.
        """
        found, rows = self._compared()
        held = self._target_connections()
        missing = {row.service for row in self._connections} - {row.service for row in held}
        self.report.differs += [
            f"TenantServices: {service} is not in the target" for service in sorted(missing)
        ]
        said = _objects_said(found) + _rows_said(self._held, rows)
        if held and rows.chunks.keys() - self._held.chunks.keys():
            self.report.since += said
            lost = Difference(
                tuple(key for key in found.missing if not is_derived(key)),
                other=tuple(key for key in found.other if not is_derived(key)),
            )
            said = _objects_said(lost)
        self.report.differs += said
        self.report.state = "differs" if self.report.differs else "arrived"

    # What is there.

    def _claimed(self) -> bool:
        """Whether an earlier attempt from the same source began and did not end.

        Raises:
            ConfigurationError: One from another source did.
        """
        try:
            said = json.loads(self._target.objects.get(self._claim_key))
            source = said["source"]
        except KeyError:
            return False
        except (ValueError, TypeError):
            source = None
        if source == self._identity():
            return True
        raise ConfigurationError(
            f"a move of this tenant from another installation is under way in {self._claim_key}",
            where=Where(self._tenant),
            hint="finish that one, or erase the tenant in the target: avesa erase",
        )

    def _identity(self) -> str:
        """Names this tenant of this installation, wherever its folder lies."""
        said = [
            [row.service, row.number, row.connected_at.isoformat()] for row in self._connections
        ]
        return hashlib.sha256(json.dumps([self._tenant, said]).encode()).hexdigest()

    def _claim(self) -> None:
        said = {"source": self._identity(), "since": self._target.clock().isoformat()}
        try:
            self._target.objects.put_if(self._claim_key, json.dumps(said).encode(), tag=None)
        except Conflict:
            if not self._claimed():
                raise

    def _target_connections(self) -> list[TenantService]:
        registry = self._target.control.registry
        return [row for row in registry.all() if row.tenant == self._tenant]

    def _check_numbers(self) -> None:
        own = {row.number: row for row in self._connections}
        for row in self._target.control.registry.all():
            wanted = own.get(row.number)
            if wanted and (row.tenant, row.service) != (wanted.tenant, wanted.service):
                self.report.differs.append(
                    f"TenantServices: the target gave {wanted.service}'s number {row.number} to "
                    f"{row.tenant} {row.service}; a number belongs to one connection: move into "
                    "another AVESA_ENVIRONMENT, or connect this tenant there anew"
                )

    def _check_connections(self, held: Sequence[TenantService]) -> None:
        wanted = {row.service: row for row in self._connections}
        for row in held:
            own = wanted.get(row.service)
            if own is None:
                self.report.differs.append(
                    f"TenantServices: the target has {row.service}, which the source has not"
                )
            elif own != row:
                self.report.differs.append(
                    f"TenantServices: {row.service} is another connection in the target, or has "
                    "been changed there"
                )

    def _refuse(self, objects: Difference, rows: Rows) -> None:
        """Says what the target holds that is no part of this."""
        said = _objects_said(objects, missing=False) + _rows_said(self._held, rows, missing=False)
        self.report.differs += said

    def _count(self, source: Mapping[str, ObjectInfo]) -> None:
        self.report.objects = len(source)
        self.report.bytes = sum(info.size for info in source.values())
        self.report.rows = {name: len(rows) for name, rows in self._held.tables().items()}
        self.report.rows["TenantServices"] = len(self._connections)

    # What is done.

    def _copy_objects(self) -> None:
        source, target = self._lakes.listed()
        found = self._lakes.by_size(source, target)
        self._discard(found.foreign)
        self._copy((*found.missing, *found.other), source, target)

    def _copy(
        self,
        keys: Sequence[str],
        source: Mapping[str, ObjectInfo],
        target: Mapping[str, ObjectInfo],
    ) -> None:
        chosen = {key: source[key] for key in keys}
        step = self._step("copying", chosen)

        def copied(size: int) -> None:
            self.report.copied += 1
            self.report.copied_bytes += size
            step(size)

        self._lakes.copy(list(chosen), source, target, copied)

    def _discard(self, keys: Iterable[str]) -> None:
        """Removes what an earlier attempt copied, and the source has replaced since."""
        for key in keys:
            if not is_derived(key):
                raise ConfigurationError(
                    f"the target holds {key}, which the source has not",
                    where=Where(self._tenant),
                    hint="nothing of it was changed; who wrote it? Erase the tenant in the target "
                    "to begin anew",
                )
            self._target.objects.delete(key)

    def _copy_rows(self) -> None:
        """Adds what is missing; what an earlier attempt wrote, and is otherwise now, goes first."""
        held = self._rows.read(self._tenant, self._held).tables()
        for table, wanted in self._held.tables().items():
            there = held[table]
            changed = any(wanted.get(key) != row for key, row in there.items())
            if changed:
                self._rows.forget(self._tenant, table, there.keys() - wanted.keys())
            missing = {
                key: row
                for key, row in wanted.items()
                if (changed and table != "secrets") or there.get(key) != row
            }
            if missing:
                what, done = f"{self._tenant}: writing {table}", 0

                def step(more: int, what: str = what, total: int = len(missing)) -> None:
                    nonlocal done
                    done += more
                    self._progress(what, done, total)

                self._rows.add(self._tenant, table, missing, step)

    def _compare(self) -> list[str]:
        """What differs, after reading all of both."""
        found, rows = self._compared()
        return _objects_said(found) + _rows_said(self._held, rows)

    def _compared(self) -> tuple[Difference, Rows]:
        source, target = self._lakes.listed()
        found, hashes = self._lakes.compare(source, target, self._step("verifying", source))
        self.report.digest = digest(hashes)
        return found, self._rows.read(self._tenant, self._held)

    def _repair(self) -> None:
        """Copies again what an earlier attempt left otherwise under this one's claim."""
        source, target = self._lakes.listed()
        found, _ = self._lakes.compare(source, target, self._step("verifying", source))
        self._copy((*found.missing, *found.other), source, target)
        # A manifest tells of partitions that may have been written just now.
        source, target = self._lakes.listed()
        found, _ = self._lakes.compare(source, target, self._step("verifying", source))
        self._copy(found.other, source, target)
        self._copy_rows()

    def _check_still(self) -> None:
        """Raises ConfigurationError if the source was at work meanwhile."""
        with opened(self._home.folder) as now:
            same = (
                now.connections(self._tenant) == self._connections
                and now.rows(self._tenant) == self._held
                and not now.busy(self._target.clock())
            )
        if not same:
            raise ConfigurationError(
                "the source has changed while it was copied; what was copied stays",
                where=Where(self._tenant),
                hint="stop whatever works with it, then run it again",
            )

    def _step(self, what: str, chosen: Mapping[str, ObjectInfo]) -> Callable[[int], None]:
        total, done = sum(info.size for info in chosen.values()), 0
        text = f"{self._tenant}: {what} {len(chosen)} objects"

        def step(size: int) -> None:
            nonlocal done
            done += size
            self._progress(text, done, total)

        return step


def _chosen(home: Home, wanted: Sequence[str]) -> list[str]:
    known = home.tenants()
    for name in wanted:
        if name not in known:
            raise ConfigurationError(
                f"{home.folder} has no tenant {name!r}", hint=f"it has: {', '.join(known)}"
            )
    return [name for name in known if not wanted or name in wanted]


def _objects_said(found: Difference, *, missing: bool = True) -> list[str]:
    texts = {
        "missing": "not in the target",
        "foreign": "in the target and not in the source",
        "other": "other bytes in the target",
    }
    return [
        f"{_some(getattr(found, name))}: {texts[name]}"
        for name in _STEPS
        if getattr(found, name) and (missing or name != "missing")
    ]


def _rows_said(wanted: Rows, held: Rows, *, missing: bool = True) -> list[str]:
    """Names of rows only: credentials are among them."""
    said = []
    for table, own in wanted.tables().items():
        there = held.tables()[table]
        for text, keys in (
            ("not in the target", own.keys() - there.keys() if missing else set()),
            ("in the target and not in the source", there.keys() - own.keys()),
            ("otherwise in the target", {k for k in own.keys() & there if own[k] != there[k]}),
        ):
            if keys:
                said.append(f"{table}: {_some(sorted(keys))}: {text}")
    return said


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"
