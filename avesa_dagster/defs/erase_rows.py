"""Rows of Dagster's tables, the same in SQLite and in Postgres: finding and removing a tenant."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

import sqlalchemy as db
from dagster._core.storage.event_log.schema import AssetEventTagsTable, SqlEventLogStorageTable
from dagster._core.storage.runs.schema import RunsTable, RunTagsTable, SnapshotsTable
from sqlalchemy.engine import Connection

from avesa_dagster.defs import tags
from avesa_dagster.defs.traces import Traces, owners

BY_ASSET = ("event_logs", "asset_keys", "asset_event_tags", "asset_check_executions")
_ROWS_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Text:
    """A column that may name tenants in rows that concern several."""

    table: str
    column: str

    @property
    def rows(self) -> db.TableClause:
        return db.table(self.table, db.column("id"), db.column(self.column))


class Database(Protocol):
    """Where tables lie; each block is one transaction, and raises AvesaError for what fails."""

    @property
    def name(self) -> str:
        """For people."""
        ...

    def writing(self) -> AbstractContextManager[Connection]:
        """One atomic transaction."""
        ...

    def reading(self) -> AbstractContextManager[Connection]:
        """One consistent view."""
        ...

    def compact(self) -> None:
        """As far as possible, what was deleted is in no free page either."""
        ...


class Events(Protocol):
    """Where the events of runs lie."""

    @property
    def databases(self) -> Sequence[Database]:
        """All but those of single runs; first the index by asset."""
        ...

    def remove(self, run_ids: Collection[str]) -> None:
        """All events of runs."""
        ...

    def remove_by_asset(self, traces: Traces) -> int:
        """What there is of the tenant's assets; returns how many assets there were."""
        ...

    def clean(self, run_id: str, traces: Traces, stand_in: str) -> None:
        """Removes the tenant's events from a run of several; in others its name is replaced."""
        ...

    def holding(self, traces: Traces) -> set[str]:
        """Runs of which there are events: at least those that name the tenant."""
        ...

    def names(self, run_id: str, traces: Traces) -> bool:
        """Whether an event of such a run names the tenant."""
        ...

    def forget(self, run_id: str, traces: Traces, stand_in: str) -> None:
        """Removes what is left of a run that Dagster knows no more and that names the tenant."""
        ...

    def left(self, known: Collection[str]) -> Sequence[Database]:
        """Databases of single runs that Dagster knows no more."""
        ...


class Logs(Protocol):
    """Where what runs and daemons wrote in words lies."""

    def remove(self, run_id: str) -> None:
        """All that a run wrote."""
        ...

    def holding(self) -> set[str]:
        """Runs of which there is something."""
        ...

    def names(self, run_id: str, traces: Traces) -> bool:
        """Whether such a run's output names the tenant."""
        ...

    def clean(self, traces: Traces, run_ids: Collection[str]) -> int:
        """Removes the lines about the tenant, or runs of it, from what no run wrote.

        Returns:
            How many files were changed.
        """
        ...

    def named(self, traces: Traces) -> list[str]:
        """Where, in what no run wrote, the tenant is named; in words."""
        ...


@dataclass(frozen=True, slots=True)
class Run:
    """A run that concerns a tenant.

    Attributes:
        own: Of this tenant alone.
    """

    run_id: str
    status: str
    age: timedelta
    own: bool


def runs_of(database: Database, traces: Traces) -> list[Run]:
    """Runs that concern the tenant, by their assets or, if they have none, by their tag."""
    with database.reading() as connection:
        runs, body = RunsTable.c, RunsTable.c.run_body
        tagged = db.exists().where(
            RunTagsTable.c.run_id == runs.run_id,
            RunTagsTable.c.key == tags.TENANT,
            RunTagsTable.c.value == traces.tenant,
        )
        asked = (
            db.select(runs.run_id, runs.status, body, _age(connection, runs.create_timestamp))
            .add_columns(tagged)
            .where(tagged | _any_in(connection, body, (traces.asset_prefix, traces.configured)))
            .order_by(runs.id)
        )
        found = connection.execute(asked).all()
    return [
        Run(
            run_id,
            status,
            timedelta(seconds=age),
            own=owners(body) == {traces.tenant} or (bool(tag) and not owners(body)),
        )
        for run_id, status, body, age, tag in found
    ]


