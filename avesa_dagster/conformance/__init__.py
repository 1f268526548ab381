"""The conformance suite: what AVESA promises, proven for a service that is simulated.

One line enrols a service; see `docs/add-a-service.md`. Needs pytest (`avesa-dagster[conformance]`).

    from avesa_dagster.conformance import Conformance, Enrolment

    class TestNotes(Conformance):
        enrolment = Enrolment("notes", start=SimulatedNotes, secret=("token",))
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(f"{__name__}.suite", f"{__name__}.judge", f"{__name__}.bench")

from avesa_dagster.conformance.enrolment import Enrolment, Rig, by_endpoint  # noqa: E402
from avesa_dagster.conformance.stand import Ask, Stand  # noqa: E402
from avesa_dagster.conformance.suite import Conformance  # noqa: E402
from avesa_dagster.sandbox.wire import Request  # noqa: E402

__all__ = ["Ask", "Conformance", "Enrolment", "Request", "Rig", "Stand", "by_endpoint"]
