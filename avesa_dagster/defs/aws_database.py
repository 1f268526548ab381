"""Makes the user that Dagster's processes are in their database, before the daemon starts.

RDS keeps the administrator's password and changes it every week, while a task keeps the one that it
began with. So the administrator only makes a user whose password the stack keeps, and each start
of the daemon gives it the password of that moment.

`python -m avesa_dagster.defs.aws_database` reads AVESA_DATABASE_HOST, _PORT, _PASSWORD, _ADMIN and
_ADMIN_PASSWORD; libpq takes PGSSLMODE itself.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import os
import sys
import time
from collections.abc import Mapping

import sqlalchemy
from sqlalchemy.exc import DBAPIError, OperationalError

from avesa_dagster.defs.aws_home import DATABASE, USER
from avesa_dagster.errors import AvesaError, ConfigurationError, RetriableError

_log = logging.getLogger(__name__)
_ROUNDS = 10
_WAIT = 5.0
_ITERATIONS = 4096

# Over one connection, so that two daemons at once do it one after the other.
_LOCK = "SELECT pg_advisory_xact_lock(4153415541)"
_THERE = "SELECT 1 FROM pg_roles WHERE rolname = :user"
_OWN = f'GRANT ALL ON DATABASE "{DATABASE}" TO "{USER}"'
_PUBLIC = f'GRANT ALL ON SCHEMA public TO "{USER}"'


def make_user(
    environ: Mapping[str, str], *, rounds: int = _ROUNDS, wait_seconds: float = _WAIT
) -> None:
    """Makes the user, or gives it its password; repeating it changes nothing.

    Args:
        environ: See the module.
        rounds: How often an unreachable database is tried.
        wait_seconds: Between the tries.

    Raises:
        ConfigurationError: A variable is missing, or the database refuses.
        RetriableError: The database cannot be reached.
    """
    url = _url(environ)
    verifier = scram(_variable(environ, "AVESA_DATABASE_PASSWORD"))
    for left in reversed(range(rounds)):
        failure = _attempt(url, verifier)
        if failure is None:
            return
        if not left or not isinstance(failure, RetriableError):
            raise failure
        _log.warning("%s", failure)
        time.sleep(wait_seconds)


def scram(password: str, salt: bytes | None = None) -> str:
    """What the database keeps of a password (RFC 5803), made here: a statement may be logged.

    Args:
        password: ASCII: others would have to be normalised first.
        salt: None: a random one.

    Raises:
        ConfigurationError: It is not ASCII.
    """
    if not password.isascii():
        raise ConfigurationError("the database's password is not ASCII", hint="give it another")
    salt = os.urandom(16) if salt is None else salt
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, _ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    told = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${_ITERATIONS}:{told[0]}${told[1]}:{told[2]}"


def _attempt(url: sqlalchemy.URL, verifier: str) -> AvesaError | None:
    """The error, if there is one. What the driver says is dropped: it quotes the statement."""
    engine = sqlalchemy.create_engine(url, connect_args={"connect_timeout": 10})
    try:
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text(_LOCK))
            known = connection.execute(sqlalchemy.text(_THERE), {"user": USER}).first()
            verb = "ALTER" if known else "CREATE"
            statement = f"{verb} ROLE \"{USER}\" LOGIN PASSWORD '{verifier}'"
            connection.exec_driver_sql(statement)
            connection.execute(sqlalchemy.text(_OWN))
            connection.execute(sqlalchemy.text(_PUBLIC))
    except OperationalError as error:
        state = getattr(error.orig, "pgcode", None)
    except DBAPIError as error:
        state = getattr(error.orig, "pgcode", None) or "unknown"
    else:
        return None
    finally:
        engine.dispose()
    if state is None:
        return RetriableError(
            f"the database at {url.host} cannot be reached, or refuses its administrator",
            hint="it may still be starting; check its security group and its secret",
        )
    return ConfigurationError(
        f"the database at {url.host} does not make the user {USER}: SQLSTATE {state}",
        hint="the administrator has to be allowed to make users",
    )


def _url(environ: Mapping[str, str]) -> sqlalchemy.URL:
    port = _variable(environ, "AVESA_DATABASE_PORT")
    if not port.isdecimal():
        raise ConfigurationError("AVESA_DATABASE_PORT is no number", hint="usually 5432")
    return sqlalchemy.URL.create(
        "postgresql+psycopg2",
        username=_variable(environ, "AVESA_DATABASE_ADMIN"),
        password=_variable(environ, "AVESA_DATABASE_ADMIN_PASSWORD"),
        host=_variable(environ, "AVESA_DATABASE_HOST"),
        port=int(port),
        database=DATABASE,
    )


def _variable(environ: Mapping[str, str], name: str) -> str:
    value = environ.get(name)
    if not value:
        raise ConfigurationError(f"{name} is not set", hint="the stack's daemon task sets it")
    return value


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        make_user(os.environ)
    except AvesaError as error:
        _log.error("%s", error)
        sys.exit(1)
