"""Reads and checks `mappings/`; a mistake names file, path and the allowed values."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from avesa_dagster.catalog.models import (
    BackfillConfig,
    CanonicalTable,
    Catalog,
    Service,
    source_paths,
)
from avesa_dagster.errors import ConfigurationError

M = TypeVar("M", bound=BaseModel)


def load_catalog(mappings: Path) -> Catalog:
    """Reads every mappings file.

    Args:
        mappings: The folder with `services/`, `canonical/` and `backfill_config.json`.

    Raises:
        ConfigurationError: A file is missing, is no JSON, or says something unknown; the text
            lists every mistake of the file with its path in it.
    """
    services = {
        path.stem: _named(path, Service, "service")
        for path in sorted((mappings / "services").glob("*.json"))
    }
    canonical = {
        path.stem: _named(path, CanonicalTable, "table")
        for path in sorted((mappings / "canonical").glob("*.json"))
    }
    if not services:
        raise ConfigurationError(
            f"{mappings / 'services'} holds no service file",
            hint="set AVESA_MAPPINGS to the folder that holds services/ and canonical/",
        )
    catalog = Catalog(
        services=services,
        canonical=canonical,
        backfill=_read(mappings / "backfill_config.json", BackfillConfig),
    )
    _cross_check(mappings, catalog)
    return catalog


def _named(path: Path, model: type[M], key: str) -> M:
    read = _read(path, model)
    if getattr(read, key) != path.stem:
        raise ConfigurationError(
            f"{path}: {key} is {getattr(read, key)!r}, but the file is named {path.name}",
            hint=f"rename the file or set {key} to {path.stem!r}",
        )
    return read


def _read(path: Path, model: type[M]) -> M:
    try:
        document = json.loads(path.read_text("utf-8"), object_pairs_hook=_once)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigurationError(f"{path}: is no JSON: {error}") from error
    if isinstance(document, dict):
        document.pop("$schema", None)
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise ConfigurationError(_explain(path, document, model, error)) from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; JSON would take the last of two equal keys without a word."""
    document = dict(pairs)
    if len(document) < len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"an object has a key twice: {', '.join(twice)}")
    return document


def _explain(path: Path, document: object, model: type[BaseModel], error: ValidationError) -> str:
    lines = []
    for item in error.errors(include_url=False):
        place = ".".join(str(part) for part in item["loc"]) or "(top)"
        text = item["msg"]
        if item["type"] == "extra_forbidden":
            text = f"unknown key; allowed here: {', '.join(_allowed(model, item['loc']))}"
        elif item["type"] != "missing":
            text += f", not {item['input']!r:.80}"
        lines.append(f"{path}: {place}: {text}")
    return "\n".join(lines)


def _allowed(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Keys that the JSON Schema allows in the object that holds `loc`'s last part."""
    schema = model.model_json_schema()
    here: dict[str, Any] = schema
    for part in loc[:-1]:
        if "properties" in here and part in here["properties"]:
            here = here["properties"][part]
        elif isinstance(here.get("additionalProperties"), dict):
            here = here["additionalProperties"]
        elif "anyOf" in here:
            name = str(part)
            here = next((o for o in here["anyOf"] if o.get("$ref", "").endswith(name)), {})
        if "$ref" in here:
            here = schema["$defs"][here["$ref"].rsplit("/", 1)[1]]
    return sorted(here.get("properties", {}))


def _cross_check(mappings: Path, catalog: Catalog) -> None:
    """What no single file can know: that names in one file exist in the other."""
    for name, service in catalog.services.items():
        path = mappings / "services" / f"{name}.json"
        if name not in catalog.backfill.services:
            raise ConfigurationError(
                f"{mappings / 'backfill_config.json'}: services has no {name!r}",
                hint=f"{path.name} describes that service; give it its backfill settings",
            )
        for table_name, table in service.tables.items():
            if table.canonical is None:
                continue
            place = f"{path}: tables.{table_name}.canonical"
            canonical = catalog.canonical.get(table.canonical)
            if canonical is None:
                raise ConfigurationError(
                    f"{place}: there is no canonical table {table.canonical!r}; "
                    f"known: {', '.join(catalog.canonical)}"
                )
            if table.endpoint not in canonical.sources.get(name, {}):
                raise ConfigurationError(
                    f"{place}: canonical/{table.canonical}.json has no "
                    f"sources.{name}.{table.endpoint}",
                    hint="map the endpoint's fields there, or leave out canonical",
                )
    for name, canonical in catalog.canonical.items():
        path = mappings / "canonical" / f"{name}.json"
        for service_name, endpoints in canonical.sources.items():
            service_ = catalog.services.get(service_name)
            if service_ is None:
                raise ConfigurationError(
                    f"{path}: sources.{service_name}: unknown service; "
                    f"known: {', '.join(catalog.services)}"
                )
            for endpoint, mapping in endpoints.items():
                table_name_ = service_.table_of(endpoint)
                if table_name_ is None:
                    known = ", ".join(t.endpoint for t in service_.tables.values())
                    raise ConfigurationError(
                        f"{path}: sources.{service_name}.{endpoint}: unknown endpoint; "
                        f"known: {known}"
                    )
                fields = service_.tables[table_name_].record_fields
                for field, source in mapping.items():
                    for record_path in source_paths(source):
                        top = record_path.split(".", 1)[0]
                        if fields and top not in fields:
                            near = difflib.get_close_matches(top, fields, n=3) or ["none near"]
                            raise ConfigurationError(
                                f"{path}: sources.{service_name}.{endpoint}.{field}: unknown path "
                                f"{record_path!r}: records have no field {top!r}; near: "
                                f"{', '.join(near)}",
                                hint=f"a field of your own goes into services/{service_name}.json, "
                                f"tables.{table_name_}.record_fields",
                            )
    for service_name in catalog.backfill.services:
        if service_name not in catalog.services:
            raise ConfigurationError(
                f"{mappings / 'backfill_config.json'}: services.{service_name}: unknown service; "
                f"known: {', '.join(catalog.services)}"
            )
