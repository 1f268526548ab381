"""Which operations of AWS the package calls, read from its source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import botocore.session
from botocore import xform_name

import avesa_dagster

PACKAGE = Path(avesa_dagster.__file__).parent
SERVICES = ("cloudwatch", "dynamodb", "s3", "secretsmanager", "sns", "sts", "iam", "ecs", "logs")
_MANAGED = {
    "upload_file": "put_object",
    "upload_fileobj": "put_object",
    "download_file": "get_object",
    "download_fileobj": "get_object",
}
"""What boto3 adds to the clients of S3."""


@cache
def operations(service: str) -> frozenset[str]:
    """Names of the methods of a service's client."""
    model = botocore.session.get_session().get_service_model(service)
    own = frozenset(xform_name(name) for name in model.operation_names)
    return own | _MANAGED.keys() if service == "s3" else own


@cache
def called(package: Path = PACKAGE) -> dict[tuple[str, str], set[str]]:
    """(service, operation) and the modules that name it.

    A module speaks to the services whose clients it asks for. If it asks for none but imports boto3
    or `avesa_dagster.aws`, it may be given a client: of any service that the package speaks to.
    Operations count by attribute (`client.get_item`) and by text
    (`get_paginator("list_objects_v2")`, `getattr(client, "query")`).
    """
    trees = {path: list(ast.walk(ast.parse(text))) for path, text in _speaking(package)}
    spoken = {path: set(_spoken(nodes)) for path, nodes in trees.items()}
    anybody = set().union(*spoken.values())
    found: dict[tuple[str, str], set[str]] = {}
    for path, nodes in trees.items():
        services = spoken[path] or (anybody if any(map(_imports_aws, nodes)) else set())
        for call in _named(nodes, services):
            found.setdefault(call, set()).add(path.relative_to(package).as_posix())
    return found


def _speaking(package: Path) -> Iterator[tuple[Path, str]]:
    """The modules that may speak to AWS, and their source."""
    for path in sorted(package.rglob("*.py")):
        text = path.read_text("utf-8")
        if re.search(r"\b(aws|boto3|botocore)\b|\bclient\(|\bresource\(", text):
            yield path, text


def _spoken(nodes: list[ast.AST]) -> Iterator[str]:
    for node in nodes:
        yield from _clients(node)


def _imports_aws(node: ast.AST) -> bool:
    if isinstance(node, ast.ImportFrom):
        names = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    elif isinstance(node, ast.Import):
        names = {alias.name for alias in node.names}
    else:
        return False
    return bool(names & {"boto3", "botocore.exceptions", "avesa_dagster.aws"})


def _named(nodes: list[ast.AST], spoken: set[str]) -> Iterator[tuple[str, str]]:
    names = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    names |= {
        node.value
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    for service in spoken:
        for name in names & operations(service):
            yield service, _MANAGED.get(name, name)


def _clients(node: ast.AST) -> Iterator[str]:
    """The service in `client("s3")`, `aws.client("s3", region)`, `session.resource("s3")`."""
    if not isinstance(node, ast.Call):
        return
    function = node.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    named = [*node.args[:1], *(word.value for word in node.keywords if word.arg == "name")]
    if name in ("client", "resource"):
        for argument in named:
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield argument.value
