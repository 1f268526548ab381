"""Debian's Postgres as a server of its own, for as long as somebody needs it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import sqlalchemy

from avesa_dagster.defs.aws_database import make_user
from avesa_dagster.defs.aws_home import DATABASE

ADMIN = "avesa_admin"
_ADMIN_PASSWORD = "admin password"
_BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))


class Postgres:
    """A context manager: a server with an administrator that may make users and is no superuser,
    as in RDS, and Dagster's database without its user.

    Raises:
        FileNotFoundError: Debian's package postgresql is not installed.
    """

    def __init__(self) -> None:
        if not self.installed():
            raise FileNotFoundError("no initdb: install Debian's package postgresql")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]

    @staticmethod
    def installed() -> bool:
        return bool(_BINARIES)

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which the aws profile finds it."""
        return {
            "AVESA_DATABASE_HOST": "127.0.0.1",
            "AVESA_DATABASE_PORT": str(self.port),
            "AVESA_DATABASE_ADMIN": ADMIN,
            "AVESA_DATABASE_ADMIN_PASSWORD": _ADMIN_PASSWORD,
            "AVESA_DATABASE_PASSWORD": "first",
        }

    def __enter__(self) -> Self:
        programs = _BINARIES[-1].parent
        # Postgres refuses to be root, and its user cannot look into root's folders.
        self._user = "postgres" if os.getuid() == 0 else None
        self._folder = Path(tempfile.mkdtemp(prefix="avesa-postgres-", dir="/tmp"))
        if self._user:
            shutil.chown(self._folder, self._user)
        password = self._folder / "password"
        password.write_text("root password")
        if self._user:
            shutil.chown(password, self._user)
        data = f"{self._folder}/data"
        self._run(str(programs / "initdb"), "-D", data, "-A", "scram-sha-256", "-U", "root",
                  "--no-sync", f"--pwfile={password}")  # fmt: skip
        options = f"-p {self.port} -k {self._folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._control = (str(programs / "pg_ctl"), "-D", data, "-w", "-o", options)
        self._run(*self._control, "-l", f"{self._folder}/log", "start")
        create = f"CREATE ROLE {ADMIN} LOGIN CREATEROLE CREATEDB PASSWORD '{_ADMIN_PASSWORD}'"
        said(self.port, "root", "root password", "postgres", create)
        self.renew(self.environment)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._run(*self._control, "-m", "immediate", "stop")
        shutil.rmtree(self._folder)

    @staticmethod
    def renew(environ: Mapping[str, str]) -> None:
        """Dagster's database anew, empty, with its user."""
        port = environ["AVESA_DATABASE_PORT"]
        for text in (
            f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)",
            f"CREATE DATABASE {DATABASE} OWNER {ADMIN}",
        ):
            said(port, "root", "root password", "postgres", text)
        make_user(environ)

    def _run(self, *command: str) -> None:
        subprocess.run(
            command, user=self._user, check=True, cwd=self._folder, stdout=subprocess.DEVNULL
        )


def said(port: int | str, user: str, password: str, database: str, *statements: str) -> None:
    """Executes statements, each by itself."""
    url = sqlalchemy.URL.create(
        "postgresql+psycopg2", user, password, "127.0.0.1", int(port), database
    )
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)
    finally:
        engine.dispose()
