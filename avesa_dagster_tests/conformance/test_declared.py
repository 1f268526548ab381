"""A service without code conforms: ConnectWise, as a service file alone describes it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import requests

from avesa_dagster.conformance import Conformance, Enrolment
from avesa_dagster.sandbox.process import Simulator
from avesa_dagster.settings import Settings
from avesa_dagster_tests.conformance.test_connectwise import add_field

HTTP = Path(__file__).parents[1] / "sources" / "connectwise_http.json"
_folder = tempfile.TemporaryDirectory(prefix="avesa-declared-")


def described() -> Path:
    """The mappings that ship, but that ConnectWise's file says how to speak to it."""
    folder = Path(_folder.name, "mappings")
    if not folder.exists():
        shutil.copytree(Settings.from_environment({}).mappings, folder)
        file = folder / "services" / "connectwise.json"
        said = json.loads(file.read_text("utf-8"))
        file.write_text(json.dumps(said | {"http": json.loads(HTTP.read_text("utf-8"))}), "utf-8")
    return folder


class Declared:
    """A simulated ConnectWise whose credentials name the address of its tables."""

    def __init__(self) -> None:
        self._simulator = Simulator()
        self.control = self._simulator.control
        self.stop = self._simulator.stop

    @property
    def credentials(self) -> Mapping[str, str]:
        given: dict[str, Any] = self._simulator.credentials
        info = f"{self._simulator.url}/login/companyinfo/{given['company_id']}"
        codebase = requests.get(info, timeout=30).json()["Codebase"].strip("/")
        return given | {"api_base_url": f"{self._simulator.url}/{codebase}"}


class TestDeclared(Conformance):
    enrolment = Enrolment(
        "connectwise",
        start=Declared,
        secret=("public_key", "private_key", "client_id"),
        mappings=described(),
        tables=("tickets", "companies"),
        most=100_000,
        drift=add_field,
    )
