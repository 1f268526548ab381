"""The database's user, on a real Postgres (Debian's), as the daemon's first container makes it."""

from __future__ import annotations

import base64
import socket
from collections.abc import Iterator

import pytest
import sqlalchemy

from avesa_dagster.defs.aws_database import make_user, scram
from avesa_dagster.defs.aws_home import DATABASE, USER
from avesa_dagster.errors import ConfigurationError, RetriableError
from avesa_dagster_tests.postgres import Postgres, said


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    if not Postgres.installed():
        pytest.skip("needs Debian's postgresql")
    with Postgres() as running:
        yield running.environment


def test_the_user_can_make_dagsters_tables(server: dict[str, str]) -> None:
    make_user(server)
    port = server["AVESA_DATABASE_PORT"]
    made = ("CREATE TABLE runs (id int)", "INSERT INTO runs VALUES (1)")
    said(port, USER, "first", DATABASE, *made)


def test_a_new_password_replaces_the_old_one_and_keeps_what_is_there(
    server: dict[str, str],
) -> None:
    make_user(server)
    port = server["AVESA_DATABASE_PORT"]
    said(port, USER, "first", DATABASE, "CREATE TABLE kept (id int)")
    make_user(server | {"AVESA_DATABASE_PASSWORD": "second %s 'quoted'"})
    said(port, USER, "second %s 'quoted'", DATABASE, "INSERT INTO kept VALUES (1)")
    with pytest.raises(sqlalchemy.exc.OperationalError):
        said(port, USER, "first", DATABASE, "SELECT 1")


def test_whoever_may_not_make_users_is_told_so_without_a_password(server: dict[str, str]) -> None:
    port = server["AVESA_DATABASE_PORT"]
    said(port, "root", "root password", "postgres", "CREATE ROLE poor LOGIN PASSWORD 'poor one'")
    poor = {"AVESA_DATABASE_ADMIN": "poor", "AVESA_DATABASE_ADMIN_PASSWORD": "poor one"}
    with pytest.raises(ConfigurationError) as caught:
        make_user(server | poor)
    told = str(caught.value) + repr(caught.value) + str(caught.value.__context__)
    assert "42501" in told and "first" not in told and "poor one" not in told


def test_a_database_that_does_not_answer_is_tried_again(server: dict[str, str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = {"AVESA_DATABASE_PORT": str(free.getsockname()[1])}
        with pytest.raises(RetriableError) as caught:
            make_user(server | nobody, rounds=2, wait_seconds=0.01)
    assert "admin password" not in repr(caught.value)


@pytest.mark.parametrize("missing", ["AVESA_DATABASE_PASSWORD", "AVESA_DATABASE_ADMIN"])
def test_a_missing_variable_is_named(missing: str) -> None:
    given = {
        "AVESA_DATABASE_HOST": "h",
        "AVESA_DATABASE_PORT": "5432",
        "AVESA_DATABASE_ADMIN": "a",
        "AVESA_DATABASE_ADMIN_PASSWORD": "p",
        "AVESA_DATABASE_PASSWORD": "q",
    }
    del given[missing]
    with pytest.raises(ConfigurationError, match=missing):
        make_user(given)


def test_the_verifier_is_that_of_the_rfc() -> None:
    """Of RFC 7677's example: its salt and password, and the proofs that follow from them."""
    salt = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
    assert scram("pencil", salt) == (
        "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$"
        "WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
    )
    with pytest.raises(ConfigurationError):
        scram("straße")
