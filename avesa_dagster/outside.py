"""Services that are installed beside AVESA: packages that name themselves in the entry point group
`avesa.services`.

    [project.entry-points."avesa.services"]
    notes = "avesa_notes"

The module is what a folder under `sources/` is: it has FIELDS, `check` and `connect`. MAPPINGS, if
it has it, is a folder with `services/*.json`, `canonical/*.json` and `backfill_config.json`, which
belong to the catalog then (see `catalog.load`).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

from avesa_dagster.errors import ConfigurationError

GROUP = "avesa.services"
NEEDED = ("FIELDS", "check", "connect")
_OWN = Path(__file__).resolve().parent / "sources"


@dataclass(frozen=True, slots=True)
class Outside:
    """A service that another package brings.

    Attributes:
        package: Name of the distribution, for errors.
        mappings: Its mappings folder; None: the installation's own mappings describe it.
    """

    name: str
    package: str
    module: ModuleType
    mappings: Path | None


def services() -> dict[str, Outside]:
    """Every service that an installed package brings, by name; loads their modules.

    Raises:
        ConfigurationError: Two packages bring the same name, or a module cannot be used; the text
            names package and module.
    """
    found: dict[str, Outside] = {}
    for entry in entry_points(group=GROUP):
        one = _loaded(entry)
        twin = found.get(one.name)
        if twin is not None and (twin.package, twin.module) != (one.package, one.module):
            raise ConfigurationError(
                f"two packages bring a service {one.name!r}: {twin.package} and {one.package}",
                hint="uninstall one of them",
            )
        found[one.name] = one
    return dict(sorted(found.items()))


def _loaded(entry: EntryPoint) -> Outside:
    package = entry.dist.name if entry.dist is not None else "unknown package"
    place = f"{package}: entry point {entry.name} = {entry.value!r} in {GROUP}"
    if (_OWN / entry.name).is_dir():
        raise ConfigurationError(
            f"{place}: AVESA itself has a service of that name", hint="choose another name"
        )
    try:
        module = entry.load()
    except (ImportError, AttributeError, SyntaxError) as error:
        raise ConfigurationError(
            f"{place} cannot be loaded: {type(error).__name__}: {error}",
            hint="repair or uninstall that package",
        ) from error
    if not isinstance(module, ModuleType):
        raise ConfigurationError(f"{place} is no module", hint="name the module, without ':'")
    missing = [name for name in NEEDED if not hasattr(module, name)]
    if missing:
        raise ConfigurationError(
            f"{place} has no {', '.join(missing)}", hint="see docs/add-a-service.md"
        )
    folder = getattr(module, "MAPPINGS", None)
    if folder is not None and not Path(folder).is_dir():
        raise ConfigurationError(f"{place}: its MAPPINGS {folder} is no folder")
    return Outside(entry.name, package, module, None if folder is None else Path(folder))
