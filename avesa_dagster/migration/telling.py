"""How long commands say where they are."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much it is (0: not known)."""


def quiet(what: str, done: int, total: int) -> None:
    """For whoever does not want to be told."""
