"""Kinds of hostility, and scripts drawn of them: plain data for a rig's `hostility`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

Fault = Mapping[str, Any]

PASSING: tuple[Fault, ...] = (
    {"kind": "status", "status": 500},
    {"kind": "status", "status": 502, "body": "html"},
    {"kind": "status", "status": 503, "body": "empty"},
    {"kind": "status", "status": 504},
    {"kind": "status", "status": 429, "retry_after": 0, "burst": 2},
    {"kind": "reset_before"},
    {"kind": "reset_after_headers"},
    {"kind": "hang_up"},
    {"kind": "cut_body", "framing": "content-length"},
    {"kind": "cut_body", "framing": "chunked", "ending": "reset"},
    {"kind": "cut_body", "framing": "close", "fraction": 0.9},
    {"kind": "broken_json", "fraction": 0.99},
    {"kind": "html_200"},
    {"kind": "error_object_200"},
    {"kind": "slow", "seconds": 0.02, "drip": True},
    {"kind": "drop_row"},
    {"kind": "drop_row", "rows": 1000},
    {"kind": "duplicate_row"},
    {"kind": "repeat_page"},
    {"kind": "empty_page"},
    {"kind": "short_page", "rows": 1},
)
"""What happens to a request now and then: a run survives it."""

DEADLY: tuple[Fault, ...] = (
    {"kind": "redirect"},
    {"kind": "status", "status": 400},
    {"kind": "status", "status": 404, "body": "html"},
)
"""What no second try helps against: a run that meets it fails and says where."""

DOUBTFUL: tuple[Fault, ...] = (
    {"kind": "filter_ignored"},
    {"kind": "filter_ignored", "ignore": "all"},
    *DEADLY,
)
"""What a run may survive, or fail of and say where."""


def name(fault: Fault) -> str:
    """A short one, for the name of a test."""
    return "-".join(str(value) for key, value in fault.items() if key != "burst")


def draw(rng: Random, own: Sequence[Fault]) -> dict[str, Any]:
    """A hostile script: several kinds, at any rate, over a business that does not stand still.

    Args:
        own: Kinds that only this service knows.
    """
    fierce = rng.random() < 0.25
    lines = []
    for _ in range(rng.randrange(1, 6)):
        fault = dict(rng.choice((*PASSING, *DOUBTFUL, *own)))
        if "at" in fault:
            pass
        elif rng.random() < 0.4 or fault in DEADLY:
            fault["at"] = sorted(rng.sample(range(1, 60), rng.randrange(1, 4)))
        else:
            rates = (0.5, 0.9) if fierce else (0.03, 0.1, 0.2)
            fault["probability"] = rng.choice(rates)
        lines.append(fault)
    script: dict[str, Any] = {
        "seed": rng.randrange(1 << 30),
        "faults": lines,
        "page_clamp": rng.choice((7, 11, 20, 40)),
    }
    for condition, chance, values in (
        ("max_consecutive", 0.0 if fierce else 0.7, (1, 2, 3)),
        ("max_faults", 0.3, (1, 3, 10)),
        ("mutate_per_request", 0.5, (1, 2, 5)),
        ("delete_per_request", 0.35, (1, 2)),
        ("create_per_request", 0.35, (1, 2)),
        ("late_seconds", 0.35, (0.01, 0.3, 20, 55)),
    ):
        if rng.random() < chance:
            script[condition] = rng.choice(values)
    return script
