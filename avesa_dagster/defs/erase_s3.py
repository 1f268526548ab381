"""What runs and ticks wrote, where Dagster keeps it in S3: all versions of it.

Dagster's own `delete_logs` removes the first thousand objects of a run, and no older version.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator
from typing import Any

from botocore.exceptions import ClientError

from avesa_dagster.aws import code_of, explained
from avesa_dagster.defs.run_files import RUN_ID, kept_lines
from avesa_dagster.defs.traces import Traces
from avesa_dagster.lake.bucket import Bucket, Said
from avesa_dagster.lake.s3 import PART_BYTES


class S3Logs:
    """Implements `erase_rows.Logs`.

    Args:
        manager: dagster_aws's S3ComputeLogManager.
    """

    def __init__(self, manager: Any) -> None:
        self._bucket = Bucket(manager._s3_bucket, manager._region, {}, PART_BYTES)
        self._folder = f"{manager._s3_prefix}/storage/"

    def remove(self, run_id: str) -> None:
        """See Logs.remove."""
        with explained(f"removing output in bucket {self._bucket.name}"):
            self._bucket.erase([said for said, _ in self._held(f"{run_id}/")])

    def holding(self) -> set[str]:
        """See Logs.holding."""
        with explained(f"listing output in bucket {self._bucket.name}"):
            owners = {self._owner(said) for said, _ in self._held()}
        return {owner for owner in owners if RUN_ID.fullmatch(owner)}

    def names(self, run_id: str, traces: Traces) -> bool:
        """See Logs.names."""
        with explained(f"reading output in bucket {self._bucket.name}"):
            return any(
                traces.found(self._text(said))
                for said, is_text in self._held(f"{run_id}/")
                if is_text
            )

    def clean(self, traces: Traces, run_ids: Collection[str]) -> int:
        """See Logs.clean. What ticks wrote is written once, at their end."""
        changed = set()
        with explained(f"cleaning output in bucket {self._bucket.name}"):
            for said in list(self._of_ticks()):
                text = self._text(said)
                kept = kept_lines(text, traces, run_ids)
                if kept == text:
                    continue
                if said["IsLatest"] and kept:
                    self._bucket.put(said["Key"], kept.encode(), uuid.uuid4().hex)
                self._bucket.erase([said])
                changed.add(said["Key"])
        return len(changed)

    def named(self, traces: Traces) -> list[str]:
        """See Logs.named."""
        with explained(f"reading output in bucket {self._bucket.name}"):
            keys = {said["Key"] for said in self._of_ticks() if traces.found(self._text(said))}
        return [f"s3://{self._bucket.name}/{key}: run the erasure again" for key in sorted(keys)]

    def _of_ticks(self) -> Iterator[Said]:
        for said, is_text in self._held():
            if is_text and not RUN_ID.fullmatch(self._owner(said)):
                yield said

    def _held(self, below: str = "") -> Iterator[tuple[Said, bool]]:
        """Each version, and whether it is one; or else it is the mark of a deletion."""
        for page in self._bucket.versions(f"{self._folder}{below}"):
            for said in page.get("Versions", ()):
                yield said, True
            for said in page.get("DeleteMarkers", ()):
                yield said, False

    def _owner(self, said: Said) -> str:
        """The run, or else the repository whose tick it was."""
        return str(said["Key"].removeprefix(self._folder).partition("/")[0])

    def _text(self, said: Said) -> str:
        try:
            data = self._bucket.body(said["Key"], VersionId=said["VersionId"])[1]
        except KeyError:
            return ""  # it has ended by age meanwhile
        except ClientError as error:
            if code_of(error) != "NoSuchVersion":
                raise
            return ""
        return data.decode("utf-8", "replace")
