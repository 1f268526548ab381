"""The DynamoDB tables of one installation: checked reads, and writes that take effect once.

A response may be lost although the write took effect; boto3 then sends the write again. Every item
has an attribute `revision`: ids of the newest writes, the latest first. A write is conditional on
the revision that it was made from, and when it is refused although its own id is among those of
the stored item, it has taken effect already. So nothing is counted twice, and nobody's change is
lost.

Items are plain dicts here: str, int, bool, bytes, lists of these, dicts with str keys. None means
that the attribute is not there. Moments are stored by `to_text`; there are no floats.
"""

from __future__ import annotations

import random
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from types import EllipsisType
from typing import Any, TypeVar

from botocore.exceptions import ClientError

from avesa_dagster import aws, settings
from avesa_dagster.control.dynamo_tables import Index, Table
from avesa_dagster.errors import ConfigurationError, RetriableError, StoreError, Where

_Result = TypeVar("_Result")

Item = dict[str, Any]
Key = tuple[str, ...]
"""Values of a table's key attributes, in the order of `Table.keys`."""

REVISION = "revision"
MOST_IN_A_TRANSACTION = 100
"""Items, by DynamoDB's own limit."""
_ANSWER_SECONDS = 5.0
"""A try waits so long: leases and beats must not be held up by a connection that died."""
_ATTEMPTS = 10
"""boto3's back-off for DynamoDB is a twentieth of that for others: these take some 25 s."""

_REMEMBERED = 16
_PATIENCE = 60.0
_CONFLICTS = {"TransactionConflictException", "TransactionInProgressException"}
_REFUSED = "ConditionalCheckFailed"
_TRANSIENT = {"TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded"}
_INTEGER = re.compile(r"-?[0-9]+")


def dynamo_client() -> Any:
    """The client of all calls."""
    return aws.client("dynamodb", attempts=_ATTEMPTS, seconds=_ANSWER_SECONDS)


def to_text(moment: datetime) -> str:
    """The moment as `2026-03-01T08:00:00.000000Z`: sorts as time does, exact to the microsecond.

    Raises:
        ConfigurationError: If `moment` has no time zone, or lies outside the years 0001 to 9999.
    """
    if moment.tzinfo is None or moment.utcoffset() is None:
        raise ConfigurationError(
            f"the time {moment.isoformat()} has no time zone", hint="pass an aware UTC datetime"
        )
    try:
        plain = moment.astimezone(UTC).replace(tzinfo=None)
    except OverflowError:
        raise ConfigurationError(
            f"the time {moment.isoformat()} lies outside the years 0001 to 9999 in UTC"
        ) from None
    return plain.isoformat(timespec="microseconds") + "Z"


def optional_text(moment: datetime | None) -> str | None:
    """`to_text`, or None for None."""
    return None if moment is None else to_text(moment)


