"""Blocks that one process of all hosts is in at a time: leases that their holders keep alive.

Nobody's clock is compared with another's. A holder changes its item every few seconds; who waits
takes the lease over when it saw the same item for longer than a holder that lives would leave it.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from avesa_dagster.control.dynamo_database import DynamoDatabase, Row
from avesa_dagster.control.dynamo_tables import HEALTH
from avesa_dagster.errors import AvesaError, StoreError, Where

_log = logging.getLogger(__name__)
_SCOPE = "locks"


class DynamoLocks:
    """Leases in the table Health.

    Args:
        beat: Seconds between two signs of life.
        dead: Seconds without one after which a holder is taken for dead; several beats.
        patience: Seconds to wait for a lease.
    """

    def __init__(
        self,
        database: DynamoDatabase,
        *,
        beat: float = 3.0,
        dead: float = 20.0,
        patience: float = 300.0,
    ) -> None:
        self._database = database
        self._beat = beat
        self._dead = dead
        self._patience = patience

    @contextmanager
    def exclusive(self, name: str, where: Where) -> Iterator[None]:
        """A block that one thread of all processes is in at a time.

        A holder that is stopped for longer than `dead` seconds and then goes on is in it beside the
        next one: what the block writes must bear that, by conditional writes.

        Raises:
            StoreError: Others held it for too long.
        """
        owner = secrets.token_hex(8)
        self._take(name, owner, where)
        ended = threading.Event()
        keeper = threading.Thread(target=self._keep, args=(name, owner, ended), daemon=True)
        keeper.start()
        try:
            yield
        finally:
            ended.set()
            keeper.join()
            self._free(name, owner)

    def _take(self, name: str, owner: str, where: Where) -> None:
        began = time.monotonic()
        seen: tuple[str | None, float] = (None, began)
        pause = 0.01
        while True:
            held = self._database.get(HEALTH, (_SCOPE, name), where)
            now = time.monotonic()
            if held is not None:
                sign = held.text("sign", "")
                if sign != seen[0]:
                    seen = (sign, now)
            if held is None or now - seen[1] > self._dead:
                item = {"scope": _SCOPE, "item": name, "owner": owner, "sign": owner}
                if self._put(item, held, where):
                    return
                continue
            if now - began > self._patience:
                raise StoreError(
                    f"another process held {name} for {self._patience:.0f} s",
                    where=where,
                    hint="look for a run that hangs; nothing was changed",
                )
            time.sleep(pause)
            pause = min(pause * 1.5, 0.5)

    def _put(self, item: dict[str, str], held: Row | None, where: Where) -> bool:
        taken: list[bool] = []

        def change(row: Row | None) -> dict[str, str] | None:
            same = (row.text("sign", "") if row else None) == (
                held.text("sign", "") if held else None
            )
            taken.append(same)
            return item if same else None

        self._database.change(HEALTH, (_SCOPE, item["item"]), change, where)
        return taken[-1]

    def _keep(self, name: str, owner: str, ended: threading.Event) -> None:
        while not ended.wait(self._beat):
            try:
                self._database.change(
                    HEALTH, (_SCOPE, name), lambda row: _beaten(row, owner), Where()
                )
            except AvesaError as error:
                _log.warning("no sign of life for %s: %s", name, error)

    def _free(self, name: str, owner: str) -> None:
        held = self._database.get(HEALTH, (_SCOPE, name))
        while held is not None and held.text("owner", "") == owner:
            if self._database.delete(HEALTH, held):
                return
            held = self._database.get(HEALTH, (_SCOPE, name))


def _beaten(row: Row | None, owner: str) -> dict[str, str] | None:
    if row is None or row.text("owner", "") != owner:
        return None  # taken over: this holder was silent for too long
    return {"sign": secrets.token_hex(8)}
