"""ServiceNow conforms."""

from __future__ import annotations

import json
from functools import partial

from avesa_dagster.conformance import Conformance, Enrolment, Rig
from avesa_dagster.sandbox.process import Simulator

ADDED = "u_mood"


def _values(payload: bytes) -> object:
    """What the Table API gives with `sysparm_display_value=all`, as it gives it without."""
    return {name: cell["value"] for name, cell in json.loads(payload).items()}


def _but_added(content: object) -> object:
    """Without the column that is added: every record has it then, and no change time tells."""
    assert isinstance(content, dict)
    return {name: value for name, value in content.items() if name != ADDED}


def _column(rig: Rig, table: str) -> str:
    rig.control("column", table=table, add=ADDED)
    return ADDED


class TestServiceNow(Conformance):
    enrolment = Enrolment(
        "servicenow",
        start=partial(Simulator, "servicenow", grant="password"),
        secret=("password", "client_secret"),
        content=_values,
        counts=_but_added,
        expire=("expire_tokens", {}),
        zone=("user", {"time_zone": "Asia/Kolkata"}),
        drift=_column,
    )
