"""Evaluates IAM policies: as far as the stack uses them, and loudly where it does not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

Context = Mapping[str, str]
"""Values of the condition keys of a request."""


def allowed(
    documents: Iterable[dict[str, Any]], action: str, resource: str, context: Context | None = None
) -> bool:
    """Whether the policies allow a request: some statement allows it, and none denies it."""
    effects = {
        statement["Effect"]
        for document in documents
        for statement in document["Statement"]
        if _applies(statement, action, resource, context or {})
    }
    return effects == {"Allow"}


def _applies(statement: dict[str, Any], action: str, resource: str, context: Context) -> bool:
    known = {"Sid", "Effect", "Principal", "Action", "Resource", "Condition"}
    assert statement.keys() <= known, statement.keys() - known
    return (
        any(_like(pattern.lower(), action.lower()) for pattern in _list(statement["Action"]))
        and any(_like(pattern, resource) for pattern in _list(statement["Resource"]))
        and all(
            _holds(operator, key, _list(values), context)
            for operator, tests in statement.get("Condition", {}).items()
            for key, values in tests.items()
        )
    )


def _holds(operator: str, key: str, values: list[str], context: Context) -> bool:
    given = context.get(key)
    if given is None:
        return False
    if operator in ("StringEquals", "ArnEquals"):
        return given in values
    if operator == "StringLike":
        return any(_like(value, given) for value in values)
    assert operator == "Bool", operator
    return given.lower() in [value.lower() for value in values]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _like(pattern: str, text: str) -> bool:
    return _compiled(pattern).fullmatch(text) is not None


@lru_cache(maxsize=1000)
def _compiled(pattern: str) -> re.Pattern[str]:
    parts = (".*" if c == "*" else "." if c == "?" else re.escape(c) for c in pattern)
    return re.compile("".join(parts), re.DOTALL)
