"""The template's tables, written from `control.dynamo_tables`.

`python -m avesa_dagster_tests.deploy.tables` brings the template up to date after a change there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from avesa_dagster.control.dynamo_tables import TABLES, Table, create_arguments
from avesa_dagster_tests.deploy.template import TEMPLATE

_SECTION = re.compile(r"(?<=-- the tables\n).*?(?=\n  # -+ the network\n)", re.DOTALL)
_ARN = (
    "!Sub arn:${AWS::Partition}:dynamodb:${AWS::Region}:${AWS::AccountId}:table/NAME-${Environment}"
)
_TAGS = {"avesa:environment": "Environment", "avesa:bucket": "BucketName"}
"""Whose a table is, as `avesa bootstrap` says it."""
_ARNS = re.compile(r"(?:              - !Sub arn:\S+:table/\S+\n)+")


def brought_up_to_date(template: str) -> str:
    """The template with the tables of now, and the permissions for them."""
    arns = "".join(f"              - {arn}\n" for arn in _arns())
    section = "\n".join(_table(table) for table in TABLES)
    return _ARNS.sub(lambda _: arns, _SECTION.sub(lambda _: section, template))


def _arns() -> Iterator[str]:
    for table in TABLES:
        yield _ARN.replace("NAME", table.name)
        if table.indexes:
            yield _ARN.replace("NAME", table.name) + "/index/*"


def _table(table: Table) -> str:
    arguments = create_arguments(table, "")
    properties = {
        "TableName": f"!Sub {table.name}-${{Environment}}",
        "BillingMode": arguments["BillingMode"],
        "DeletionProtectionEnabled": arguments["DeletionProtectionEnabled"],
        "PointInTimeRecoverySpecification": {"PointInTimeRecoveryEnabled": table.recoverable},
    }
    lists = {name: arguments[name] for name in arguments if isinstance(arguments[name], list)}
    return "\n".join(
        [
            f"  {table.name}Table:",
            "    Type: AWS::DynamoDB::Table",
            "    Condition: MakesData",
            "    DeletionPolicy: Retain",
            "    UpdateReplacePolicy: Retain",
            "    Properties:",
            *(f"      {name}: {_flow(value)}" for name, value in properties.items()),
            "      Tags:",
            *(f"        - {{Key: {key}, Value: !Ref {value}}}" for key, value in _TAGS.items()),
            *(line for name in sorted(lists) for line in _listed(name, lists[name], 6)),
            "",
        ]
    )


def _listed(name: str, items: list[Any], indent: int) -> Iterator[str]:
    space = " " * indent
    yield f"{space}{name}:"
    for item in items:
        if "IndexName" not in item:
            yield f"{space}  - {_flow(item)}"
            continue
        yield f"{space}  - IndexName: {item['IndexName']}"
        yield from _listed("KeySchema", item["KeySchema"], indent + 4)
        yield f"{space}    Projection:"
        for key, value in item["Projection"].items():
            if isinstance(value, list):
                yield f"{space}      {key}:"
                yield from (f"{space}        - {_flow(one)}" for one in value)
            else:
                yield f"{space}      {key}: {_flow(value)}"


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_flow(said)}" for name, said in value.items()) + "}"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if "#" in str(value) else str(value)


if __name__ == "__main__":
    TEMPLATE.write_text(brought_up_to_date(TEMPLATE.read_text("utf-8")), "utf-8")
