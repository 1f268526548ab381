"""What the fields of a record hold: a pure function of its number, its revision and its org.

Records are not kept, they are computed, a column of a batch of rows at a time: that is what lets an
org have a million of them. `stable` values follow a record through its life, the others are drawn
anew at each revision, and those of a calculated field also when the org's formulas change.

Every 97th record has text that breaks careless readers (NUL, line breaks, quotes, `NA`, `null`).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from avesa_dagster.sandbox import vocabulary as words
from avesa_dagster.sandbox.salesforce.fields import Field
from avesa_dagster.sandbox.salesforce.ids import IdMaker
from avesa_dagster.sandbox.salesforce.instants import date_text, rest_texts
from avesa_dagster.sandbox.salesforce.schema import PREFIXES, ObjectInfo
from avesa_dagster.sandbox.timestamps import DAY

Column = list[Any]
Maker = Callable[["Batch", str], Column]
_MASK = (1 << 64) - 1
_SERVED_ELSEWHERE = 5


class _Absent:
    """The value of a field that a damaged record does not have at all."""


ABSENT: Final = _Absent()


class Lookup(Protocol):
    """What the records of an org refer to."""

    seed: int

    def known_ids(self, name: str) -> Sequence[str]:
        """Ids of the records of an object that others may refer to."""
        ...


def mixed(number: int, revision: int, seed: int) -> int:
    """30 bits that look random, of one revision of one record."""
    x = (number * 0x9E3779B97F4A7C15 + revision * 0xC2B2AE3D27D4EB4F + seed) & _MASK
    x = (x ^ x >> 32) * 0xD6E8FEB86659FD93 & _MASK
    return (x ^ x >> 32) & 0x3FFFFFFF


@dataclass(slots=True)
class Batch:
    """Some records of one object, and what is known of each without asking.

    `created`, `stamps` and `modified` are seconds since 1970 UTC; `changes` maps a place in the
    batch to values that its record has instead of the computed ones. `epoch` is how often the
    formulas have changed; `bulk` makes instants look as they do in Bulk CSV.
    """

    info: ObjectInfo
    fields: Mapping[str, Field]
    lookup: Lookup
    numbers: Sequence[int]
    first: list[int]
    hashes: list[int]
    created: list[int]
    stamps: list[int]
    modified: list[int]
    deleted: list[bool]
    archived: list[bool]
    changes: dict[int, dict[str, Any]]
    epoch: int = 0
    bulk: bool = False
    _raw: dict[str, Column] = field(default_factory=dict)

    def raw(self, name: str) -> Column:
        """The values of a field, instants as seconds since 1970."""
        if name not in self._raw:
            column = _maker(self.info.name, self.fields[name])(self, name)
            if self.changes:
                column = list(column)
                instants = self.fields[name].type == "datetime"
                for at, changed in self.changes.items():
                    if name in changed and (not instants or isinstance(changed[name], int)):
                        column[at] = changed[name]
            self._raw[name] = column
        return self._raw[name]

    def column(self, name: str) -> Column:
        """The values of a field as JSON has them (or as CSV, before quoting)."""
        column = self.raw(name)
        if self.fields[name].type != "datetime":
            return column
        texts: Column = list(rest_texts(column, bulk=self.bulk))
        for at, changed in self.changes.items():
            if name in changed and not isinstance(changed[name], int):
                texts[at] = changed[name]
        return texts

    def draws(self, name: str, changing: bool) -> list[int]:
        """28 bits a record that look random and belong to this field."""
        salt = zlib.crc32(name.encode()) & 0x3FFFFFFF | 1
        source = self.hashes if changing else self.first
        if self.epoch and self.fields[name].calculated:
            return [(h + self.epoch * 7919) * salt >> 12 & 0xFFFFFFF for h in source]
        return [h * salt >> 12 & 0xFFFFFFF for h in source]


def _picked(options: Sequence[Any], empty: int = 0, changing: bool = True) -> Maker:
    """One of the options; `empty` percent have none."""
    count = len(options)

    def make(batch: Batch, name: str) -> Column:
        draws = batch.draws(name, changing)
        if not empty:
            return [options[x % count] for x in draws]
        return [None if x % 100 < empty else options[x // 100 % count] for x in draws]

    return make


def _numbers(most: int, parts: int = 1, empty: int = 30, changing: bool = True) -> Maker:
    """Numbers from 0 below `most`, whole where `parts` is 1, else floats in that many parts."""

    def make(batch: Batch, name: str) -> Column:
        draws = batch.draws(name, changing)
        if parts == 1:
            return [None if x % 100 < empty else x // 100 * 7919 % most for x in draws]
        return [
            None if x % 100 < empty else (x // 100 * 7919 % (most * parts)) / parts for x in draws
        ]

    return make


def _flag(percent: int, changing: bool = True) -> Maker:
    return lambda batch, name: [x % 100 < percent for x in batch.draws(name, changing)]


def _text(form: str, empty: int = 0, changing: bool = False) -> Maker:
    """A text with `{n}` (the record's number) or `{x}` (drawn) in it."""
    form = form.replace("{n}", "%(n)d").replace("{x}", "%(x)d")

    def make(batch: Batch, name: str) -> Column:
        return [
            None if x % 100 < empty else form % {"n": n, "x": x}
            for n, x in zip(batch.numbers, batch.draws(name, changing), strict=True)
        ]

    return make


_ODD: dict[int, Callable[[str], str]] = {
    7: lambda plain: f"{plain} {words.NUL_TEXT}",
    19: lambda plain: f"{plain} {words.EMOJI_TEXT}",
    31: lambda plain: f"{plain}\n{words.LINES_TEXT}",
    43: lambda plain: f"{plain} " + " ".join(words.PHRASES) * 5,
    53: lambda plain: "NA",
    59: lambda plain: "null",
    61: lambda plain: f'"{plain}", said "they"',
    67: lambda plain: "N/A",
    71: lambda plain: f"  {plain} ",
    73: lambda plain: "None",
}


def _odd(make: Maker) -> Maker:
    """Some of the texts made odd."""

    def odd(batch: Batch, name: str) -> Column:
        column = make(batch, name)
        for at, number in enumerate(batch.numbers):
            turn = _ODD.get(number % 97)
            if turn is not None and column[at] is not None:
                column[at] = turn(column[at])
        return column

    return odd


def _referring(target: str, empty: int = 0, changing: bool = False) -> Maker:
    """The id of a record of another object; None where it has no record."""

    def make(batch: Batch, name: str) -> Column:
        known = batch.lookup.known_ids(target)
        if not known:
            return [None] * len(batch.numbers)
        count, draws = len(known), batch.draws(name, changing)
        if not empty:
            return [known[x % count] for x in draws]
        return [None if x % 100 < empty else known[x // 100 * 7919 % count] for x in draws]

    return make


def elsewhere(name: str) -> list[str]:
    """Ids of an object that the simulator does not serve."""
    maker = IdMaker(PREFIXES[name])
    return [maker.make(number) for number in range(_SERVED_ELSEWHERE)]


def _instant(before: int, after: int, empty: int, *, of_change: bool = False) -> Maker:
    """Seconds since 1970, between so many seconds before and after the record was entered."""

    def make(batch: Batch, name: str) -> Column:
        base = batch.modified if of_change else batch.created
        return [
            None if x % 100 < empty else at - before + x // 100 * 7919 % (before + after)
            for at, x in zip(base, batch.draws(name, True), strict=True)
        ]

    return make


def _day(before: int, after: int, empty: int) -> Maker:
    instants = _instant(before * DAY, after * DAY, empty)
    return lambda batch, name: [
        None if at is None else date_text(at) for at in instants(batch, name)
    ]


def _address(batch: Batch, name: str) -> Column:
    parts = [(key, batch.column(part)) for part, key in batch.fields[name].parts]
    if not parts:
        return [None] * len(batch.numbers)
    keys = [key for key, _ in parts]
    return [
        None if set(row) == {None} else dict(zip(keys, row, strict=True))
        for row in zip(*(column for _, column in parts), strict=True)
    ]


def _person(batch: Batch, name: str) -> Column:
    pairs = zip(batch.raw("FirstName"), batch.raw("LastName"), strict=True)
    return [f"{first} {last}" if first else last for first, last in pairs]


def _ids(batch: Batch, name: str) -> Column:
    make = IdMaker(batch.info.prefix).make
    return [make(number) for number in batch.numbers]


def _same_when(name: str, *accepted: str) -> Maker:
    return lambda batch, _: [value in accepted for value in batch.raw(name)]


def _closed_date(batch: Batch, name: str) -> Column:
    closed = zip(batch.raw("IsClosed"), batch.modified, strict=True)
    return [at if shut else None for shut, at in closed]


def _short_account(batch: Batch, name: str) -> Column:
    """An id as an old system kept it: 15 characters, case-sensitive."""
    return [None if id is None else id[:15] for id in _referring("Account")(batch, name)]


def _none(batch: Batch, name: str) -> Column:
    return [None] * len(batch.numbers)


def _body_url(batch: Batch, name: str) -> Column:
    root = "/services/data/v60.0/sobjects/Attachment"
    return [f"{root}/{id}/Body" for id in batch.raw("Id")]


_PARAGRAPHS = [
    f"{a} {b} {c}"
    for n, a in enumerate(words.PHRASES)
    for b in words.PHRASES[: n + 2]
    for c in ("", words.PHRASES[n % 7])
]
_STREETS = [f"{n * 37 % 900 + 1} {s}" for n, s in enumerate(words.STREETS * 12)]
_STREETS += [f"{s}\nSuite {n}" for n, s in enumerate(_STREETS[:9], 1)]
_FIRMS = [f"{firm} {trade}" for firm in words.FIRMS for trade in words.TRADES]
_CLOSED_CASE = ("Closed",)
_STAGES = ["Prospecting", "Qualification", "Proposal", "Negotiation", "Closed Won", "Closed Lost"]
_TAGS = ["red", "green", "blue", "red;blue", "green;blue", "blue;red;green"]

_SPECIAL: dict[str, Maker] = {
    "Id": _ids,
    "IsDeleted": lambda batch, name: list(batch.deleted),
    "IsArchived": lambda batch, name: list(batch.archived),
    "CreatedDate": lambda batch, name: list(batch.created),
    "LastModifiedDate": lambda batch, name: list(batch.modified),
    "SystemModstamp": lambda batch, name: list(batch.stamps),
    "LoginTime": lambda batch, name: list(batch.created),
    "CreatedById": _referring("User"),
    "LastModifiedById": _referring("User", changing=True),
    "OwnerId": _referring("User", changing=True),
    "MasterRecordId": _none,
    "RecurrenceActivityId": _none,
    "ConvertedAccountId": _referring("Account", 80),
    "ConvertedContactId": _referring("Contact", 80),
    "ConvertedOpportunityId": _referring("Opportunity", 80),
    "Account.Name": _odd(_picked(_FIRMS, changing=False)),
    "Account.Type": _picked(["Customer", "Prospect", "Partner"], 10),
    "Account.ParentId": _referring("Account", 90),
    "Account.Health__c": _picked(["Good", "At risk", "Lost"]),
    "AccountNumber": _text("CD{n}", 20),
    "AnnualRevenue": _numbers(90_000_000, 4),
    "Case.CaseNumber": lambda batch, name: [f"{n + 1001:08d}" for n in batch.numbers],
    "Case.Subject": _odd(_picked(words.PROBLEMS)),
    "Case.Status": _picked(["New", "Working", "Escalated", "On Hold", *_CLOSED_CASE * 4]),
    "Case.IsClosed": _same_when("Status", *_CLOSED_CASE),
    "Case.ClosedDate": _closed_date,
    "Case.ParentId": _referring("Case", 95),
    "Case.AccountId": _referring("Account", 5),
    "Case.ContactId": _referring("Contact", 10),
    "Case.Products__c": _picked(_TAGS, 30),
    "Case.Sla_Hours_Left__c": _numbers(48, 4, 20),
    "Case.Reason": _picked(["Installation", "Breakdown", "Billing", "Feedback"], 20),
    "Case.Type": _picked(words.TYPES, 20),
    "Case.Origin": _picked(["Phone", "Email", "Web"]),
    "Opportunity.Name": _odd(_text("Deal {n}")),
    "Opportunity.StageName": _picked(_STAGES),
    "Opportunity.IsClosed": _same_when("StageName", *_STAGES[4:]),
    "Opportunity.IsWon": _same_when("StageName", "Closed Won"),
    "Opportunity.Probability": _picked([0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 100.0]),
    "FiscalQuarter": _picked([1, 2, 3, 4]),
    "FiscalYear": _picked([2023, 2024, 2025]),
    "Fiscal": _picked(["2024 1", "2024 2", "2025 1"]),
    "Task.Subject": _odd(_picked(words.PROBLEMS, changing=False)),
    "Event.Subject": _odd(_picked(words.PROBLEMS, changing=False)),
    "Task.Status": _picked(["Not Started", "In Progress", "Completed", "Completed"]),
    "Task.IsClosed": _same_when("Status", "Completed"),
    "Task.IsHighPriority": _same_when("Priority", "High"),
    "CaseStatus.IsClosed": _same_when("MasterLabel", "Closed"),
    "CaseStatus.MasterLabel": _text("Status {n}"),
    "Priority": _picked(["High", "Medium", "Low"]),
    "StartDateTime": _instant(0, 30 * DAY, 0),
    "Lead.Company": _odd(_picked(_FIRMS, changing=False)),
    "Lead.Status": _picked(["Open", "Contacted", "Qualified", "Unqualified"]),
    "ConvertedDate": _day(0, 90, 80),
    "FirstName": _picked(words.FIRST_NAMES, 5, changing=False),
    "LastName": _odd(_picked(words.LAST_NAMES, changing=False)),
    "Contact.Name": _person,
    "Lead.Name": _person,
    "User.Name": _person,
    "User.LastName": _picked(words.LAST_NAMES, changing=False),
    "User.IsActive": _flag(85),
    "User.Username": _text("user{n}@example.com"),
    "User.Alias": _text("u{n}"),
    "User.UserType": _picked(["Standard"]),
    "User.ManagerId": _referring("User", 30),
    "User.TimeZoneSidKey": _picked(["America/New_York", "Europe/Berlin", "Asia/Kolkata"]),
    "User.AccountId": _none,
    "User.ContactId": _none,
    "Title": _odd(_picked(words.JOB_TITLES, 20)),
    "Salutation": _picked(["Mr.", "Ms.", "Dr."], 40, changing=False),
    "Description": _odd(_picked(_PARAGRAPHS, 25)),
    "Comments": _none,
    "Project__c.Name": _odd(_text("Project {n}")),
    "Project__c.Status__c": _picked(["Planned", "Running", "Done"]),
    "Project__c.Tags__c": _picked(_TAGS, 30),
    "Project__c.Percent_Done__c": _numbers(101, 2, 5),
    "Project__c.Legacy_Account_Id__c": _short_account,
    "Project__c.Notes__c": _odd(_picked(_PARAGRAPHS, 25)),
    "Project__c.Account_Name__c": _picked(_FIRMS, 10),
    "Site__Latitude__s": _numbers(90, 1000, 20),
    "Site__Longitude__s": _numbers(180, 1000, 20),
    "BillingLatitude": _numbers(90, 1000, 60, changing=False),
    "BillingLongitude": _numbers(180, 1000, 60, changing=False),
    "EntityKeyPrefix": _picked(["500"]),
    "Attachment.Body": _body_url,
    "Attachment.Name": _text("scan {n}.pdf"),
    "PhotoUrl": lambda batch, name: [f"/services/images/photo/{id}" for id in batch.raw("Id")],
}
"""Makers of `Object.Field`, or of a field wherever it is."""

_CITY_ENDS = {
    "City": _picked([city for city, _, _ in words.CITIES], 15),
    "State": _picked([state for _, state, _ in words.CITIES], 15),
    "StateCode": _picked([state for _, state, _ in words.CITIES], 15),
    "PostalCode": _picked([code for _, _, code in words.CITIES], 15),
    "CountryCode": _picked(["US", "CH", "GB", "AU", "CA"], 15),
    "Country": _picked(words.COUNTRIES, 15),
    "Street": _picked(_STREETS, 15),
    "GeocodeAccuracy": _picked(["Address", "Zip", "City"], 60),
}

_BY_TYPE: dict[str, Maker] = {
    "string": _text("Text {x}", 30, changing=True),
    "picklist": _picked(["Alpha", "Beta", "Gamma", "Delta"], 20),
    "multipicklist": _picked(_TAGS, 30),
    "textarea": _odd(_picked(_PARAGRAPHS, 40)),
    "phone": _text("+1 555 {x}", 30),
    "email": _text("person{n}@example.com", 20),
    "url": _text("https://example.com/{n}", 30),
    "boolean": _flag(20),
    "int": _numbers(500),
    "double": _numbers(1000, 2),
    "currency": _numbers(25_000_000, 4),
    "percent": _numbers(100, 2),
    "date": _day(30, 60, 30),
    "datetime": _instant(0, 20 * DAY, 50, of_change=True),
    "address": _address,
    "location": _address,
    "base64": _none,
    "id": _ids,
}


_found: dict[tuple[str, Field], Maker] = {}


def _maker(table: str, about: Field) -> Maker:
    found = _found.get((table, about))
    if found is None:
        found = _found[table, about] = _find_maker(table, about)
    return found


def _find_maker(table: str, about: Field) -> Maker:
    special = _SPECIAL.get(f"{table}.{about.name}") or _SPECIAL.get(about.name)
    if special is not None:
        return special
    if about.refers:
        return _referring(about.refers[0], 20)
    for end, maker in _CITY_ENDS.items():
        if about.name.endswith(end) and about.type != "address":
            return maker
    return _BY_TYPE[about.type]
