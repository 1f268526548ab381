"""The environment of an installation: AVESA_* variables, read once and checked.

| variable | meaning | default |
| --- | --- | --- |
| AVESA_HOME | the folder of the installation | the nearest `.avesa` upwards, else `~/.avesa` |
| AVESA_MAPPINGS | the folder of the mappings | beside the package, else the installed copy |
| AVESA_PROFILE | `embedded` or `aws` | `embedded` |
| AVESA_ENVIRONMENT | `dev`, `staging`, `prod`: ends the names of tables (aws) | `dev` |
| AVESA_BUCKET | the lake's bucket (aws) | none: it must be set |
| AVESA_SHARD | `2/8`: the second of eight parts of the tenants | all |
| AVESA_LOGS | `json`: logs are JSON, an object a line (`avesa_dagster.logs`) | `text` |
| AVESA_METRICS_DETAIL | `environment`, `service`, `table`: levels in CloudWatch (aws) | `service` |
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
class Aws:
    """Where an installation lies in AWS. Account and region are found as boto3 finds them.

    Attributes:
        environment: Ends the name of every table, as in `TenantServices-prod`.
        bucket: Holds the lake.
    """

    environment: str
    bucket: str

    def table(self, name: str) -> str:
        """The full name of a control table."""
        return f"{name}-{self.environment}"


@dataclass(frozen=True, slots=True)
class Settings:
    """Where an installation lies and which part of it this process sees.

    Attributes:
        aws: None: the embedded profile.
        shard: (part, parts), part from 1; None: every tenant.
    """

    home: Path
    mappings: Path
    shard: tuple[int, int] | None = None
    aws: Aws | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Reads the variables.

        Raises:
            ConfigurationError: A variable has a value that it cannot have.
        """
        environ = os.environ if environ is None else environ
        home = environ.get("AVESA_HOME")
        mappings = environ.get("AVESA_MAPPINGS")
        return cls(
            home=Path(home).expanduser().absolute() if home else _nearest_home(Path.cwd()),
            mappings=Path(mappings).expanduser().absolute() if mappings else _own_mappings(),
            shard=_shard(environ.get("AVESA_SHARD")),
            aws=_aws(environ),
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


def _aws(environ: Mapping[str, str]) -> Aws | None:
    profile = environ.get("AVESA_PROFILE") or "embedded"
    if profile == "embedded":
        return None
    if profile != "aws":
        raise ConfigurationError(f"AVESA_PROFILE is {profile!r}", hint="known: embedded, aws")
    environment = environ.get("AVESA_ENVIRONMENT") or "dev"
    if not re.fullmatch(r"[a-z][a-z0-9]{0,19}", environment):
        raise ConfigurationError(
            f"AVESA_ENVIRONMENT is {environment!r}",
            hint="a short name in small letters and digits: dev, staging, prod",
        )
    bucket = environ.get("AVESA_BUCKET") or ""
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket):
        raise ConfigurationError(
            f"AVESA_BUCKET is {bucket!r}" if bucket else "AVESA_BUCKET is not set",
            hint="the aws profile keeps its lake there: the name of a bucket",
        )
    return Aws(environment, bucket)


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
