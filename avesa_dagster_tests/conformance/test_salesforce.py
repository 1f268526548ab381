"""Salesforce conforms."""

from __future__ import annotations

import json
from functools import partial

from avesa_dagster.conformance import Conformance, Enrolment, Rig, by_endpoint
from avesa_dagster.sandbox.process import Simulator

ADDED = "Mood__c"


def _fields(payload: bytes) -> object:
    """What REST gives, without what it says of the record besides."""
    return {name: value for name, value in json.loads(payload).items() if name != "attributes"}


def _but_added(content: object) -> object:
    """Without the field that is added: every record has it then, and no change time tells."""
    assert isinstance(content, dict)
    return {name: value for name, value in content.items() if name != ADDED}


def _field(rig: Rig, table: str) -> str:
    rig.control("fields", table=table, add=[f"{ADDED}:string"])
    return ADDED


class TestSalesforce(Conformance):
    enrolment = Enrolment(
        "salesforce",
        start=partial(Simulator, "salesforce"),
        secret=("client_secret",),
        called=by_endpoint,
        content=_fields,
        counts=_but_added,
        lasting=frozenset({"user"}),
        faults=({"kind": "session_expired", "at": [4]}, {"kind": "maintenance", "at": [3, 6]}),
        expire=("expire", {}),
        drift=_field,
    )