@dataclass(frozen=True, slots=True)
class Row:
    """An item as it was read. What AVESA does not know in it is kept and ignored.

    Every reader raises a StoreError that names table, key and attribute if the attribute is not
    there and has no default, or is of another type.
    """

    table: str
    key: Key
    item: Mapping[str, Any]

    def text(self, name: str, default: str | EllipsisType = ...) -> str:
        found = self.item.get(name, default)
        if isinstance(found, str):
            return found
        raise self._wrong(name, "text")

    def number(self, name: str, default: int | EllipsisType = ...) -> int:
        found = self.item.get(name, default)
        if isinstance(found, int) and not isinstance(found, bool):
            return found
        raise self._wrong(name, "a whole number")

    def flag(self, name: str, default: bool | EllipsisType = ...) -> bool:
        found = self.item.get(name, default)
        if isinstance(found, bool):
            return found
        raise self._wrong(name, "true or false")

    def moment(self, name: str) -> datetime:
        text = self.text(name)
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise self._wrong(name, "a time") from None
        if moment.tzinfo is None:
            raise self._wrong(name, "a time with a time zone")
        return moment if moment.tzinfo is UTC else moment.astimezone(UTC)

    def texts(self, name: str, default: tuple[str, ...] | EllipsisType = ...) -> tuple[str, ...]:
        found = self.item.get(name, default)
        if isinstance(found, list | tuple) and all(isinstance(one, str) for one in found):
            return tuple(found)
        raise self._wrong(name, "a list of texts")

    def rows(self, name: str, default: tuple[()] | EllipsisType = ...) -> tuple[Row, ...]:
        """A list of maps, each to be read as the item is."""
        found = self.item.get(name, default)
        if isinstance(found, list | tuple) and all(isinstance(one, dict) for one in found):
            return tuple(
                Row(self.table, (*self.key, f"{name}[{place}]"), one)
                for place, one in enumerate(found)
            )
        raise self._wrong(name, "a list of maps")

    def row(self, name: str, default: Mapping[str, Any] | EllipsisType = ...) -> Row:
        """A map, to be read as the item is."""
        found = self.item.get(name, default)
        if isinstance(found, Mapping):
            return Row(self.table, (*self.key, name), found)
        raise self._wrong(name, "a map")

    def blob(self, name: str) -> bytes:
        found = self.item.get(name)
        if isinstance(found, bytes):
            return found
        raise self._wrong(name, "bytes")

    def maybe_text(self, name: str) -> str | None:
        return self.text(name) if self._has(name) else None

    def maybe_number(self, name: str) -> int | None:
        return self.number(name) if self._has(name) else None

    def maybe_moment(self, name: str) -> datetime | None:
        return self.moment(name) if self._has(name) else None

    def _has(self, name: str) -> bool:
        return bool(self.item.get(name, _NULL) != _NULL)

    def _wrong(self, name: str, expected: str) -> StoreError:
        found = "is not" if name in self.item else "is not there; it should be"
        return StoreError(
            f"table {self.table}, item {'/'.join(self.key)}: attribute {name} {found} {expected}",
            hint="AVESA writes it whole: look who else writes there, or restore the item",
        )


@dataclass(frozen=True, slots=True)
class Put:
    """A write of a transaction: the whole item, key included.

    Attributes:
        held: What it replaces; None: it must not be there yet.
        anyhow: Whatever is there is replaced; another write of the transaction decides.
    """

    table: Table
    item: Item
    held: Row | None = None
    anyhow: bool = False


@dataclass(frozen=True, slots=True)
class Delete:
    """A write of a transaction: removes an item that must still be as it was read."""

    table: Table
    held: Row


@dataclass(frozen=True, slots=True)
class Unchanged:
    """A condition of a transaction: the item must still be as it was read."""

    table: Table
    held: Row


Write = Put | Delete | Unchanged


