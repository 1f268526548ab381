"""A hostility script: what every simulated service knows, and what only ServiceNow does.

`faults`, `max_faults`, `max_consecutive`, `seed` and the standing conditions are those of
`avesa_dagster.sandbox.hostility`, except that there is no fault `codebase_upgrade`,
`error_object_200` gives part of the rows and then the error of a cancelled transaction,
`html_200` is the page of a hibernating instance, `restricted_share` takes rows away after the
limit, and `page_clamp` and `shuffle_ties` have the defaults below.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from avesa_dagster.sandbox.hostility import Hostility
from avesa_dagster.sandbox.timestamps import seconds


@dataclass(frozen=True, slots=True)
class Quirks:
    """Conditions of ServiceNow's own that hold while a script is set. The defaults are quirks too.

    Attributes:
        page_clamp: the largest page that is given, whatever is asked.
        shuffle_ties: rows that the ordering leaves equal come in another order at each request.
        restricted_rows: "omit" leaves ACL-denied rows out of a page, "empty" gives `{}` for them.
        restricted_window: [from, to) of sys_updated_on: such rows are ACL-denied too. Given as ISO
            8601 texts, kept as seconds since 1970 UTC.
        restricted_ids: [from, to) of sys_ids, by prefix: such rows are ACL-denied too.
        hidden_share: share of the rows that a before-query rule hides from everything, counts too;
            in the tables of `restricted_tables`.
        hidden_fields: table to the columns whose key is missing …
        hidden_fields_share: … in this share of the rows.
        silent_share: share of the changes that leave sys_updated_on as it was.
        silent_per_request: records that each list request changes so.
        sound_rows: a page of more rows is not given whole …
        oversize: … but ends in a "cancel"led transaction, in "truncate"d JSON, or "both" in turn.
        quota_rows: a list or count that selects more rows than this is cancelled; None is no quota.
    """

    page_clamp: int | None = None
    shuffle_ties: bool = True
    restricted_rows: str = "omit"
    restricted_window: tuple[int, int] | None = None
    restricted_ids: list[str] | None = None
    hidden_share: float = 0.0
    hidden_fields: dict[str, list[str]] = field(default_factory=dict)
    hidden_fields_share: float = 1.0
    silent_share: float = 0.0
    silent_per_request: int = 0
    sound_rows: int = 8000
    oversize: str = "both"
    quota_rows: int | None = None


@dataclass(slots=True)
class Script:
    """A script in force."""

    hostility: Hostility = field(default_factory=Hostility)
    quirks: Quirks = field(default_factory=Quirks)

    @classmethod
    def parse(cls, script: dict[str, Any]) -> Script:
        """Read a script.

        Raises:
            ValueError: it names a fault, parameter or condition that does not exist.
        """
        mine = {item.name for item in fields(Quirks)}
        given = {name: value for name, value in script.items() if name in mine}
        if given.get("restricted_window") is not None:
            low, high = (int(seconds(text)) for text in given["restricted_window"])
            given["restricted_window"] = low, high
        quirks = Quirks(**given)
        if quirks.restricted_rows not in ("omit", "empty"):
            raise ValueError("restricted_rows is omit or empty")
        if quirks.oversize not in ("cancel", "truncate", "both"):
            raise ValueError("oversize is cancel, truncate or both")
        rest = {name: value for name, value in script.items() if name not in mine}
        if any(line.get("kind") == "codebase_upgrade" for line in rest.get("faults", [])):
            raise ValueError("ServiceNow has no codebase_upgrade")
        return cls(Hostility.parse(rest), quirks)
