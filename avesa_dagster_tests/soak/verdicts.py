"""What a scenario is given, and what it says in the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
_LOOK_SECONDS = 0.25


class Failed(RuntimeError):
    """Something did not come that the rest of a scenario needs."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One claim.

    Attributes:
        figure: What was measured, in words.
        target: What it has to be; empty if `what` says it.
        holds: None: told, and not judged.
    """

    what: str
    figure: str
    target: str = ""
    holds: bool | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a scenario came to."""

    title: str
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Scene:
    """What a scenario works with.

    Attributes:
        folder: Its own, empty.
        quick: Small: shows that it works, in about a minute.
        say: Tells whoever watches how far it is.
    """

    folder: Path
    quick: bool
    say: Callable[[str], None]

    def size(self, full: T, quick: T) -> T:
        return quick if self.quick else full

    def wait(self, what: str, found: Callable[[], T | None], seconds: float) -> T:
        """Looks until something is there, and returns it.

        Raises:
            Failed: It did not come in time.
        """
        deadline = time.monotonic() + seconds
        while True:
            result = found()
            if result:
                return result
            if time.monotonic() > deadline:
                raise Failed(f"{what} did not come in {seconds:.0f} s")
            time.sleep(_LOOK_SECONDS)


@dataclass
class Findings:
    """Collects verdicts, and says each when it falls."""

    scene: Scene
    verdicts: list[Verdict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def judge(self, what: str, figure: object, holds: bool, target: str = "") -> None:
        self.verdicts.append(Verdict(what, str(figure), target, holds))
        self.scene.say(f"{'holds' if holds else 'FAILS'}: {what}: {figure}")

    def tell(self, what: str, figure: object) -> None:
        self.verdicts.append(Verdict(what, str(figure)))

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.scene.say(text)

    def outcome(self, title: str) -> Outcome:
        return Outcome(title, tuple(self.verdicts), tuple(self.notes))
