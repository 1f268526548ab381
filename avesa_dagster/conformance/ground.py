"""Where a bench's installation lies: in its folder, or in AWS.

AVESA_CONFORMANCE_PROFILE=aws has every bench of the suite lie in the account, or the simulated one,
that boto3 finds: each in a bucket and in tables of its own, which are made and not removed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from avesa_dagster import aws
from avesa_dagster.control.dynamo_tables import TABLES, Table, create_arguments
from avesa_dagster.installation import Installation
from avesa_dagster.settings import Aws, Settings

PROFILE = "AVESA_CONFORMANCE_PROFILE"


def settings_at(home: Path, mappings: Path) -> Settings:
    """The same settings for the same folder, in any process."""
    if os.environ.get(PROFILE) != "aws":
        return Settings(home=home, mappings=mappings)
    name = hashlib.blake2b(str(home).encode(), digest_size=8).hexdigest()
    where = Aws(environment=f"t{name}", bucket=f"avesa-conformance-{name}")
    make(where)
    return Settings(home=home, mappings=mappings, aws=where)


def stored(installation: Installation) -> Iterator[bytes]:
    """Everything that an installation has written anywhere, but into its secrets."""
    settings = installation.settings
    for path in settings.home.rglob("*"):
        if path.is_file() and settings.secrets not in path.parents:
            yield path.read_bytes()
    if settings.aws is None:
        return
    where, tables, objects = settings.aws, aws.client("dynamodb"), aws.client("s3")
    for page in objects.get_paginator("list_objects_v2").paginate(Bucket=where.bucket):
        for item in page.get("Contents", ()):
            yield objects.get_object(Bucket=where.bucket, Key=item["Key"])["Body"].read()
    for name in tables.list_tables()["TableNames"]:
        if name.endswith(f"-{where.environment}"):
            for page in tables.get_paginator("scan").paginate(TableName=name):
                yield repr(page["Items"]).encode()


@cache
def make(where: Aws) -> None:
    """Makes its bucket and tables, unless they are there."""
    make_tables(where)
    make_bucket(where.bucket)


def make_tables(where: Aws, *tables: Table) -> None:
    """Makes those of the tables that are not there; all that there are, if none is named."""
    client = aws.client("dynamodb")
    for table in tables or TABLES:
        with suppress(client.exceptions.ResourceInUseException):  # another process made it
            client.create_table(**create_arguments(table, where.table(table.name)))


def make_bucket(name: str) -> None:
    """Makes a bucket that keeps versions, unless it is there."""
    client = aws.client("s3")
    place = {"LocationConstraint": client.meta.region_name}
    with suppress(client.exceptions.BucketAlreadyOwnedByYou):
        client.create_bucket(Bucket=name, CreateBucketConfiguration=place)
    client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