def known_runs(database: Database) -> set[str]:
    """Ids of all runs."""
    with database.reading() as connection:
        return set(connection.execute(db.select(RunsTable.c.run_id)).scalars())


def remove_runs(database: Database, run_ids: Collection[str]) -> None:
    """The rows of runs, and their tags."""
    with database.writing() as connection:
        for table in (RunTagsTable, RunsTable):
            connection.execute(db.delete(table).where(table.c.run_id.in_(run_ids)))


def remove_events(connection: Connection, run_ids: Collection[str]) -> None:
    """The rows of runs' events, and what stands with them."""
    events = SqlEventLogStorageTable
    of_runs = db.select(events.c.id).where(events.c.run_id.in_(run_ids))
    tagged = AssetEventTagsTable.c.event_id.in_(of_runs)
    connection.execute(db.delete(AssetEventTagsTable).where(tagged))
    connection.execute(db.delete(events).where(events.c.run_id.in_(run_ids)))


def remove_by_asset(connection: Connection, table: str, traces: Traces) -> int:
    """Removes the rows of the tenant's assets; returns how many."""
    rows = Text(table, "asset_key").rows
    return connection.execute(db.delete(rows).where(_of_asset(rows.c.asset_key, traces))).rowcount


def naming(connection: Connection, text: Text, traces: Traces) -> Iterator[tuple[int, str]]:
    """Number and text of the rows that name the tenant, as they come from the database."""
    rows = text.rows
    column = rows.c[text.column]
    asked = db.select(rows.c.id, column).where(_any_in(connection, column, traces.words))
    for number, value in connection.execute(asked, execution_options=_STREAMED):
        if traces.found(value):
            yield number, value


def replace_names(database: Database, texts: Sequence[Text], traces: Traces, stand_in: str) -> int:
    """Replaces the tenant's name; a row that somebody changed meanwhile is left to the next look.

    Returns how many rows were changed.
    """
    changed = 0
    for text in texts:
        with database.reading() as connection:
            found = list(naming(connection, text, traces))
        rows = text.rows
        column = rows.c[text.column]
        with database.writing() as connection:
            for number, value in found:
                changed += connection.execute(
                    db.update(rows)
                    .where(rows.c.id == number, column == value)
                    .values({text.column: traces.replaced(value, stand_in)})
                ).rowcount
    return changed


def replace_tags(database: Database, traces: Traces, stand_in: str) -> None:
    """The tags whose value is the bare name."""
    with database.writing() as connection:
        for table in map(_tags, _TAGS):
            connection.execute(
                db.update(table).where(*_bare(table, traces)).values({"value": stand_in})
            )


def remove_backfills(database: Database, traces: Traces) -> int:
    """Removes the backfills of this tenant alone; returns how many."""
    actions = db.table("bulk_actions", db.column("key"), db.column("body"))
    of_them = db.table("backfill_tags", db.column("backfill_id"))
    with database.writing() as connection:
        rows = connection.execute(
            db.select(actions.c.key, actions.c.body).where(
                _any_in(connection, actions.c.body, (traces.asset_prefix,))
            )
        ).all()
        own = [key for key, body in rows if owners(body) == {traces.tenant}]
        for key in own:
            connection.execute(db.delete(of_them).where(of_them.c.backfill_id == key))
            connection.execute(db.delete(actions).where(actions.c.key == key))
    return len(own)


def clean_events(connection: Connection, traces: Traces, stand_in: str, run_id: str = "") -> None:
    """Removes the events of the tenant's steps and assets; in others its name is replaced.

    Args:
        run_id: Of this run only; empty: all events of the file.
    """
    events = SqlEventLogStorageTable
    columns = (events.c.id, events.c.event, events.c.step_key, events.c.asset_key)
    named = db.or_(*(_any_in(connection, column, traces.words) for column in columns[1:]))
    asked = db.select(*columns).where(named)
    if run_id:
        asked = asked.where(events.c.run_id == run_id)
    for number, event, step, asset in connection.execute(asked).all():
        own = traces.found(step or "") or (asset or "").startswith(traces.asset_prefix)
        if own:
            connection.execute(db.delete(events).where(events.c.id == number))
        elif traces.found(event):
            connection.execute(
                db.update(events)
                .where(events.c.id == number)
                .values(event=traces.replaced(event, stand_in))
            )


