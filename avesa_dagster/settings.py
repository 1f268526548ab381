"""The environment of an installation: AVESA_* variables, read once and checked.

| variable | meaning | default |
| --- | --- | --- |
| AVESA_HOME | the folder of the installation | the nearest `.avesa` upwards, else `~/.avesa` |
| AVESA_MAPPINGS | the folder of the mappings | beside the package, else the installed copy |
| AVESA_PROFILE | `embedded` | `embedded` |
| AVESA_SHARD | `2/8`: the second of eight parts of the tenants | all |
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from avesa_dagster.errors import ConfigurationError, StoreError

_PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Settings:
    """Where an installation lies and which part of it this process sees.

    Attributes:
        shard: (part, parts), part from 1; None: every tenant.
    """

    home: Path
    mappings: Path
    shard: tuple[int, int] | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Reads the variables.

        Raises:
            ConfigurationError: A variable has a value that it cannot have.
        """
        environ = os.environ if environ is None else environ
        profile = environ.get("AVESA_PROFILE", "embedded")
        if profile != "embedded":
            raise ConfigurationError(
                f"AVESA_PROFILE is {profile!r}", hint="this version knows: embedded"
            )
        home = environ.get("AVESA_HOME")
        mappings = environ.get("AVESA_MAPPINGS")
        return cls(
            home=Path(home).expanduser().absolute() if home else _nearest_home(Path.cwd()),
            mappings=Path(mappings).expanduser().absolute() if mappings else _own_mappings(),
            shard=_shard(environ.get("AVESA_SHARD")),
        )

    def make_home(self) -> None:
        """Makes the folder if there is none; only its owner may look into it.

        Raises:
            StoreError: It cannot be made.
        """
        try:
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"{self.home}: cannot be made: {error.strerror}",
                hint="set AVESA_HOME to a folder that you may write",
            ) from error

    @property
    def lake(self) -> Path:
        return self.home / "lake"

    @property
    def control(self) -> Path:
        return self.home / "control"

    @property
    def secrets(self) -> Path:
        return self.home / "secrets"

    @property
    def dagster_home(self) -> Path:
        return self.home / "dagster"

    @property
    def snapshot(self) -> Path:
        """The registry snapshot that definitions are built from."""
        return self.control / "registry.json"

    def holds(self, tenant: str) -> bool:
        """Whether the tenant is in this shard; stable between processes and machines."""
        if self.shard is None:
            return True
        part, parts = self.shard
        digest = hashlib.blake2b(tenant.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % parts == part - 1


def _nearest_home(here: Path) -> Path:
    for folder in (here, *here.parents):
        if (folder / ".avesa").is_dir():
            return folder / ".avesa"
    return Path.home() / ".avesa"


def _own_mappings() -> Path:
    beside = _PACKAGE.parent / "mappings"
    return beside if beside.is_dir() else Path(sys.prefix, "share", "avesa", "mappings")


def _shard(text: str | None) -> tuple[int, int] | None:
    if not text:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match and 1 <= int(match[1]) <= int(match[2]):
        return int(match[1]), int(match[2])
    raise ConfigurationError(f"AVESA_SHARD is {text!r}", hint="write part/parts, for example 2/8")
