"""What is stored whole in one attribute of an item: JSON, compressed.

An item holds at most 400 KB, and a write is paid by its size; our JSON becomes a tenth or less.
"""

from __future__ import annotations

import zlib
from typing import Any, TypeVar

import msgspec

from avesa_dagster.control.dynamo_database import Row
from avesa_dagster.errors import StoreError

DOCUMENT = "document"
LARGEST = 380_000
"""Bytes of a document; leaves room for the attributes beside it."""

_Content = TypeVar("_Content")


def packed(what: str, content: Any) -> bytes:
    """The value of an attribute `document`.

    Args:
        what: Names the content, for an error.

    Raises:
        StoreError: A text is not valid Unicode, or the whole is too large for an item.
    """
    try:
        document = zlib.compress(msgspec.json.encode(content), 6)
    except UnicodeEncodeError as error:
        raise StoreError(
            f"a text of {what} is not valid Unicode (a lone surrogate)",
            hint="nothing of this was written",
        ) from error
    if len(document) > LARGEST:
        raise StoreError(
            f"{what} has {len(document):,} bytes, an item of DynamoDB takes {LARGEST:,}",
            hint="nothing of this was written; ask for less at once",
        )
    return document


def unpacked(decoder: msgspec.json.Decoder[_Content], row: Row) -> _Content:
    """What `packed` made into the row's document.

    Raises:
        StoreError: It is not there, or is none; names table, key and attribute.
    """
    document = row.blob(DOCUMENT)
    try:
        return decoder.decode(zlib.decompress(document))
    except (zlib.error, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StoreError(
            f"table {row.table}, item {'/'.join(row.key)}: attribute {DOCUMENT}"
            f" cannot be read: {error}",
            hint="AVESA writes it whole: look who else writes there, or restore the item",
        ) from error
