"""ConnectWise conforms."""

from __future__ import annotations

from functools import partial

from avesa_dagster.conformance import Conformance, Enrolment, Rig
from avesa_dagster.sandbox.process import Simulator


def add_field(rig: Rig, table: str) -> str:
    rig.control("field", table=table, add="mood")
    return "mood"


class TestConnectWise(Conformance):
    enrolment = Enrolment(
        "connectwise",
        start=partial(Simulator, "connectwise"),
        secret=("public_key", "private_key", "client_id"),
        most=100_000,
        faults=({"kind": "codebase_upgrade", "at": [3]},),
        drift=add_field,
    )
