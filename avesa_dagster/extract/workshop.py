"""What fetching a chunk needs besides the chunk and the source, and what a sweep found."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from datetime import datetime

from avesa_dagster.catalog.grain import Partition
from avesa_dagster.catalog.models import SweepGuard
from avesa_dagster.control.base import Ledger
from avesa_dagster.extract.held import Held
from avesa_dagster.extract.profile import Profile
from avesa_dagster.extract.raw import Origin
from avesa_dagster.lake.objects import Objects
from avesa_dagster.sources.base import Clock


class Tally:
    """Records that arrived so far, counted by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows = 0

    def add(self, rows: int) -> None:
        with self._lock:
            self._rows += rows

    @property
    def rows(self) -> int:
        return self._rows


@dataclass(frozen=True, slots=True)
class Workshop:
    """The parts that all chunks of an extraction share.

    Attributes:
        partitions: The requested ones; a full pull spreads over them.
        first: Start of the table's first partition: what is older belongs there too.
        last: End of the table's last partition: what is newer belongs there too.
        held: What the lake holds of the requested partitions, or of the whole table if a full
            pull or a sweep is asked for.
        sweeping: Whether a full pull also looks for deletions.
        tally: Records that arrived.
        profile: What their fields look like.
    """

    objects: Objects
    ledger: Ledger
    clock: Clock
    origin: Origin
    partitions: tuple[Partition, ...]
    first: datetime
    last: datetime
    guard: SweepGuard
    held: Held
    sweeping: bool
    tally: Tally = field(default_factory=Tally)
    profile: Profile = field(default_factory=Profile)


@dataclass(frozen=True, slots=True)
class Swept:
    """What a search for deletions found: closed records, and hidden ones (still there)."""

    deleted: int = 0
    hidden: int = 0
