"""Decides which request meets which fault. What a fault does is in `faults`.

A script is plain data:

    {"seed": 1, "max_faults": 20, "max_consecutive": 2,
     "faults": [{"kind": "status", "status": 503, "at": [3, 7]},
                {"kind": "cut_body", "framing": "chunked", "probability": 0.05, "on": "list"}],
     "mutate_per_request": 3, "page_clamp": 250, …}

Ordinals in `at` count, from 1, the requests that this fault could apply to since the script was
set.
Of several faults due at one request the first in the list happens. `max_faults` caps the faults
injected in all; `max_consecutive` caps those in a row on one stream (the same company, table, kind
of request and conditions, whatever the page or `id >`), so that a retry may succeed.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass, field
from random import Random
from typing import Any, get_type_hints

BEFORE = frozenset(
    [
        "status",
        "reset_before",
        "html_200",
        "error_object_200",
        "redirect",
        "codebase_upgrade",
        "slow",
    ]
)
"""Faults that take the place of the answer (`slow` only delays it)."""
ON_PAGE = frozenset(
    ["drop_row", "duplicate_row", "repeat_page", "empty_page", "filter_ignored", "short_page"]
)
"""Faults that change the rows of a page that otherwise looks sound; lists only."""
ON_WIRE = frozenset(["reset_after_headers", "cut_body", "broken_json", "hang_up"])
"""Faults that damage the delivery of a sound answer."""

_COMMON = {"kind", "probability", "at", "on", "table", "company_id", "burst"}
_PARAMETERS = {
    "status": {"status", "body", "retry_after", "message"},
    "slow": {"seconds", "drip"},
    "redirect": {"status", "location"},
    "codebase_upgrade": {"to"},
    "drop_row": {"rows"},
    "short_page": {"rows"},
    "filter_ignored": {"ignore"},
    "cut_body": {"framing", "fraction", "ending"},
    "broken_json": {"fraction"},
}


@dataclass(frozen=True, slots=True)
class Traits:
    """What a fault may be limited to: the kind of request (list, count, get, …), table, company."""

    kind: str
    table: str | None
    company_id: str | None
    stream: str


@dataclass(slots=True)
class Fault:
    """One line of a script, with its count of the requests that it could have applied to."""

    kind: str
    probability: float
    at: frozenset[int]
    on: frozenset[str]
    table: str | None
    company_id: str | None
    burst: int
    parameters: dict[str, Any]
    seen: int = 0
    burst_left: int = 0

    @classmethod
    def parse(cls, line: dict[str, Any]) -> Fault:
        kind = line.get("kind")
        if kind not in BEFORE | ON_PAGE | ON_WIRE:
            raise ValueError(f"no fault of kind {kind!r}; there are {sorted(_known_kinds())}")
        unknown = set(line) - _COMMON - _PARAMETERS.get(kind, set())
        if unknown:
            raise ValueError(f"{kind} has no parameter {sorted(unknown)}")
        default = ["list"] if kind in ON_PAGE else ["list", "count", "get"]
        on = line.get("on", default)
        return cls(
            kind=kind,
            probability=float(line.get("probability", 0.0)),
            at=frozenset(line.get("at", ())),
            on=frozenset([on] if isinstance(on, str) else on),
            table=line.get("table"),
            company_id=line.get("company_id"),
            burst=int(line.get("burst", 1)),
            parameters={key: value for key, value in line.items() if key not in _COMMON},
        )

    def applies(self, traits: Traits) -> bool:
        return (
            traits.kind in self.on
            and self.table in (None, traits.table)
            and self.company_id in (None, traits.company_id)
        )

    def due(self, rng: Random) -> bool:
        """Count one applicable request; True if the script wants the fault at it."""
        self.seen += 1
        if self.burst_left:
            self.burst_left -= 1
            return True
        if self.seen in self.at or (self.probability and rng.random() < self.probability):
            self.burst_left = self.burst - 1
            return True
        return False


def _known_kinds() -> frozenset[str]:
    return BEFORE | ON_PAGE | ON_WIRE


@dataclass(slots=True)
class Standing:
    """Conditions that hold for every request while the script is set; they do not count as faults.

    Attributes:
        mutate_per_request: records of the table that each list request changes after its page is
            made, taken from those that match its conditions: what makes pages drift.
        delete_per_request: the same, deleting.
        create_per_request: new records entered after each list request.
        page_clamp: the largest page that the service gives, whatever is asked.
        late_seconds: a changed or new record shows only so long after its lastUpdated …
        late_share: … for this share of the changes.
        restricted_share: share of the rows that lists and counts leave out, and GET refuses (403).
        restricted_tables: the tables that the restriction holds for; None is all.
        shuffle_ties: rows that the ordering leaves equal come in another order at each request.
    """

    mutate_per_request: int = 0
    delete_per_request: int = 0
    create_per_request: int = 0
    page_clamp: int = 1000
    late_seconds: float = 0.0
    late_share: float = 1.0
    restricted_share: float = 0.0
    restricted_tables: list[str] | None = None
    shuffle_ties: bool = False


@dataclass
class Hostility:
    """A script in force. Safe to use from every thread."""

    standing: Standing = field(default_factory=Standing)
    faults: list[Fault] = field(default_factory=list)
    max_faults: int | None = None
    max_consecutive: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._rng = Random(f"{self.seed}:hostility")
        self._injected = 0
        self._consecutive: defaultdict[str, int] = defaultdict(int)
        self._remembers = any(fault.kind == "repeat_page" for fault in self.faults)
        self._pages: dict[str, list[bytes]] = {}

    @classmethod
    def parse(cls, script: dict[str, Any]) -> Hostility:
        """Read a script.

        Raises:
            ValueError: it names a fault, parameter or condition that does not exist.
        """
        rest = dict(script)
        faults = [Fault.parse(line) for line in rest.pop("faults", [])]
        caps = {k: rest.pop(k) for k in ("max_faults", "max_consecutive", "seed") if k in rest}
        unknown = set(rest) - set(get_type_hints(Standing))
        if unknown:
            raise ValueError(f"a hostility script has no {sorted(unknown)}")
        return cls(Standing(**rest), faults, **caps)

    def choose(self, traits: Traits) -> Fault | None:
        """The fault that this request meets, if any; it is counted at once."""
        with self._lock:
            due = [fault for fault in self.faults if fault.applies(traits) and fault.due(self._rng)]
            spent = self.max_faults is not None and self._injected >= self.max_faults
            row = self._consecutive[traits.stream]
            tired = self.max_consecutive is not None and row >= self.max_consecutive
            if not due or spent or tired:
                self._consecutive[traits.stream] = 0
                return None
            self._injected += 1
            self._consecutive[traits.stream] += 1
            return due[0]

    def withdraw(self, traits: Traits) -> None:
        """The chosen fault found nothing to spoil: it does not count."""
        with self._lock:
            self._injected -= 1
            self._consecutive[traits.stream] = 0

    def previous_page(self, stream: str, rows: list[bytes]) -> list[bytes] | None:
        """The rows served before these on a stream; kept only if the script repeats pages."""
        if not self._remembers:
            return None
        with self._lock:
            previous = self._pages.get(stream)
            self._pages[stream] = list(rows)
            return previous

    def chance(self) -> float:
        with self._lock:
            return self._rng.random()

    def below(self, limit: int) -> int:
        """A whole number from 0 up to, not including, `limit`."""
        return int(self.chance() * limit)
