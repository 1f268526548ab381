"""What the author of avesa-notes runs: `pytest conforms.py`."""

from avesa_notes.simulated import SimulatedNotes

from avesa_dagster.conformance import Conformance, Enrolment
from avesa_dagster.conformance.stand import add_field


class TestNotes(Conformance):
    enrolment = Enrolment("notes", start=SimulatedNotes, secret=("token",), drift=add_field)
