"""What an object is like: the fields that this user may read, by the service's own description."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote_plus

import msgspec

from avesa_dagster.catalog.models import ServiceTable
from avesa_dagster.errors import FatalError
from avesa_dagster.sources.http import Answer
from avesa_dagster.sources.records import InvalidPage

IS_DELETED = "IsDeleted"
_COMPOUND = frozenset({"address", "location", "base64", "complexvalue"})
"""Types that bulk jobs refuse. The parts of an address are fields of their own."""
LONGEST_SELECT = 12_000
"""Characters of an encoded query that a request's address takes; servers end at 16,000."""


class _Field(msgspec.Struct):
    name: str
    type: str
    filterable: bool = True


class _Object(msgspec.Struct):
    name: str
    fields: list[_Field]
    queryable: bool = True


_object = msgspec.json.Decoder(_Object)


@dataclass(frozen=True, slots=True)
class Described:
    """An object as the service describes it to this user.

    Attributes:
        types: Field -> type of all fields to ask for, in the service's order.
        deletable: Its records are kept for a while after their deletion, and are marked.
    """

    name: str
    types: dict[str, str]
    deletable: bool

    def keys(self, table: ServiceTable) -> tuple[str, ...]:
        """The fields that a list of ids has."""
        marked = (IS_DELETED,) if self.deletable else ()
        return tuple(dict.fromkeys((table.id, table.change_field, *marked)))

    def selections(self, table: ServiceTable) -> list[tuple[str, ...]]:
        """All fields, in as many selections as fit into an address; each has the keys."""
        keys = self.keys(table)
        selections: list[list[str]] = [[]]
        room = LONGEST_SELECT - len(quote_plus(",".join(keys)))
        left = room
        for name in self.types:
            needed = len(quote_plus(f"{name},"))
            if needed > left:
                selections.append([])
                left = room
            selections[-1].append(name)
            left -= needed
        if len(selections) == 1:
            return [tuple(selections[0])]
        return [tuple(dict.fromkeys((*keys, *names))) for names in selections]


class Objects:
    """The descriptions of one connection, asked for once; its threads share them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, Described] = {}

    def get(self, name: str, ask: Callable[[], Described]) -> Described:
        with self._lock:
            if name not in self._known:
                self._known[name] = ask()
            return self._known[name]

    def again(self, name: str, refused: Described, ask: Callable[[], Described]) -> Described:
        """After a field of `refused` was not there: another description."""
        with self._lock:
            if self._known.get(name) is refused:
                self._known[name] = ask()
            return self._known[name]


def described(table: ServiceTable, answer: Answer) -> Described:
    """The object in a description.

    Raises:
        InvalidPage: The answer is none.
        FatalError: The object cannot be copied, and why.
    """
    try:
        said = _object.decode(answer.body)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError):
        raise InvalidPage("the answer is no description of an object") from None
    if not said.queryable:
        raise FatalError(
            f"the object {said.name} is not queryable", hint="leave the table out when you connect"
        )
    types = {
        field.name: field.type
        for field in said.fields
        if field.type not in _COMPOUND and field.name not in table.never_stored
    }
    filterable = {field.name for field in said.fields if field.filterable}
    if table.id not in types:
        raise FatalError(
            f"this user may not read {table.id} of {said.name}", hint="correct the table's id"
        )
    if types.get(table.change_field) != "datetime" or table.change_field not in filterable:
        dated = [n for n, t in types.items() if t == "datetime" and n in filterable]
        raise FatalError(
            f"{said.name} has no time {table.change_field} that a query can filter by",
            hint=f"set the table's change_field to one of: {', '.join(dated) or '(there is none)'}",
        )
    return Described(said.name, types, IS_DELETED in types)
