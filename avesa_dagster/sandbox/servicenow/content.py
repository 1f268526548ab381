"""What the records hold, computed from their numbers.

A maker gives the columns of its class that vary: `(cast, number, revision, created, updated) ->
row`. It is a pure function, and gives the same columns for every record. Values are stored values:
text, except that date-times are whole seconds since 1970 UTC and durations whole seconds; "" is
null. `CONSTANTS` has the columns that are the same for a whole class; every other column is empty.
Revision 0 is the record as first entered; each change gives the next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from avesa_dagster.sandbox import vocabulary as words
from avesa_dagster.sandbox.records import odd_text
from avesa_dagster.sandbox.servicenow.stamps import day_text
from avesa_dagster.sandbox.timestamps import DAY

Row = dict[str, Any]
Maker = Callable[["Cast", int, int, int, int], Row]

FREE_TEXT = frozenset([
    "short_description", "description", "close_notes", "justification", "implementation_plan",
    "cause_notes", "fix_notes", "workaround", "name", "first_name", "last_name", "introduction",
    "street", "city", "state", "country", "title", "website", "notes", "message",
])  # fmt: skip
"""The computed columns whose text may be anything; all others are plain ASCII without quotes."""

_MASK = (1 << 64) - 1
_SCRAMBLE = 0x9E37_79B9_7F4A_7C15
_PREFIX = {"incident": "INC", "change_request": "CHG", "problem": "PRB", "task": "TASK"}
_LOCATIONS = [city for city, _, _ in words.CITIES]
_DEPARTMENTS = ["IT", "Sales", "Finance", "Operations"]
_GROUPS = ["Service Desk", "Network", "Database", "Hardware", "Software", "Change Management"]
SETUP = {
    "sys_user_group": _GROUPS,
    "cmn_location": _LOCATIONS,
    "cmn_department": _DEPARTMENTS,
}
"""Names of the records of the setup tables."""


@dataclass(slots=True)
class Cast:
    """What records refer to: lists of sys_ids, and names to display for them.

    `spans` has the numbers (first, count) of each class of task when the world was made, and
    `task_id` computes the sys_id of a task's number.
    """

    seed: int
    users: list[str] = field(default_factory=list)
    companies: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    locations: list[str] = field(default_factory=list)
    departments: list[str] = field(default_factory=list)
    items: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    task_id: Callable[[int], str] = str

    def dice(self, number: int, revision: int = 0) -> int:
        """64 bits that look random."""
        mixed = (number * _SCRAMBLE + revision * 0xD6E8_FEB8_6659_FD93 + self.seed) & _MASK
        mixed = (mixed ^ mixed >> 32) * 0xBF58_476D_1CE4_E5B9 & _MASK
        mixed = (mixed ^ mixed >> 29) * 0x94D0_49BB_1331_11EB & _MASK
        return mixed ^ mixed >> 32

    def task_of(self, kind: str, dice: int) -> str:
        """The sys_id of one of the first tasks of a class; "" if there was none."""
        first, count = self.spans.get(kind, (0, 0))
        return self.task_id(first + dice % count) if count else ""


def pick(options: list[str], dice: int) -> str:
    """One of the options, or nothing of nothing."""
    return options[dice % len(options)] if options else ""


def _flag(value: object) -> str:
    return "true" if value else "false"


def _user_name(number: int) -> str:
    first = words.FIRST_NAMES[number % len(words.FIRST_NAMES)]
    last = words.LAST_NAMES[number * 7 % len(words.LAST_NAMES)]
    return f"{first} {last}"


def _company_name(number: int) -> str:
    firm = words.FIRMS[number % len(words.FIRMS)]
    return f"{firm} {words.TRADES[number * 5 % len(words.TRADES)]}"


def item_name(number: int) -> str:
    """The name of a configuration item."""
    return f"host-{number:06d}"


NAMES: dict[str, Callable[[int], str]] = {
    "sys_user": _user_name,
    "core_company": _company_name,
    "cmdb_ci": item_name,
}
"""The names of records that others refer to; a name never changes."""


def task_number(kind: str, number: int) -> str:
    return f"{_PREFIX[kind]}{number + 10_001:07d}"


def _system(number: int, revision: int, created: int, updated: int, dice: int) -> Row:
    return {
        "sys_created_by": "admin" if dice & 7 else "integration.user",
        "sys_created_on": created,
        "sys_mod_count": str(revision + (dice >> 8) % 9),
        "sys_updated_by": "system" if dice & 48 else "admin",
        "sys_updated_on": updated,
    }


def _task(
    kind: str,
    cast: Cast,
    number: int,
    revision: int,
    created: int,
    updated: int,
    dice: int,
    now: int,
) -> Row:
    """The columns of every task. `dice` is the record's, `now` that of this revision."""
    closed = now % 10 < 7
    group, priority = pick(cast.groups, now >> 4), now >> 8 & 3
    number_text = task_number(kind, number)
    subject = f"{words.PROBLEMS[dice % len(words.PROBLEMS)]} #{number_text}"
    if revision:
        subject += f" (change {revision})"
    phrase = words.PHRASES[now % len(words.PHRASES)]
    company = "" if dice % 12 == 0 else pick(cast.companies, dice >> 6)
    assigned = "" if now % 7 == 0 else pick(cast.users, now >> 12)
    worked = (now >> 20) % 200_000 if closed else 0
    return {
        "number": number_text,
        "task_effective_number": number_text,
        "sys_class_name": kind,
        "state": "3" if closed else "2",
        "active": _flag(not closed),
        "priority": str(priority + 1),
        "impact": str(priority % 3 + 1),
        "urgency": str((now >> 10) % 3 + 1),
        "short_description": odd_text(number, subject),
        "description": odd_text(number + 40, phrase),
        "opened_at": created,
        "opened_by": pick(cast.users, dice >> 10),
        "closed_at": updated if closed else "",
        "closed_by": assigned if closed else "",
        "close_notes": phrase if closed else "",
        "assignment_group": group,
        "assigned_to": assigned,
        "company": company,
        "location": pick(cast.locations, dice >> 16),
        "cmdb_ci": "" if dice % 3 else pick(cast.items, dice >> 18),
        "parent": cast.task_id(dice % number) if number and number % 50 == 33 else "",
        "due_date": created + 7 * DAY if now % 5 == 0 else "",
        "business_duration": worked or "",
        "calendar_duration": worked * 2 or "",
        "made_sla": _flag(now % 9),
        "sla_due": created + 2 * DAY if now % 4 == 0 else "",
        "reassignment_count": str((now >> 30) % 4),
        "escalation": str((now >> 34) % 4),
        "contact_type": ("phone", "email", "self-service")[dice % 3],
        "correlation_id": f"ext-{dice >> 40:x}" if dice % 11 == 0 else "",
        "watch_list": ",".join(cast.users[:3]) if dice % 13 == 0 else "",
        **_system(number, revision, created, updated, dice),
    }


