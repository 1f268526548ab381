"""Names of tenants, services and tables, checked at the door.

A checked name can escape no path, no query and no key.
"""

from __future__ import annotations

import re

from avesa_dagster.errors import ConfigurationError

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


def checked(kind: str, name: str) -> str:
    """Returns `name` unchanged if it is a valid name.

    Args:
        kind: What the name names, for the error: `tenant`, `service` or `table`.
        name: 1 to 63 of a-z, 0-9, `_` and `-`, beginning with a letter or digit.

    Raises:
        ConfigurationError: If it is anything else.
    """
    if not NAME.fullmatch(name):
        shown = repr(name if len(name) <= 80 else name[:77] + "...")
        raise ConfigurationError(
            f"{shown} is no valid {kind} name",
            hint="use 1 to 63 of a-z, 0-9, '_' and '-', beginning with a letter or a digit",
        )
    return name
