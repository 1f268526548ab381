"""Rate limit rules: requests an hour, counted in whole hours of the simulator's clock.

Source: fact page, Rate limits [SND]. Of the rules that concern a request the one for the user goes
before the one for a role, and that before the one for all. Nothing is limited without a rule. What
is counted is committed only every `lag` seconds, so that enforcement comes late.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from typing import Any

from avesa_dagster.sandbox.wire import Response

HOUR = 3600.0
COMMIT_SECONDS = 30.0
SCOPES = ("user", "role", "all")


@dataclass(slots=True)
class Rule:
    """One line of sys_rate_limit_rules, and its count in the hour that runs.

    Attributes:
        scope: user, role or all.
        table: the table that it is for; None is the whole Table API.
        window: seconds that it counts in; 3,600 in the real service.
        lag: seconds between commits of what was counted.
    """

    scope: str
    per_hour: int
    table: str | None = None
    window: float = HOUR
    lag: float = COMMIT_SECONDS
    hour: int = -1
    counted: int = 0
    committed: int = 0
    committed_at: float = 0.0

    @property
    def sys_id(self) -> str:
        return hashlib.md5(f"{self.scope}:{self.table}".encode()).hexdigest()

    def turn(self, now: float) -> None:
        """Move on to the hour of `now`, and commit if it is time."""
        hour = int(now // self.window)
        if hour != self.hour:
            self.hour, self.counted, self.committed = hour, 0, 0
            self.committed_at = now
        elif now - self.committed_at >= self.lag:
            self.committed, self.committed_at = self.counted, now

    @property
    def ends(self) -> float:
        return (self.hour + 1) * self.window


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the rule in force says to a request. `wait` 0 lets it through."""

    limit: int
    reset: int
    rule: str
    wait: float

    def announce(self, response: Response) -> None:
        response.headers += [
            ("X-RateLimit-Limit", str(self.limit)),
            ("X-RateLimit-Reset", str(self.reset)),
            ("X-RateLimit-Rule", self.rule),
        ]


class Rules:
    """The rules of one instance. Safe to use from every thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rules: list[Rule] = []

    def set(self, rules: list[dict[str, Any]]) -> None:
        """Put these rules in the place of those in force.

        Raises:
            ValueError, TypeError: a rule is malformed.
        """
        made = [Rule(**{"scope": "all"} | rule) for rule in rules]
        for rule in made:
            if rule.scope not in SCOPES:
                raise ValueError(f"a rule's scope is one of {SCOPES}")
            if rule.window <= 0 or rule.lag < 0:
                raise ValueError("a rule's window must be above 0, its lag not below")
        with self._lock:
            self._rules = made

    def judge(self, table: str | None, now: float) -> Verdict | None:
        """Count one request and let it through or not; None if no rule concerns it."""
        with self._lock:
            concerned = [rule for rule in self._rules if rule.table in (None, table)]
            if not concerned:
                return None
            rule = min(concerned, key=lambda one: SCOPES.index(one.scope))
            rule.turn(now)
            over = (rule.committed if rule.lag else rule.counted) >= rule.per_hour
            if not over:
                rule.counted += 1
            wait = max(1.0, rule.ends - now) if over else 0.0
            return Verdict(rule.per_hour, int(rule.ends), rule.sys_id, wait)