def _plain_task(cast: Cast, number: int, revision: int, created: int, updated: int) -> Row:
    dice, now = cast.dice(number), cast.dice(number, revision + 1)
    return _task("task", cast, number, revision, created, updated, dice, now)


def _incident(cast: Cast, number: int, revision: int, created: int, updated: int) -> Row:
    dice, now = cast.dice(number), cast.dice(number, revision + 1)
    row = _task("incident", cast, number, revision, created, updated, dice, now)
    closed = row["active"] == "false"
    state = ("7" if now & 64 else "6") if closed else str(1 + (now >> 40) % 3)
    worked = row["business_duration"]
    row |= {
        "state": state,
        "incident_state": state,
        "caller_id": "" if dice % 20 == 9 else pick(cast.users, dice >> 22),
        "category": ("inquiry", "software", "hardware", "network")[dice >> 24 & 3],
        "subcategory": words.SUBTYPES[dice % len(words.SUBTYPES)].lower(),
        "severity": str((now >> 44) % 3 + 1),
        "resolved_at": updated if closed else "",
        "resolved_by": row["closed_by"],
        "reopen_count": str(int(now % 17 == 0)),
        "close_code": "Solved (Permanently)" if closed else "",
        "problem_id": cast.task_of("problem", dice >> 5) if dice % 15 == 0 else "",
        "caused_by": cast.task_of("change_request", dice >> 7) if dice % 25 == 0 else "",
        "hold_reason": "1" if state == "3" else "",
        "business_stc": str(worked),
        "calendar_stc": str(row["calendar_duration"]),
    }
    return row


