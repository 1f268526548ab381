"""From a page's bytes to records: id and change time found, the payload left as it came.

The page is split with msgspec without building its values (facts/engines.md: 30k records/s and
core end to end against 7.5k for `json_normalize`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from avesa_dagster.catalog.models import ServiceTable
from avesa_dagster.errors import RetriableError
from avesa_dagster.sources.base import Record, Rejected, Span, Window


class InvalidPage(RetriableError):
    """A page that cannot be what was asked for. It may be well when it is asked for again."""


_SPACE = re.compile(r"[ \t\n\r]*")
_scanner = json.JSONDecoder()
_raws = msgspec.json.Decoder(list[Raw])


class RecordDecoder:
    """Splits pages of one table.

    Args:
        table: Names the paths of the record id and the change time, and what is never stored.
    """

    def __init__(self, table: ServiceTable) -> None:
        self._table = table
        self._kept_back = [json.dumps(name).encode() for name in table.never_stored]
        self._id = table.id.split(".")
        self._changed = table.change_field.split(".")
        row = _struct([(self._id, Raw), (self._changed, datetime | None)])
        self._rows = msgspec.json.Decoder(list[row])  # type: ignore[valid-type]
        self._row = msgspec.json.Decoder(row)

    def decode(self, body: bytes) -> tuple[list[Record], list[Rejected]]:
        """Splits a page.

        Args:
            body: A JSON array of objects.

        Returns:
            The records in the page's order, and those without a usable id or with a change time
            that is none. A record without any change time is a record (`updated_at` None).

        Raises:
            InvalidPage: The body is no JSON array of objects in UTF-8.
        """
        try:
            payloads = [bytes(payload) for payload in _raws.decode(body)]
        except (msgspec.DecodeError, RecursionError) as error:
            pieces = _split(body)
            if pieces is None:
                raise InvalidPage(f"the answer is no list of records: {error}") from None
            return self._one_by_one(pieces)
        _check_utf8(payloads)
        try:
            rows = self._rows.decode(body)
        except (msgspec.DecodeError, RecursionError):
            return self._one_by_one(payloads)
        records: list[Record] = []
        rejected: list[Rejected] = []
        for payload, row in zip(map(self._without_secrets, payloads), rows, strict=True):
            self._take(payload, row, records, rejected)
        return records, rejected

    def _one_by_one(self, payloads: list[bytes]) -> tuple[list[Record], list[Rejected]]:
        records: list[Record] = []
        rejected: list[Rejected] = []
        for payload in map(self._without_secrets, payloads):
            if not payload.startswith(b"{"):
                raise InvalidPage("the answer holds something that is no record")
            try:
                row = self._row.decode(payload)
            except msgspec.ValidationError as error:
                undated = self._undated(payload)
                if undated is not None:
                    records.append(undated)
                    continue
                rejected.append(Rejected(f"its {self._table.change_field}: {error}", payload))
                continue
            except (msgspec.DecodeError, RecursionError) as error:
                rejected.append(Rejected(f"its text cannot be read: {error}", payload))
                continue
            self._take(payload, row, records, rejected)
        return records, rejected

    def _undated(self, payload: bytes) -> Record | None:
        """The record, if its change time is an empty text: some services write null like that."""
        held = json.loads(payload)
        if _reached(held, self._changed) != "":
            return None
        record_id = _reached(held, self._id)
        return Record(record_id, None, payload) if isinstance(record_id, str) else None

    def _without_secrets(self, payload: bytes) -> bytes:
        """The record without the fields that are never stored; nothing of one that has such a
        field and cannot be read."""
        if not any(name in payload for name in self._kept_back):
            return payload
        try:
            record = json.loads(payload)
        except (ValueError, RecursionError):
            return b"null"
        if not isinstance(record, dict):
            return payload
        kept = {k: v for k, v in record.items() if k not in self._table.never_stored}
        return json.dumps(kept, ensure_ascii=False, separators=(",", ":")).encode()

    def _take(
        self, payload: bytes, row: Any, records: list[Record], rejected: list[Rejected]
    ) -> None:
        record_id = _id_text(_walk(row, self._id))
        if record_id is None:
            rejected.append(Rejected(f"it has no usable {self._table.id}", payload))
            return
        changed = _walk(row, self._changed)
        if isinstance(changed, datetime):
            if changed.tzinfo is not UTC:
                try:
                    changed = _in_utc(changed)
                except OverflowError:
                    reason = f"its change time {changed.isoformat()} is beyond the years 1 to 9999"
                    rejected.append(Rejected(reason, payload))
                    return
            records.append(Record(record_id, changed, payload))
        else:
            records.append(Record(record_id, None, payload))


def within(
    window: Window | None, records: list[Record], rejected: list[Rejected], *, undated: bool
) -> list[Record]:
    """The records of the window; others are rejected: a filter that is not obeyed is noticed.

    Args:
        undated: Whether one that states no change time is taken.
    """
    if window is None:
        return records
    kept = []
    for record in records:
        if record.updated_at is None and undated:
            kept.append(record)
        elif record.updated_at is None:
            rejected.append(Rejected("it states no change time", record.payload))
        elif record.updated_at not in window:
            reason = f"its change time {record.updated_at.isoformat()} is outside of {window}"
            rejected.append(Rejected(reason, record.payload))
        else:
            kept.append(record)
    return kept


def usable(
    records: Sequence[Record],
    rejected: list[Rejected],
    id_of: Callable[[str], str | None],
    reason: str,
) -> list[Record]:
    """The records whose id can be asked for; others are rejected: the cursor cannot go by them.

    Args:
        id_of: The id in full, or None if it is none.
        reason: Says so; `{}` stands for the id.
    """
    kept = []
    for record in records:
        record_id = id_of(record.record_id)
        if record_id is None:
            rejected.append(Rejected(reason.format(repr(record.record_id[:40])), record.payload))
        elif record_id == record.record_id:
            kept.append(record)
        else:
            kept.append(replace(record, record_id=record_id))
    return kept


def matching(pattern: re.Pattern[str]) -> Callable[[str], str | None]:
    """For `usable`: ids that the pattern matches whole, as they are."""
    return lambda record_id: record_id if pattern.fullmatch(record_id) else None


def ascending(ids: Sequence[str], span: Span, *, key: Callable[[str], Any]) -> None:
    """Each id after the one before, within the span; a repeated page or a dropped condition isn't.

    Args:
        key: Orders ids as the service does.

    Raises:
        InvalidPage: Names the two ids.
    """
    before = key(span.after) if span.after is not None else None
    for text in ids:
        here = key(text)
        if before is not None and here <= before:
            raise InvalidPage(f"the id {text} comes after {before}: the cursor does not advance")
        if span.upto is not None and here > key(span.upto):
            raise InvalidPage(f"the id {text} is beyond {span.upto}")
        if span.only is not None and here != key(span.only):
            raise InvalidPage(f"the id {text} was not asked for, but {span.only}")
        before = here


def parsed(body: bytes) -> object:
    """The body's JSON. Raises InvalidPage."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidPage("the answer is no JSON") from None


