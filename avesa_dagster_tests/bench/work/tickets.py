"""ConnectWise-like tickets without end, cheap to make: the simulator's, with other ids.

The texts repeat after `_POOL` records, 14 MB apart, which is further than zstd looks back.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from random import Random

from avesa_dagster.catalog.load import load_catalog
from avesa_dagster.catalog.models import Catalog
from avesa_dagster.control.base import Chunk
from avesa_dagster.extract.proof import SEGMENT_BYTES, SEGMENT_ROWS
from avesa_dagster.sandbox import records
from avesa_dagster.settings import Settings

PAGE_ROWS = 1_000
START = datetime(2024, 1, 1, tzinfo=UTC)
END = datetime(2024, 2, 1, tzinfo=UTC)
TENANT, SERVICE, TABLE, PARTITION = "acme", "connectwise", "tickets", "2024-01-01"

_POOL = 5_000


def catalog() -> Catalog:
    """The catalog that the package ships."""
    return load_catalog(Settings.from_environment({}).mappings)


def chunk() -> Chunk:
    """The chunk that all pages belong to."""
    return Chunk(
        token="bench",
        tenant=TENANT,
        service=SERVICE,
        table=TABLE,
        chunk_id="20240101-20240201",
        partition=PARTITION,
        kind="window",
        start=START,
        end=END,
    )


class Tickets:
    """Makes pages. Every record has an id of its own; change times lie in [START, END)."""

    def __init__(self) -> None:
        cast = records.Cast.of_setup_tables()
        rng = Random(7)
        start, end = int(START.timestamp()), int(END.timestamp())
        for table, count in (("members", 20), ("companies", 500), ("contacts", 2_000)):
            for number in range(count):
                record = records.MAKERS[table](cast, rng, number, number + 1, start, start)
                cast.announce(table, record, start)
        self._tails = []
        for number in range(_POOL):
            updated = start + (end - start) * number // _POOL
            record = records.ticket(cast, rng, number, number, start, updated)
            self._tails.append(records.to_bytes(record).split(b",", 1)[1])

    @property
    def mean_bytes(self) -> float:
        """Bytes of an average record."""
        return sum(map(len, self._tails)) / len(self._tails) + 12

    def page(self, first: int, rows: int = PAGE_ROWS) -> bytes:
        """The records with ids `first` and following."""
        tails = self._tails
        parts = [b'{"id":%d,%s' % (n, tails[n % _POOL]) for n in range(first, first + rows)]
        return b"[" + b",".join(parts) + b"]"

    def segments(self, rows: int) -> Iterator[Iterator[bytes]]:
        """Pages with so many records in all, grouped as extraction groups them into objects."""
        segment = min(SEGMENT_ROWS, int(SEGMENT_BYTES / self.mean_bytes) + PAGE_ROWS)
        segment = segment // PAGE_ROWS * PAGE_ROWS
        for first in range(0, rows, segment):
            upto = min(first + segment, rows)
            yield (
                self.page(10_000_000 + n, min(PAGE_ROWS, upto - n))
                for n in range(first, upto, PAGE_ROWS)
            )