class DynamoDatabase:
    """The tables of an installation. Makes no call before it is used; safe for many threads.

    Every method raises, besides what it says:
        ConfigurationError: A table is not there, credentials, region or permission are missing.
        RetriableError: AWS was busy or out of reach, or others kept changing the item.
        StoreError: AWS refuses the request, or an item is unreadable.
    """

    def __init__(self, where: settings.Aws) -> None:
        self._aws = where

    def name(self, table: Table) -> str:
        """The table's full name."""
        return self._aws.table(table.name)

    # Reads. All are consistent, except of a global index.

    def get(self, table: Table, key: Key, where: Where | None = None) -> Row | None:
        with self._explained("cannot read", table, where):
            answer = self._client.get_item(
                TableName=self.name(table), Key=_wire_key(table, key), ConsistentRead=True
            )
        return self._row(table, answer["Item"]) if "Item" in answer else None

    def get_many(
        self, table: Table, keys: Iterable[Key], where: Where | None = None
    ) -> dict[Key, Row]:
        """Those of the keys that are there."""
        name, waiting = self.name(table), [_wire_key(table, key) for key in dict.fromkeys(keys)]
        found: dict[Key, Row] = {}
        pause = Pause(f"cannot read {name}: DynamoDB answers in part only", where)
        while waiting:
            asked, waiting = waiting[:100], waiting[100:]
            request = {name: {"Keys": asked, "ConsistentRead": True}}
            with self._explained("cannot read", table, where):
                answer = self._client.batch_get_item(RequestItems=request)
            for item in answer["Responses"].get(name, ()):
                row = self._row(table, item)
                found[row.key] = row
            left = answer.get("UnprocessedKeys", {}).get(name, {}).get("Keys", [])
            waiting += left
            if len(left) == len(asked):
                pause.wait()
        return found

    def query(
        self,
        table: Table,
        partition: str,
        prefix: str = "",
        *,
        index: Index | None = None,
        backwards: bool = False,
        attributes: Sequence[str] = (),
        page: int | None = None,
        where: Where | None = None,
    ) -> Iterator[Row]:
        """Items of one partition whose sort key begins with `prefix`, in order of the sort key.

        Args:
            index: Ask this index in place of the table.
            backwards: The last first.
            attributes: Read only these and the keys; none: all.
            page: Items a call, for a caller that stops early.
        """
        asked = index or table
        names, values = {"#p": asked.partition}, {":p": {"S": partition}}
        condition = "#p = :p"
        if prefix:
            assert asked.sort is not None, f"{table.name} has no sort key"
            names["#s"], values[":s"] = asked.sort, {"S": prefix}
            condition += " AND begins_with(#s, :s)"
        arguments: dict[str, Any] = {
            "TableName": self.name(table),
            "KeyConditionExpression": condition,
            "ExpressionAttributeNames": names,
            "ExpressionAttributeValues": values,
            "ConsistentRead": index is None or index.local,
            "ScanIndexForward": not backwards,
        }
        if index is not None:
            arguments["IndexName"] = index.name
        if page is not None:
            arguments["Limit"] = page
        _project(arguments, table, attributes)
        yield from self._pages("query", table, arguments, where)

    def scan(
        self, table: Table, attributes: Sequence[str] = (), where: Where | None = None
    ) -> Iterator[Row]:
        """Every item of a table, in no order: for tables that are small, or for maintenance."""
        arguments: dict[str, Any] = {"TableName": self.name(table), "ConsistentRead": True}
        _project(arguments, table, attributes)
        yield from self._pages("scan", table, arguments, where)

    # Writes.

    def insert(self, table: Table, item: Item, where: Where | None = None) -> Row | None:
        """Puts an item that is not there yet. None: it is there now by this call; else what was
        there, and stays."""
        refused = self.transact([Put(table, item)], where)
        return None if refused is None else refused[0]

    def change(
        self,
        table: Table,
        key: Key,
        change: Callable[[Row | None], Mapping[str, Any] | None],
        where: Where | None = None,
    ) -> Row | None:
        """Changes one item, atomic between processes.

        Args:
            change: Given the item, or None if there is none, says which attributes to set (None
                removes one; others stay); None: leave it as it is. May be called several times and
                must do nothing else; an error that it raises leaves the item as it was.

        Returns:
            The item as it stands afterwards.
        """
        held = self.get(table, key, where)
        pause = Pause(f"{self.name(table)}, {'/'.join(key)}: others keep changing it", where)
        while True:
            changes = change(held)
            if changes is None:
                return held
            item = merged(table, key, held, changes)
            refused = self.transact([Put(table, item, held)], where)
            if refused is None:
                return Row(self.name(table), key, {n: v for n, v in item.items() if v is not None})
            pause.wait()
            held = refused[0]

    def transact(
        self, writes: Sequence[Write], where: Where | None = None
    ) -> list[Row | None] | None:
        """All of the writes, or none: at most 100, of different items.

        Returns:
            None if they are done. Else nothing was written, and for each write the item as it
            stands: None if there is none, or if DynamoDB did not say (its condition held).
        """
        if not writes:
            return None
        if len(writes) > MOST_IN_A_TRANSACTION:
            raise StoreError(
                f"{len(writes)} items cannot be written at once to {self.name(writes[0].table)}",
                where=where,
                hint=f"DynamoDB takes {MOST_IN_A_TRANSACTION}; nothing was written",
            )
        own = secrets.token_hex(6)
        requests = [self._request(write, own) for write in writes]
        pause = Pause(f"{self.name(writes[0].table)}: others keep changing the same items", where)
        while True:
            refused = self._try(writes, requests, where)
            if refused is None:
                return None
            if any(own in _revisions(row) for row in refused.rows):
                return None  # done by an earlier try, of which the answer was lost
            if refused.final:
                return refused.rows
            pause.wait()

    def settle(self, what: str, prepare: Callable[[], tuple[Sequence[Write], _Result]]) -> _Result:
        """Reads, decides and writes, again and again until nothing changed between.

        Args:
            what: What is being written, for an error.
            prepare: Reads, and says what to write (nothing: it is settled) and what to return.
                May be called several times; an error that it raises leaves all as it was.
        """
        pause = Pause(f"{what}: others keep changing the same items")
        while True:
            writes, result = prepare()
            if self.transact(writes) is None:
                return result
            pause.wait()

    def delete(self, table: Table, held: Row, where: Where | None = None) -> bool:
        """Removes an item if it is still as it was read, or gone. False: it changed meanwhile."""
        refused = self.transact([Delete(table, held)], where)
        return refused is None or refused[0] is None

    def remove(self, table: Table, keys: Iterable[Key], where: Where | None = None) -> int:
        """Removes items whatever they hold; returns how many keys were given."""
        name = self.name(table)
        requests = [
            {"DeleteRequest": {"Key": _wire_key(table, key)}} for key in dict.fromkeys(keys)
        ]
        count, waiting = len(requests), requests
        pause = Pause(f"cannot write {name}: DynamoDB takes a part only", where)
        while waiting:
            asked, waiting = waiting[:25], waiting[25:]
            with self._explained("cannot write", table, where):
                answer = self._client.batch_write_item(RequestItems={name: asked})
            left = answer.get("UnprocessedItems", {}).get(name, [])
            waiting += left
            if len(left) == len(asked):
                pause.wait()
        return count

    # How it is done.

    @property
    def _client(self) -> Any:
        return dynamo_client()

    @contextmanager
    def _explained(self, doing: str, table: Table, where: Where | None) -> Iterator[None]:
        try:
            with aws.explained(f"{doing} DynamoDB table {self.name(table)}", where):
                yield
        except UnicodeEncodeError as error:
            raise StoreError(
                f"a text for {self.name(table)} is not valid Unicode (a lone surrogate)",
                where=where,
                hint="nothing of this was written",
            ) from error

    def _row(self, table: Table, wire: Mapping[str, Any]) -> Row:
        item = {name: _plain(value) for name, value in wire.items()}
        return Row(self.name(table), tuple(str(item.get(name)) for name in table.keys), item)

    def _pages(
        self, operation: str, table: Table, arguments: dict[str, Any], where: Where | None
    ) -> Iterator[Row]:
        while True:
            with self._explained("cannot read", table, where):
                answer = getattr(self._client, operation)(**arguments)
            for item in answer["Items"]:
                yield self._row(table, item)
            if not answer.get("LastEvaluatedKey"):
                return
            arguments["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

    def _request(self, write: Write, own: str) -> tuple[str, dict[str, Any]]:
        request: dict[str, Any] = {"TableName": self.name(write.table)}
        if not (isinstance(write, Put) and write.anyhow):
            request |= _condition(write.table, write.held)
            request["ReturnValuesOnConditionCheckFailure"] = "ALL_OLD"
        if isinstance(write, Put):
            revision = " ".join([own, *_revisions(write.held)][:_REMEMBERED])
            request["Item"] = _wire_item({**write.item, REVISION: revision})
            return "Put", request
        request["Key"] = _wire_key(write.table, write.held.key)
        return ("Delete" if isinstance(write, Delete) else "ConditionCheck"), request

    def _try(
        self,
        writes: Sequence[Write],
        requests: Sequence[tuple[str, dict[str, Any]]],
        where: Where | None,
    ) -> _Refused | None:
        table = writes[0].table
        with self._explained("cannot write", table, where):
            try:
                self._send(requests)
            except ClientError as error:
                refused = self._refused(writes, error)
                if refused is None:
                    raise
                return refused
        return None

    def _send(self, requests: Sequence[tuple[str, dict[str, Any]]]) -> None:
        kind, request = requests[0]
        if len(requests) > 1 or kind == "ConditionCheck":
            items = [{kind: request} for kind, request in requests]
            self._client.transact_write_items(TransactItems=items)
        elif kind == "Put":  # half as dear as a transaction
            self._client.put_item(**request)
        else:
            self._client.delete_item(**request)

    def _refused(self, writes: Sequence[Write], error: ClientError) -> _Refused | None:
        """What a refusal says of the items; None: it is a failure of another kind."""
        code = aws.code_of(error)
        if code in _CONFLICTS:
            return _Refused([None] * len(writes), final=False)
        if code == "ConditionalCheckFailedException":
            return _Refused([self._told(writes[0], error.response.get("Item"))], final=True)
        if code != "TransactionCanceledException":
            return None
        reasons: list[dict[str, Any]] = error.response.get("CancellationReasons", [])
        codes = {reason.get("Code", "None") for reason in reasons}
        if len(reasons) != len(writes) or not codes <= {"None", _REFUSED, *_TRANSIENT}:
            return None
        rows = [
            self._told(write, reason.get("Item"))
            for write, reason in zip(writes, reasons, strict=True)
        ]
        return _Refused(rows, final=_REFUSED in codes)

    def _told(self, write: Write, wire: Mapping[str, Any] | None) -> Row | None:
        return self._row(write.table, wire) if wire else None


@dataclass(frozen=True, slots=True)
class _Refused:
    rows: list[Row | None]
    final: bool
    """A condition does not hold; else the same may be done in a moment."""


class Pause:
    """Waits longer each time, with chance in it; after a minute it raises a RetriableError.

    Args:
        what: What goes on for too long then.
    """

    def __init__(self, what: str, where: Where | None = None) -> None:
        self._what, self._where = what, where
        self._began = time.monotonic()
        self._longest = 0.005

    def wait(self) -> None:
        if time.monotonic() - self._began > _PATIENCE:
            raise RetriableError(self._what, where=self._where, hint="run it again")
        time.sleep(random.uniform(0, self._longest))
        self._longest = min(self._longest * 2, 0.5)


def merged(table: Table, key: Key, held: Row | None, changes: Mapping[str, Any]) -> Item:
    """The whole item: what is held, changed, under its key."""
    item = dict(held.item) if held is not None else {}
    return {**item, **changes, **dict(zip(table.keys, key, strict=True))}


def _revisions(row: Row | None) -> list[str]:
    found = None if row is None else row.item.get(REVISION)
    return found.split() if isinstance(found, str) else []


def _condition(table: Table, held: Row | None) -> dict[str, Any]:
    if held is None:
        return {
            "ConditionExpression": "attribute_not_exists(#k)",
            "ExpressionAttributeNames": {"#k": table.partition},
        }
    names = {"#k": table.partition, "#r": REVISION}
    if REVISION not in held.item:  # written by somebody else's script
        return {
            "ConditionExpression": "attribute_exists(#k) AND attribute_not_exists(#r)",
            "ExpressionAttributeNames": names,
        }
    return {
        "ConditionExpression": "#r = :r",
        "ExpressionAttributeNames": {"#r": REVISION},
        "ExpressionAttributeValues": {":r": _wire(held.item[REVISION])},
    }


def _project(arguments: dict[str, Any], table: Table, attributes: Sequence[str]) -> None:
    if not attributes:
        return
    names = arguments.setdefault("ExpressionAttributeNames", {})
    aliases = []
    for place, attribute in enumerate(dict.fromkeys((*table.keys, *attributes))):
        names[f"#a{place}"] = attribute
        aliases.append(f"#a{place}")
    arguments["ProjectionExpression"] = ", ".join(aliases)


def _wire_key(table: Table, key: Key) -> dict[str, Any]:
    return {name: {"S": value} for name, value in zip(table.keys, key, strict=True)}


def _wire_item(item: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _wire(value) for name, value in item.items() if value is not None}


def _wire(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"BOOL": value}
    if isinstance(value, str):
        return {"S": value}
    if isinstance(value, int):
        return {"N": str(value)}
    if isinstance(value, bytes):
        return {"B": value}
    if isinstance(value, _Foreign):
        return {value.kind: value.value}
    if isinstance(value, Mapping):
        return {"M": _wire_item(value)}
    if isinstance(value, list | tuple):
        return {"L": [_wire(one) for one in value]}
    raise TypeError(f"a {type(value).__name__} cannot be stored in DynamoDB")


def _plain(wire: Mapping[str, Any]) -> Any:
    ((kind, value),) = wire.items()
    if kind in ("S", "BOOL", "B"):
        return value
    if kind == "N" and _INTEGER.fullmatch(value):
        return int(value)
    if kind == "M":
        return {name: _plain(one) for name, one in value.items()}
    if kind == "L":
        return [_plain(one) for one in value]
    return _Foreign(kind, value)


@dataclass(frozen=True, slots=True)
class _Foreign:
    """A value of a type that AVESA does not write: kept as it came."""

    kind: str
    value: Any


_NULL = _Foreign("NULL", True)
