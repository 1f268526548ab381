"""What one extraction is asked to do, and what it says of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from avesa_dagster.catalog.grain import Partition
from avesa_dagster.control.base import Chunk
from avesa_dagster.control.health import Drift
from avesa_dagster.sources.base import Window


class Mode(StrEnum):
    """How much of its partitions an extraction asks for.

    BACKFILL: all of them; master data whole. SYNC: from the watermark less the overlap to the
    present less the lag. FULL: like SYNC, then master data whole, and the search for deletions.
    """

    BACKFILL = "backfill"
    SYNC = "sync"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Request:
    """Fetch these partitions of one table of one tenant's service.

    Attributes:
        partitions: Contiguous, oldest first.
        token: Equal for a run and its retries: what they finished is not fetched again.
        run_id: Written beside each observation.
        job_id: The backfill job, written beside each observation too.
        chunk_days: Overrides the configured length of a chunk.
        stretches: Only what lies in these, if there are any.
        only_missing: Only what the ledger does not show as covered.
    """

    tenant: str
    service: str
    table: str
    partitions: tuple[Partition, ...]
    mode: Mode
    token: str
    run_id: str
    job_id: str | None = None
    chunk_days: int | None = None
    stretches: tuple[Window, ...] = ()
    only_missing: bool = False

    @property
    def start(self) -> datetime:
        return self.partitions[0].start

    @property
    def end(self) -> datetime:
        return self.partitions[-1].end


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an extraction is, said after each chunk and every few seconds.

    Attributes:
        ended: The window of the chunk that just ended; None if none did.
        done: Chunks that ended well, those of an earlier attempt too.
        rows: Records that arrived.
        seconds_left: Estimate by the chunks so far; None before there is one.
    """

    ended: str | None
    done: int
    total: int
    rows: int
    requests: int
    seconds_left: float | None


Report = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Fetched:
    """What the ledger says of one partition after an extraction.

    Attributes:
        rows: Records that the service sent for its windows; a full pull counts for the table.
        source_count: What the service counted.
        requests: Requests spent, repeated ones too.
        as_of: When the oldest of its chunks began: nothing that changed later is promised.
    """

    partition: Partition
    rows: int
    source_count: int
    requests: int
    objects: tuple[str, ...]
    windows: tuple[str, ...]
    as_of: datetime | None


@dataclass(frozen=True, slots=True)
class Extracted:
    """The outcome of an extraction: each partition, its chunks, and the deletions found (FULL)."""

    partitions: tuple[Fetched, ...]
    chunks: tuple[Chunk, ...]
    deleted: int
    hidden: int
    """Records that the lists lack, but that the service still has: a permission, not a deletion."""
    drifts: tuple[Drift, ...]
    """How the records' fields differ from what was known of them."""
    requests: int
    """Requests that this extraction spent, without those of the run that it resumes."""
    seconds: float