def snapshots_naming(database: Database, traces: Traces) -> Iterator[tuple[int, str, str]]:
    """Number, id and text of the snapshots that name the tenant."""
    table = SnapshotsTable.c
    asked = db.select(table.id, table.snapshot_id, table.snapshot_body)
    with database.reading() as connection:
        for number, name, body in connection.execute(asked, execution_options=_STREAMED):
            text = zlib.decompress(body).decode()
            if traces.found(text):
                yield number, name, text


def clean_snapshots(database: Database, traces: Traces, stand_in: str) -> int:
    """Removes the snapshots that name the tenant; one that a run needs is changed.

    Returns how many were removed.
    """
    removed = 0
    for number, name, text in list(snapshots_naming(database, traces)):
        with database.writing() as connection:
            this = SnapshotsTable.c.id == number
            # Postgres: whoever just adds a run that needs it is waited for, or waits.
            connection.execute(db.select(SnapshotsTable.c.id).where(this).with_for_update()).all()
            if _needed(connection, name):
                body = zlib.compress(traces.replaced(text, stand_in).encode())
                connection.execute(db.update(SnapshotsTable).where(this).values(snapshot_body=body))
            else:
                connection.execute(db.delete(SnapshotsTable).where(this))
                removed += 1
    return removed


def rows_naming(database: Database, metadata: db.MetaData, traces: Traces) -> dict[str, int]:
    """Table to rows that name the tenant in any column of text, as far as the tables are there."""
    counts: dict[str, int] = {}
    with database.reading() as connection:
        there = db.inspect(connection)
        names = set(there.get_table_names())
        for table in metadata.tables.values():
            if table.name not in names:
                continue
            found = {
                number
                for held in there.get_columns(table.name)
                if isinstance(held["type"], db.String)
                for number, _ in naming(connection, Text(table.name, held["name"]), traces)
            }
            if table.name in _TAGS:
                tagged = _tags(table.name)
                found |= set(
                    connection.execute(
                        db.select(tagged.c.id).where(*_bare(tagged, traces))
                    ).scalars()
                )
            if found:
                counts[table.name] = len(found)
    return counts


_TAGS = ("run_tags", "backfill_tags")
_STREAMED = {"yield_per": _ROWS_AT_ONCE}
"""A tenant may be called `sync`: then its name stands in every row."""


def _tags(table: str) -> db.TableClause:
    return db.table(table, db.column("id"), db.column("key"), db.column("value"))


def _bare(table: db.TableClause, traces: Traces) -> tuple[db.ColumnElement[bool], ...]:
    return table.c.key == tags.TENANT, table.c.value == traces.tenant


def _needed(connection: Connection, snapshot: str) -> bool:
    """Whether a run refers to a snapshot."""
    asked = db.select(RunsTable.c.id).where(
        (RunsTable.c.snapshot_id == snapshot)
        | _any_in(connection, RunsTable.c.run_body, (snapshot,))
    )
    return connection.execute(asked.limit(1)).first() is not None


def _of_asset(column: db.ColumnElement[str], traces: Traces) -> db.ColumnElement[bool]:
    prefix = traces.asset_prefix
    return db.func.substr(column, 1, len(prefix)) == prefix


def _any_in(
    connection: Connection, column: db.ColumnElement[str], texts: Iterable[str]
) -> db.ColumnElement[bool]:
    """Whether a column has one of the texts in it, letter by letter."""
    at = db.func.strpos if connection.dialect.name == "postgresql" else db.func.instr
    return db.or_(*(at(column, text) > 0 for text in texts))


def _age(connection: Connection, column: db.ColumnElement[datetime]) -> db.ColumnElement[Any]:
    """Seconds since a time, by the database's own clock."""
    if connection.dialect.name == "postgresql":
        return db.cast(db.extract("epoch", db.func.now() - column), db.Float)
    now, then = db.func.strftime("%s"), db.func.strftime("%s", column)
    return db.cast(now, db.Integer) - db.cast(then, db.Integer)
