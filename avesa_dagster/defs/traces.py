"""Where a text that Dagster wrote names a tenant.

Only in the contexts that AVESA's own names make; a tenant may be called `raw` or `cursor`, and a
search for the bare word would find everything.
"""

from __future__ import annotations

import re
from collections.abc import Collection

_OWNER = re.compile(
    r'\\*"path\\*": \[\\*"([a-z0-9][a-z0-9_-]*)\\*", |\\*"tenant\\*": \\*"([a-z0-9][a-z0-9_-]*)\\*"'
)
_BEFORE, _AFTER = r"(?<![A-Za-z0-9_-])", r"(?![A-Za-z0-9_-])"
_LAYERS = ("raw", "canonical", "history")


def owners(text: str) -> set[str]:
    """The tenants whose asset keys, or whose names in configuration, stand in a serialized run or
    backfill."""
    return {path or config for path, config in _OWNER.findall(text)}


class Traces:
    """The ways in which one tenant is named.

    Args:
        services: Names of the services that it may have connected.
        numbers: Of its connections: names of ops and groups allow no `-`, and then a number tells
            `a-b` from `a_b` (`keys.op_name`).
    """

    def __init__(
        self, tenant: str, services: Collection[str], numbers: Collection[int] = ()
    ) -> None:
        self.tenant = tenant
        self._numbers = frozenset(numbers)
        self.asset_prefix = f'["{tenant}", '
        """How the serialized keys of its assets begin."""
        self.configured = f'"tenant": "{tenant}"'
        """How the serialized configuration of a run names it."""
        self._op = tenant.replace("-", "_")
        self.words = (tenant, self._op) if self._op != tenant else (tenant,)
        """Of which one stands in each text that names it."""
        name, op = re.escape(tenant), re.escape(self._op)
        known = "|".join(sorted({*_LAYERS, *services}))
        self._named = re.compile(
            "|".join(
                (
                    rf'(?P<key>\[\\*"){name}(?=\\*", )',  # ["acme", "raw", …]
                    rf"{_BEFORE}{name}(?=/(?:{known}){_AFTER})",  # backfill/acme/connectwise
                    rf"{_BEFORE}{name}(?= (?:{known}){_AFTER})",  # acme connectwise tickets: …
                    rf"{_BEFORE}{name}(?='s )",  # Every version of acme's …
                    rf"(?P<where>tenant=){name}{_AFTER}",
                    rf'(?P<tag>avesa/tenant\\*": \\*"){name}(?=\\*")',
                    rf'(?P<config>\\*"tenant\\*": \\*"){name}(?=\\*")',
                    # onboard-acme-connectwise-…, sync-20260101T0005-acme-connectwise-…
                    rf"(?P<run>{_BEFORE}[a-z]+(?:-\d{{8}}T\d{{4,6}})?-){name}(?=-(?:{known})-)",
                )
            )
        )
        self._operated = re.compile(
            rf"(?<![A-Za-z0-9_]){op}(?P<rest>__(?:{known.replace('-', '_')})(?:__[A-Za-z0-9_]+)?)"
            r"(?![A-Za-z0-9_])"
        )

    def found(self, text: str) -> bool:
        """Whether the text names the tenant."""
        if not any(word in text for word in self.words):
            return False
        return self._named.search(text) is not None or any(
            self._is_own(hit) for hit in self._operated.finditer(text)
        )

    def replaced(self, text: str, stand_in: str) -> str:
        """The text with another name in place of the tenant's."""
        named = self._named.sub(
            lambda hit: f"{hit[hit.lastgroup] if hit.lastgroup else ''}{stand_in}", text
        )
        op = re.sub(r"[^A-Za-z0-9_]", "_", stand_in)
        return self._operated.sub(
            lambda hit: f"{op}{hit['rest']}" if self._is_own(hit) else hit[0], named
        )

    def _is_own(self, hit: re.Match[str]) -> bool:
        """Whether the name of an op or a group is of this tenant, not of one that differs by `-`
        and `_` only."""
        number = re.search(r"__n(\d+)$", hit["rest"])
        if number is None:
            return "-" not in self.tenant
        return int(number[1]) in self._numbers
