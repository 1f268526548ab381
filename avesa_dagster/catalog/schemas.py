"""JSON Schemas of the mappings files, for editors: `mappings/schema/`, made from the models.

`python -m avesa_dagster.catalog.schemas` writes them anew after a model was changed.
"""

from __future__ import annotations

import json
from pathlib import Path

from avesa_dagster.catalog.models import BackfillConfig, CanonicalTable, Model, Service
from avesa_dagster.settings import Settings

_KINDS: dict[str, type[Model]] = {
    "service": Service,
    "canonical": CanonicalTable,
    "backfill_config": BackfillConfig,
}


def schemas() -> dict[str, str]:
    """File name -> text of each schema. A file may name its own as `$schema`."""
    return {
        f"{kind}.schema.json": json.dumps(_schema(model), indent=1) + "\n"
        for kind, model in _KINDS.items()
    }


def _schema(model: type[Model]) -> dict[str, object]:
    schema = model.model_json_schema()
    schema["properties"]["$schema"] = {"type": "string"}
    return schema


def write(folder: Path) -> None:
    """Writes every schema into the folder."""
    folder.mkdir(exist_ok=True)
    for name, text in schemas().items():
        (folder / name).write_text(text, "utf-8")


if __name__ == "__main__":
    write(Settings.from_environment().mappings / "schema")
