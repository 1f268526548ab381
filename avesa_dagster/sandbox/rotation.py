"""Secrets that are replaced: the next one is given out while the one before is good for a while."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Rotation:
    """Which of a company's secrets are good: they are numbered, and replaced one by one."""

    oldest: int = 0
    newest: int = 0

    def seeds(self, text: str) -> list[str]:
        """What the good ones are made from, the newest first."""
        numbers = range(self.newest, self.oldest - 1, -1)
        return [f"{text}:{number}" if number else text for number in numbers]