def _change(cast: Cast, number: int, revision: int, created: int, updated: int) -> Row:
    dice, now = cast.dice(number), cast.dice(number, revision + 1)
    row = _task("change_request", cast, number, revision, created, updated, dice, now)
    closed = row["active"] == "false"
    day = day_text(created // DAY + 3)
    row |= {
        "state": "3" if closed else ("-5", "-4", "-1")[now % 3],
        "type": ("normal", "standard", "emergency")[dice % 3],
        "category": ("Hardware", "Software", "Network", "Other")[dice >> 24 & 3],
        "risk": str(2 + (now >> 44) % 3),
        "requested_by": pick(cast.users, dice >> 22),
        "start_date": created + 3 * DAY,
        "end_date": created + 3 * DAY + 7200,
        "cab_required": _flag(dice & 1),
        "cab_date": day if dice & 1 else "",
        "cab_date_time": created + 2 * DAY if dice & 1 else "",
        "justification": words.PHRASES[dice % len(words.PHRASES)],
        "implementation_plan": words.PHRASES[now % len(words.PHRASES)],
        "close_code": "successful" if closed else "",
        "on_hold": _flag(now % 19 == 0),
    }
    return row


def _problem(cast: Cast, number: int, revision: int, created: int, updated: int) -> Row:
    dice, now = cast.dice(number), cast.dice(number, revision + 1)
    row = _task("problem", cast, number, revision, created, updated, dice, now)
    closed = row["active"] == "false"
    state = "107" if closed else ("101", "103")[now & 1]
    row |= {
        "state": state,
        "problem_state": state,
        "category": ("software", "hardware", "network")[dice % 3],
        "known_error": _flag(now % 5 == 0),
        "major_problem": _flag(dice % 29 == 0),
        "related_incidents": str((now >> 44) % 12),
        "confirmed_at": created + 3600,
        "confirmed_by": pick(cast.users, dice >> 22),
        "cause_notes": words.PHRASES[dice % len(words.PHRASES)],
        "fix_notes": words.PHRASES[now % len(words.PHRASES)] if closed else "",
        "resolved_at": updated if closed else "",
        "resolved_by": row["closed_by"],
        "workaround": words.PHRASES[(dice >> 8) % len(words.PHRASES)],
    }
    return row


def _user(cast: Cast, number: int, revision: int, created: int, updated: int) -> Row:
    dice, now = cast.dice(number), cast.dice(number, revision + 1)
    name = _user_name(number)
    first, _, last = name.partition(" ")
    secret = hashlib.sha256(b"password:%d" % dice).hexdigest()
    login = updated - updated % 977
    city, state, zip_code = words.CITIES[dice % len(words.CITIES)]
    return {
        "user_name": f"user.{number}",
        "user_password": f"$scrypt${secret}",
        "name": name,
        "first_name": first,
        "last_name": last,
        "email": f"user{number}@example.com" if dice % 14 else "",
        "title": words.JOB_TITLES[now % len(words.JOB_TITLES)],
        "phone": f"555{number % 10_000_000:07d}" if dice & 2 else "",
        "mobile_phone": f"+1 555 {now % 10_000:04d}",
        "active": _flag(now % 10),
        "locked_out": _flag(now % 31 == 0),
        "vip": _flag(dice % 40 == 0),
        "employee_number": f"{dice % 100_000:05d}",
        "department": pick(cast.departments, dice >> 4),
        "manager": pick(cast.users, dice >> 8) if dice & 4 else "",
        "company": "" if dice % 12 == 0 else pick(cast.companies, dice >> 6),
        "location": pick(cast.locations, dice >> 16),
        "time_zone": ("", "US/Pacific", "Europe/Zurich")[dice % 3],
        "last_login": day_text(login // DAY),
        "last_login_time": login,
        "failed_attempts": str(now % 3),
        "introduction": odd_text(number, "") if number % 97 in (7, 19, 31, 61) else "",
        "city": city,
        "state": state,
        "zip": zip_code,
    } | _system(number, revision, created, updated, dice)


def _company(cast: Cast, number: int, revision: int, created: int, updated: int) -> Row:
    dice, now = cast.dice(number), cast.dice(number, revision + 1)
    city, state, zip_code = words.CITIES[dice % len(words.CITIES)]
    return {
        "name": _company_name(number),
        "customer": _flag(dice % 3),
        "vendor": _flag(dice % 3 == 0),
        "manufacturer": _flag(dice % 7 == 0),
        "primary": _flag(number == 0),
        "parent": pick(cast.companies, dice >> 8) if dice % 6 == 0 else "",
        "contact": pick(cast.users, dice >> 12) if dice % 4 else "",
        "street": f"{dice % 900} {words.STREETS[dice % len(words.STREETS)]}",
        "city": city,
        "state": state,
        "zip": zip_code,
        "country": words.COUNTRIES[dice % len(words.COUNTRIES)],
        "phone": f"555{now % 10_000_000:07d}",
        "website": f"https://company{number}.example",
        "notes": odd_text(number, words.PHRASES[now % len(words.PHRASES)]),
        "num_employees": str(now % 5000),
        "stock_symbol": f"C{number}" if dice % 5 == 0 else "",
    } | _system(number, revision, created, updated, dice)


def _item_of(kind: str) -> Maker:
    def make(cast: Cast, number: int, revision: int, created: int, updated: int) -> Row:
        dice, now = cast.dice(number), cast.dice(number, revision + 1)
        name = item_name(number)
        return {
            "name": name,
            "sys_class_name": kind,
            "sys_class_path": f"/!!/!2/!{len(kind):x}",
            "serial_number": f"SN{dice >> 30:X}",
            "asset_tag": f"P{number:06d}",
            "ip_address": f"10.{dice & 255}.{dice >> 8 & 255}.{dice >> 16 & 255}",
            "mac_address": ":".join(f"{dice >> shift & 255:02x}" for shift in range(0, 48, 8)),
            "fqdn": f"{name}.example.com",
            "short_description": odd_text(number, words.PHRASES[now % len(words.PHRASES)]),
            "company": pick(cast.companies, dice >> 6),
            "location": pick(cast.locations, dice >> 16),
            "assigned_to": pick(cast.users, now >> 12),
            "managed_by": pick(cast.users, dice >> 22),
            "support_group": pick(cast.groups, dice >> 4),
            "cost": f"{now % 500_000 / 100:.2f}",
            "operational_status": "2" if now % 8 == 0 else "1",
            "install_status": "7" if now % 12 == 0 else "1",
            "first_discovered": created,
            "last_discovered": updated,
        } | _system(number, revision, created, updated, dice)

    return make


_DAYS = ("sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday")


def _time_card(cast: Cast, number: int, revision: int, created: int, updated: int) -> Row:
    dice, now = cast.dice(number), cast.dice(number, revision + 1)
    hours = [(now >> 4 * at) % 33 / 4 for at in range(7)]
    week = created // DAY
    task = "" if number % 9 == 0 else cast.task_of("incident", dice >> 5)
    return {
        "user": pick(cast.users, dice >> 22),
        "task": task,
        "top_task": task,
        "week_starts_on": day_text(week - (week + 4) % 7),
        "total": f"{sum(hours):g}",
        "state": ("Pending", "Submitted", "Approved", "Processed")[now >> 40 & 3],
        "category": "task_work" if task else "admin",
        "notes": odd_text(number, words.PHRASES[now % len(words.PHRASES)]),
        **{day: f"{spent:g}" for day, spent in zip(_DAYS, hours, strict=True)},
    } | _system(number, revision, created, updated, dice)


def _role(cast: Cast, number: int, revision: int, created: int, updated: int) -> Row:
    dice = cast.dice(number)
    row = {"user": pick(cast.users, dice >> 22), "inherited": _flag(dice & 1), "state": "active"}
    return row | {key: _system(number, revision, created, updated, dice)[key] for key in _MADE}


_MADE = ("sys_created_by", "sys_created_on", "sys_mod_count")


def _log(cast: Cast, number: int, revision: int, created: int, updated: int) -> Row:
    dice = cast.dice(number, revision)
    message = odd_text(number, words.PHRASES[dice % len(words.PHRASES)])
    row = {"level": str(dice & 3), "message": f"{message} [{revision}]", "source": "workflow"}
    return row | {"sys_created_by": "system", "sys_created_on": created}


def _setup_of(table: str) -> Maker:
    def make(cast: Cast, number: int, revision: int, created: int, updated: int) -> Row:
        names = SETUP[table]
        name = names[number] if number < len(names) else f"Entry {number}"
        return {"name": name} | _system(number, revision, created, updated, cast.dice(number))

    return make


def _given(cast: Cast, number: int, revision: int, created: int, updated: int) -> Row:
    """Records whose columns are held rather than computed."""
    return {}


MAKERS: dict[str, Maker] = {
    "task": _plain_task,
    "incident": _incident,
    "change_request": _change,
    "problem": _problem,
    "sys_user": _user,
    "sys_user_group": _setup_of("sys_user_group"),
    "core_company": _company,
    "cmdb_ci": _item_of("cmdb_ci"),
    "cmdb_ci_computer": _item_of("cmdb_ci_computer"),
    "cmdb_ci_server": _item_of("cmdb_ci_server"),
    "cmdb_ci_service": _item_of("cmdb_ci_service"),
    "time_card": _time_card,
    "cmn_location": _setup_of("cmn_location"),
    "cmn_department": _setup_of("cmn_department"),
    "sys_user_has_role": _role,
    "syslog": _log,
    "sys_audit_delete": _given,
    "sys_db_object": _given,
    "sys_dictionary": _given,
}
HELD = frozenset(["sys_audit_delete", "sys_db_object", "sys_dictionary"])
"""Tables whose records are held, column by column."""

_DOMAIN = {"sys_domain": "global", "sys_domain_path": "/"}
_TASK = {"approval": "not requested", "knowledge": "false", "order": ""} | _DOMAIN
CONSTANTS: dict[str, Row] = {
    "task": _TASK,
    "incident": _TASK | {"notify": "1", "child_incidents": "0"},
    "change_request": _TASK
    | {"scope": "3", "phase": "requested", "phase_state": "open", "unauthorized": "false"}
    | {"production_system": "false", "outside_maintenance_schedule": "false"},
    "problem": _TASK | {"reopen_count": "0", "workaround_applied": "false"},
    "sys_user": _DOMAIN
    | {"sys_class_name": "sys_user", "source": "", "internal_integration_user": "false"}
    | {"web_service_access_only": "false", "password_needs_reset": "false", "notification": "2"}
    | {"calendar_integration": "1", "enable_multifactor_authn": "false"},
    "sys_user_group": {"active": "true", "include_members": "false", "exclude_manager": "false"},
    "core_company": {"sys_class_name": "core_company", "publicly_traded": "false"}
    | {"fiscal_year": "", "discount": "", "market_cap": "0", "profits": "0", "rank_tier": ""},
    "cmdb_ci": _DOMAIN | {"category": "Hardware", "unverified": "false", "cost_cc": "USD"},
    "time_card": {},
}
for _kind in ("cmdb_ci_computer", "cmdb_ci_server", "cmdb_ci_service"):
    CONSTANTS[_kind] = CONSTANTS["cmdb_ci"]