def _in_utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def _check_utf8(payloads: list[bytes]) -> None:
    """Raises InvalidPage; msgspec does not look into what it skips.

    By the record: a page with one wide character decodes ten times slower as a whole.
    """
    for number, payload in enumerate(payloads, start=1):
        if payload.isascii():
            continue
        try:
            payload.decode()
        except UnicodeDecodeError as error:
            raise InvalidPage(
                f"the answer is no UTF-8 at byte {error.start} of its record {number}"
            ) from None


def _split(body: bytes) -> list[bytes] | None:
    """The elements of a JSON array, by the standard library: it reads texts that hold half of a
    surrogate pair, which a service makes when it cuts an emoji. None: it is no such array."""
    pieces = []
    at = 1
    try:
        text = body.decode().strip(" \t\n\r")
        if not text.startswith("["):
            return None
        while True:
            start = _end_of_space(text, at)
            _, at = _scanner.raw_decode(text, start)
            pieces.append(text[start:at].encode())
            at = _end_of_space(text, at)
            if text[at] != ",":
                return pieces if text[at:] == "]" else None
            at += 1
    except (ValueError, IndexError, RecursionError):
        return None


def _end_of_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _struct(fields: list[tuple[list[str], Any]]) -> type[msgspec.Struct]:
    """A nested Struct type that reads just these paths; each part may be absent or null."""
    inner: dict[str, list[tuple[list[str], Any]]] = {}
    own: list[tuple[str, Any, Any]] = []
    for path, kind in fields:
        if len(path) == 1:
            own.append((path[0], kind | UnsetType, UNSET))
        else:
            inner.setdefault(path[0], []).append((path[1:], kind))
    for name, below in inner.items():
        own.append((name, _struct(below) | None | UnsetType, UNSET))
    return msgspec.defstruct("Row", own)


def _walk(row: Any, path: list[str]) -> Any:
    for part in path:
        if row is None or row is UNSET:
            return None
        row = getattr(row, part)
    return None if row is UNSET else row


def _reached(value: Any, path: Sequence[str]) -> Any:
    for part in path:
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _id_text(raw: Raw | None) -> str | None:
    """The id's text: a string's content or an integer's digits; None for anything else."""
    if raw is None:
        return None
    text = bytes(raw)
    if text.startswith(b'"'):
        return msgspec.json.decode(text, type=str) or None
    return text.decode() if text.lstrip(b"-").isdigit() else None
