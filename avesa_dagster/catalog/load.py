"""Reads and checks `mappings/`; a mistake names file, path and the allowed values."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from avesa_dagster.catalog.models import (
    BackfillConfig,
    BackfillSettings,
    CanonicalTable,
    Catalog,
    Service,
    ServiceSettings,
    source_paths,
)
from avesa_dagster.errors import ConfigurationError
from avesa_dagster.outside import services

M = TypeVar("M", bound=BaseModel)


def load_catalog(mappings: Path, outside: Sequence[Path] | None = None) -> Catalog:
    """Reads every mappings file.

    Args:
        mappings: The folder with `services/`, `canonical/` and `backfill_config.json`.
        outside: Folders of the same kind that packages bring; None: those of the services that are
            installed (see `avesa_dagster.outside`). They add services, canonical tables, and to a
            table that is there the `sources` of their services. Backfill settings that `mappings`
            has for a service go before theirs.

    Raises:
        ConfigurationError: A file is missing, is no JSON, or says something unknown; the text
            lists every mistake of the file with its path in it. Two files describe the same.
    """
    if outside is None:
        known = services()
        outside = list(dict.fromkeys(one.mappings for one in known.values() if one.mappings))
    read = _Read()
    for folder in (mappings, *outside):
        read.folder(folder)
    if not read.services:
        raise ConfigurationError(
            f"{mappings / 'services'} holds no service file",
            hint="set AVESA_MAPPINGS to the folder that holds services/ and canonical/",
        )
    backfill = _read(mappings / "backfill_config.json", BackfillConfig)
    theirs: dict[str, BackfillSettings] = {}
    for folder in outside:
        path = folder / "backfill_config.json"
        if path.exists():
            theirs |= _read(path, ServiceSettings).services
    catalog = Catalog(
        services=read.services,
        canonical=read.canonical,
        backfill=backfill.model_copy(update={"services": {**theirs, **backfill.services}}),
    )
    _cross_check(mappings, read.places, catalog)
    return catalog


class _Read:
    """What was read so far, of one folder after another, and from which files."""

    def __init__(self) -> None:
        self.services: dict[str, Service] = {}
        self.canonical: dict[str, CanonicalTable] = {}
        self.places: dict[str, Path] = {}
        """`service/{name}` or `canonical/{name}` to the file that said it first."""

    def folder(self, folder: Path) -> None:
        for path in sorted((folder / "services").glob("*.json")):
            place = f"service/{path.stem}"
            if place in self.places:
                raise ConfigurationError(
                    f"{path}: the service {path.stem!r} is described already, by "
                    f"{self.places[place]}",
                    hint="a service needs a name of its own: rename it, or remove one of the two",
                )
            self.services[path.stem] = _named(path, _document(path), Service, "service")
            self.places[place] = path
        for path in sorted((folder / "canonical").glob("*.json")):
            document = _document(path)
            if path.stem in self.canonical:
                document = self._with_sources(path, document)
            else:
                self.places[f"canonical/{path.stem}"] = path
            self.canonical[path.stem] = _named(path, document, CanonicalTable, "table")

    def _with_sources(self, path: Path, document: object) -> object:
        """The table as it is, with the sources that another file adds."""
        first = self.places[f"canonical/{path.stem}"]
        held = self.canonical[path.stem]
        more = document if isinstance(document, dict) else {}
        sources = more.get("sources")
        if set(more) - {"table", "sources"} or not isinstance(sources, dict):
            raise ConfigurationError(
                f"{path}: the canonical table {path.stem!r} is there already, in {first}",
                hint="give only table and sources to add to it, or choose another name",
            )
        twice = sorted(set(sources) & set(held.sources))
        if twice:
            raise ConfigurationError(
                f"{path}: sources.{twice[0]}: {first} maps this service already",
                hint="map the endpoint of another service, or remove one of the two",
            )
        dumped = held.model_dump(mode="json", by_alias=True)
        return dumped | {"table": more.get("table"), "sources": dumped["sources"] | sources}


def _named(path: Path, document: object, model: type[M], key: str) -> M:
    read = _checked(path, document, model)
    if getattr(read, key) != path.stem:
        raise ConfigurationError(
            f"{path}: {key} is {getattr(read, key)!r}, but the file is named {path.name}",
            hint=f"rename the file or set {key} to {path.stem!r}",
        )
    return read


def _read(path: Path, model: type[M]) -> M:
    return _checked(path, _document(path), model)


def _document(path: Path) -> object:
    try:
        document: object = json.loads(path.read_text("utf-8"), object_pairs_hook=_once)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigurationError(f"{path}: is no JSON: {error}") from error
    if isinstance(document, dict):
        document.pop("$schema", None)
    return document


def _checked(path: Path, document: object, model: type[M]) -> M:
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
        place = _place(document, item["loc"], missing=item["type"] == "missing")
        text = item["msg"]
        if item["type"] == "extra_forbidden":
            text = f"unknown key; allowed here: {', '.join(_allowed(model, item['loc']))}"
        elif item["type"] != "missing" and not isinstance(item["input"], dict):
            text += f", not {item['input']!r:.80}"
        lines.append(f"{path}: {place}: {text}")
    return "\n".join(lines)


def _allowed(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Keys that the JSON Schema allows in the object that holds `loc`'s last part."""
    schema = model.model_json_schema()
    here = schema
    for part in loc[:-1]:
        here = _below(_resolved(here, schema), part)
    return sorted(_resolved(here, schema).get("properties", {}))


def _resolved(here: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """What a reference means, and what may also be null."""
    while True:
        choices = [one for one in here.get("anyOf", ()) if one.get("type") != "null"]
        if "$ref" in here:
            here = schema["$defs"][here["$ref"].rsplit("/", 1)[1]]
        elif len(choices) == 1:
            here = choices[0]
        else:
            return here


def _below(here: dict[str, Any], part: int | str) -> dict[str, Any]:
    kinds = here.get("discriminator", {}).get("mapping", {})
    if part in kinds:
        return {"$ref": kinds[part]}
    if part in here.get("properties", {}):
        return dict(here["properties"][part])
    if isinstance(here.get("additionalProperties"), dict):
        return dict(here["additionalProperties"])
    return next((o for o in here.get("anyOf", ()) if o.get("$ref", "").endswith(str(part))), {})


def _place(document: Any, loc: tuple[int | str, ...], *, missing: bool) -> str:
    """The path of a mistake in the file, without the names of kinds that are none of its keys.

    Args:
        missing: The last part is not there, and should be.
    """
    names = []
    for part in loc:
        is_key = isinstance(document, dict) and part in document
        if is_key or (isinstance(document, list) and isinstance(part, int)):
            document = document[part]
        elif not (missing and part == loc[-1]):
            continue
        names.append(str(part))
    return ".".join(names) or "(top)"


def _cross_check(mappings: Path, places: Mapping[str, Path], catalog: Catalog) -> None:
    """What no single file can know: that names in one file exist in the other."""
    for name, service in catalog.services.items():
        path = places[f"service/{name}"]
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
        path = places[f"canonical/{name}"]
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
