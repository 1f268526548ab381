"""Makes the records of the eight tables, with the names and types of the fact page.

One function a table, `(cast, rng, number, id, created, updated) -> record`, deterministic from its
arguments. `created` and `updated` are whole seconds since 1970 UTC; `number` counts the table's
records from 0 and decides which carry odd text, so that even a small table has each kind. Absent
values are absent keys, as modern versions of the service write them [SAMPLE].
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar

from avesa_dagster.sandbox import vocabulary as words
from avesa_dagster.sandbox.timestamps import DAY, stamp

T = TypeVar("T")
Payload = dict[str, Any]
Maker = Callable[["Cast", Random, int, int, int, int], Payload]

_API = "https://na.myconnectwise.net/v4_6_release/apis/3.0"
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def to_bytes(record: Payload) -> bytes:
    """The JSON of a record as the service writes it: compact UTF-8."""
    return _encode(record).encode()


def reference(kind: str, path: str, id: int, name: str, **more: Any) -> Payload:
    """A `{id, name, …, _info}` reference to another object."""
    return {"id": id, "name": name, **more, "_info": {f"{kind}_href": f"{_API}/{path}/{id}"}}


def _named(names: list[str]) -> list[Payload]:
    """References to setup tables, ids from 1; they come without links."""
    return [{"id": n, "name": name} for n, name in enumerate(names, 1)]


def pick(rng: Random, options: Sequence[T]) -> T:
    """One of the options; `Random.choice` costs several times as much."""
    return options[int(rng.random() * len(options))]


@dataclass(slots=True)
class Cast:
    """What records refer to: fixed setup tables, and the masters made before them."""

    boards: list[Payload] = field(default_factory=list)
    statuses: list[Payload] = field(default_factory=list)
    types: list[Payload] = field(default_factory=list)
    subtypes: list[Payload] = field(default_factory=list)
    items: list[Payload] = field(default_factory=list)
    teams: list[Payload] = field(default_factory=list)
    priorities: list[Payload] = field(default_factory=list)
    sources: list[Payload] = field(default_factory=list)
    countries: list[Payload] = field(default_factory=list)
    work_types: list[Payload] = field(default_factory=list)
    work_roles: list[Payload] = field(default_factory=list)
    locations: list[Payload] = field(default_factory=list)
    department: Payload = field(default_factory=dict)
    members: list[Payload] = field(default_factory=list)
    companies: list[Payload] = field(default_factory=list)
    contacts: list[Payload] = field(default_factory=list)
    agreements: list[Payload] = field(default_factory=list)
    projects: list[Payload] = field(default_factory=list)
    ticket_ids: list[int] = field(default_factory=list)
    ticket_moments: list[int] = field(default_factory=list)

    @classmethod
    def of_setup_tables(cls) -> Cast:
        """A cast that knows boards, statuses and the like, and no company yet."""
        return cls(
            boards=_named(words.BOARDS),
            statuses=_named(words.STATUSES),
            types=_named(words.TYPES),
            subtypes=_named(words.SUBTYPES),
            items=_named(words.ITEMS),
            teams=_named(words.TEAMS),
            priorities=[
                {"id": n, "name": name, "sort": n} for n, name in enumerate(words.PRIORITIES, 1)
            ],
            sources=_named(words.SOURCES),
            countries=_named(words.COUNTRIES),
            work_types=_named(words.WORK_TYPES),
            work_roles=_named(words.WORK_ROLES),
            locations=_named(["Main", "West"]),
            department={"id": 10, "name": "Services"},
        )

    def ticket_before(self, rng: Random, moment: int) -> int | None:
        """The id of a ticket that existed at that moment, the recent ones likelier."""
        known = bisect_right(self.ticket_moments, moment)
        if not known:
            return None
        return self.ticket_ids[known - 1 - int(min(known - 1, rng.expovariate(1 / 40)))]

    def announce(self, table: str, record: Payload, created: int) -> None:
        """Let later records refer to this one."""
        id = record["id"]
        if table == "members":
            name = f"{record['firstName']} {record['lastName']}"
            who = reference("member", "system/members", id, name, identifier=record["identifier"])
            self.members.append(who)
        elif table == "companies":
            code = record["identifier"]
            firm = reference("company", "company/companies", id, record["name"], identifier=code)
            self.companies.append(firm)
        elif table == "contacts":
            name = " ".join(filter(None, (record.get("firstName"), record.get("lastName"))))
            self.contacts.append(reference("contact", "company/contacts", id, name))
        elif table == "agreements":
            self.agreements.append(
                reference("agreement", "finance/agreements", id, record["name"], type="Managed")
            )
        elif table == "projects":
            self.projects.append(reference("project", "project/projects", id, record["name"]))
        elif table == "tickets":
            self.ticket_ids.append(id)
            self.ticket_moments.append(created)


def odd_text(number: int, plain: str) -> str:
    """The text itself, or for some records text that breaks careless readers."""
    match number % 97:
        case 7:
            return f"{plain} {words.NUL_TEXT}"
        case 19:
            return f"{plain} {words.EMOJI_TEXT}"
        case 31 | 61:
            return f"{plain}\n{words.LINES_TEXT}"
        case 43:
            return f"{plain} " + " ".join(words.PHRASES) * 20
    return plain


def sentences(rng: Random, number: int, most: int) -> str:
    count = 1 + int(rng.random() * most)
    return odd_text(number, " ".join(pick(rng, words.PHRASES) for _ in range(count)))


def custom_fields(rng: Random, number: int) -> list[Payload]:
    """Three custom fields; the value of the first is of another type from record to record."""
    value: Any = (f"A-{number:05d}", number, number / 8, number % 2 == 0, None)[number % 5]
    asset: Payload = {"id": 3, "caption": "Asset Tag", "type": "Text", "entryMethod": "EntryField"}
    asset["numberOfDecimals"] = 0
    if value is not None:
        asset["value"] = value
    approved = {"id": 5, "caption": "Approved On", "type": "Date", "entryMethod": "Date"}
    approved |= {"numberOfDecimals": 0, "connectWiseId": "0b9a3c1e-77a0-4b43-8f1c-3f0c5f7c2a11"}
    risk: Payload = {"id": 8, "caption": "Risk", "type": "Number", "entryMethod": "List"}
    risk |= {"numberOfDecimals": 2, "value": round(rng.random() * 10, 2)}
    return [asset, approved, risk]


def _info(
    cast: Cast, rng: Random, number: int, updated: int, created: int | None, links: list[str]
) -> dict[str, str]:
    by = pick(rng, cast.members)["identifier"] if cast.members else "zadmin"
    info = {
        "lastUpdated": stamp(updated),
        "updatedBy": f"{by:<15}" if number % 11 == 4 else by,
    }
    if created is not None:
        info["dateEntered"] = stamp(created)
        info["enteredBy"] = by
    for link in links:
        kind, _, path = link.partition("=")
        info[f"{kind}_href"] = f"{_API}/{path}"
    return info


def ticket(cast: Cast, rng: Random, number: int, id: int, created: int, updated: int) -> Payload:
    chance = rng.random
    board = pick(rng, cast.boards)
    closed = chance() < 0.8
    status = cast.statuses[5] if closed else cast.statuses[int(chance() * 5)]
    record: Payload = {
        "id": id,
        "summary": odd_text(number, f"{pick(rng, words.PROBLEMS)} #{id}"),
        "recordType": "ServiceTicket" if chance() < 0.95 else "ProjectTicket",
        "board": board,
        "status": status,
    }
    if cast.companies and number % 200 != 150:
        record["company"] = pick(rng, cast.companies)
        record["site"] = {"id": 1, "name": "Main", "_info": None}
        record["siteName"] = "Main"
    if chance() < 0.6:
        city, state, zip_code = pick(rng, words.CITIES)
        record |= {"addressLine1": f"{id % 900} {pick(rng, words.STREETS)}", "city": city}
        record |= {"stateIdentifier": state, "zip": zip_code}
    if cast.contacts and chance() < 0.9:
        contact = pick(rng, cast.contacts)
        record |= {"contact": contact, "contactName": contact["name"]}
        record["contactPhoneNumber"] = f"555{id % 10_000_000:07d}"
        if chance() < 0.8:
            record["contactEmailAddress"] = f"user{contact['id']}@example.com"
    record["type"] = pick(rng, cast.types)
    if chance() < 0.7:
        record["subType"] = pick(rng, cast.subtypes)
        if chance() < 0.6:
            record["item"] = pick(rng, cast.items)
    record["team"] = pick(rng, cast.teams)
    if cast.members and chance() < 0.7:
        record["owner"] = owner = pick(rng, cast.members)
        record["resources"] = owner["identifier"]
    record["priority"] = pick(rng, cast.priorities)
    record["serviceLocation"] = {"id": 4, "name": "Remote"}
    record["source"] = pick(rng, cast.sources)
    if chance() < 0.3:
        record["requiredDate"] = stamp(created + int(chance() * 14 * DAY))
    if chance() < 0.2:
        record["budgetHours"] = int(chance() * 80) / 4
    if cast.agreements and chance() < 0.5:
        record["agreement"] = pick(rng, cast.agreements)
    record |= {
        "severity": pick(rng, words.LEVELS),
        "impact": pick(rng, words.LEVELS),
        "allowAllClientsPortalView": False,
        "customerUpdatedFlag": chance() < 0.2,
        "automaticEmailContactFlag": True,
        "automaticEmailResourceFlag": False,
        "automaticEmailCcFlag": False,
        "closedFlag": closed,
    }
    if closed:
        record["closedDate"] = stamp(updated)
        record["closedBy"] = pick(rng, cast.members)["identifier"] if cast.members else "zadmin"
        record["dateResolved"] = stamp(updated)
        record["resolveMinutes"] = max(0, updated - created) // 60
    record |= {
        "actualHours": int(chance() * 40) / 4,
        "approved": chance() < 0.5,
        "estimatedExpenseCost": 0.0,
        "estimatedExpenseRevenue": 0.0,
        "estimatedProductCost": 0.0,
        "estimatedProductRevenue": 0.0,
        "estimatedTimeCost": 0.0,
        "estimatedTimeRevenue": 0.0,
        "billingMethod": "ActualRates",
        "subBillingMethod": "ActualRates",
        "isInSla": chance() < 0.9,
        "hasChildTicket": False,
        "hasMergedChildTicketFlag": False,
        "billTime": pick(rng, words.BILLABLE),
        "billExpenses": "Billable",
        "billProducts": "Billable",
        "location": cast.locations[0],
        "department": cast.department,
        "sla": {"id": 1, "name": "Standard SLA"},
        "slaStatus": "Resolved" if closed else "Respond by tomorrow",
        "currency": {"id": 7, "symbol": "$", "currencyCode": "USD", "name": "US Dollars"},
    }
    if number % 60 == 33 and cast.ticket_ids:
        record["parentTicketId"] = pick(rng, cast.ticket_ids)
    links = [f"{kind}={path}{id}" for kind, path in _TICKET_LINKS]
    record["_info"] = _info(cast, rng, number, updated, created, links)
    record["customFields"] = custom_fields(rng, number)
    return record


_TICKET_LINKS = [
    ("activities", "sales/activities?conditions=ticket/id="),
    ("timeentries", "time/entries?conditions=chargeToType='ServiceTicket' AND chargeToId="),
]


def time_entry(
    cast: Cast, rng: Random, number: int, id: int, created: int, updated: int
) -> Payload:
    chance = rng.random
    quarters = 1 + int(chance() * 24)
    hours = quarters / 4
    start = created - quarters * 900 - int(chance() * 7200)
    member = pick(rng, cast.members)
    record: Payload = {"id": id}
    if cast.companies:
        record["company"] = pick(rng, cast.companies)
    ticket_id = cast.ticket_before(rng, created) if number % 9 else None
    record["chargeToId"] = ticket_id or 20 + number % 3
    record["chargeToType"] = "ServiceTicket" if ticket_id else "ChargeCode"
    record |= {
        "member": member,
        "locationId": 2,
        "businessUnitId": 10,
        "workType": pick(rng, cast.work_types),
        "workRole": pick(rng, cast.work_roles),
    }
    if cast.agreements and chance() < 0.5:
        record["agreement"] = pick(rng, cast.agreements)
    record |= {"timeStart": stamp(start), "timeEnd": stamp(start + quarters * 900)}
    if chance() < 0.1:
        record["hoursDeduct"] = 0.25
    record |= {"actualHours": hours, "billableOption": pick(rng, words.BILLABLE)}
    if chance() < 0.9:
        record["notes"] = sentences(rng, number, 6)
    if chance() < 0.3:
        record["internalNotes"] = sentences(rng, number + 50, 3)
    record |= {
        "addToDetailDescriptionFlag": True,
        "addToInternalAnalysisFlag": False,
        "addToResolutionFlag": chance() < 0.3,
        "emailResourceFlag": False,
        "emailContactFlag": False,
        "emailCcFlag": False,
        "hoursBilled": hours,
        "invoiceHours": hours,
        "enteredBy": member["identifier"],
        "dateEntered": stamp(created),
        "hourlyRate": 150.0,
        "hourlyCost": f"{hours * 45:.2f}",
        "invoiceReady": int(chance() * 2),
        "status": pick(rng, words.TIME_STATUSES),
        "ticketBoard": pick(rng, words.BOARDS),
        "ticketStatus": pick(rng, words.STATUSES),
        "territory": "Main",
    }
    if ticket_id:
        record["ticket"] = {
            "id": ticket_id,
            "summary": pick(rng, words.PROBLEMS),
            "_info": {"ticket_href": f"{_API}/service/tickets/{ticket_id}"},
        }
    elif cast.projects:
        record["project"] = pick(rng, cast.projects)
    record["_info"] = _info(cast, rng, number, updated, created, [])
    record["customFields"] = custom_fields(rng, number)
    return record


def company(cast: Cast, rng: Random, number: int, id: int, created: int, updated: int) -> Payload:
    name = f"{pick(rng, words.FIRMS)} {pick(rng, words.TRADES)}"
    city, state, zip_code = pick(rng, words.CITIES)
    record: Payload = {
        "id": id,
        "identifier": f"{name[:8].replace(' ', '').replace(chr(39), '')}{id}",
        "name": odd_text(number, name) if number % 97 != 43 else name,
        "status": reference("status", "company/companies/statuses", 1, "Active"),
        "addressLine1": f"{id % 900} {pick(rng, words.STREETS)}",
        "city": city,
        "state": state,
        "zip": zip_code,
        "country": pick(rng, cast.countries),
        "phoneNumber": f"555{id % 10_000_000:07d}",
        "territory": pick(rng, cast.locations),
        "market": reference("market", "company/marketDescriptions", 3, "SMB"),
        "annualRevenue": float(int(rng.random() * 9e6)),
        "numberOfEmployees": 1 + int(rng.random() * 400),
        "leadFlag": False,
        "unsubscribeFlag": False,
        "dateAcquired": stamp(created),
        "deletedFlag": number % 40 == 21,
        "isVendorFlag": number % 25 == 3,
        "types": [reference("type", "company/companies/types", 1, "Client")],
        "integratorTags": [],
    }
    if number % 3 == 0:
        record["addressLine2"] = f"Suite {id % 70}"
        record["website"] = f"https://www.{record['identifier'].lower()}.example"
    if record["deletedFlag"]:
        record |= {"dateDeleted": stamp(updated), "deletedBy": "zadmin"}
    record["_info"] = _info(cast, rng, number, updated, None, [])
    record["customFields"] = custom_fields(rng, number)
    return record


def contact(cast: Cast, rng: Random, number: int, id: int, created: int, updated: int) -> Payload:
    first, last = pick(rng, words.FIRST_NAMES), pick(rng, words.LAST_NAMES)
    record: Payload = {"id": id}
    if number % 45 != 44:
        record["firstName"] = first
    if number % 7:
        record["lastName"] = last
    if cast.companies and number % 30 != 29:
        record["company"] = pick(rng, cast.companies)
    if rng.random() < 0.7:
        record["title"] = odd_text(number, pick(rng, words.JOB_TITLES))
    if rng.random() < 0.3:
        record["department"] = reference("department", "company/contacts/departments", 2, "Sales")
        record["relationship"] = reference(
            "relationship", "company/contacts/relationships", 1, "Boss"
        )
    mail, phone = f"{first.lower()}.{id}@example.com", f"555{id % 10_000_000:07d}"
    items: list[Payload] = []
    if rng.random() < 0.9:
        items.append(_communication(id * 3, "Email", mail, True, domain="@example.com"))
    if rng.random() < 0.7:
        items.append(_communication(id * 3 + 1, "Phone", phone, True, extension="12"))
    if rng.random() < 0.2:
        items.append(_communication(id * 3 + 2, "Email", f"old.{mail}", False))
    record |= {
        "inactiveFlag": number % 15 == 8,
        "marriedFlag": False,
        "childrenFlag": False,
        "disablePortalLoginFlag": True,
        "unsubscribeFlag": False,
        "defaultFlag": False,
        "types": [],
    }
    if items:
        record["communicationItems"] = items
    record["_info"] = _info(cast, rng, number, updated, None, [])
    record["customFields"] = custom_fields(rng, number)
    return record


def _communication(id: int, kind: str, value: str, default: bool, **more: str) -> Payload:
    item: Payload = {"id": id, "type": {"id": 1, "name": kind}, "value": value}
    return item | more | {"defaultFlag": default, "communicationType": kind}


def member(cast: Cast, rng: Random, number: int, id: int, created: int, updated: int) -> Payload:
    first, last = pick(rng, words.FIRST_NAMES), pick(rng, words.LAST_NAMES)
    record: Payload = {
        "id": id,
        "identifier": f"{first[0]}{last[:6]}{id}",
        "firstName": first,
        "lastName": last,
        "title": "Engineer",
        "licenseClass": pick(rng, ["F", "F", "F", "X", "C", "A"]),
        "timeZone": {"id": 1, "name": "US Eastern"},
        "inactiveFlag": number % 9 == 8,
        "officeEmail": f"{last.lower()}{id}@msp.example",
        "defaultEmail": "Office",
        "defaultPhone": "Office",
        "defaultLocation": pick(rng, cast.locations),
        "defaultDepartment": cast.department,
        "workRole": pick(rng, cast.work_roles),
        "hourlyCost": 45.0,
        "hourlyRate": 150.0,
        "dailyCapacity": 8.0,
        "hireDate": stamp(created),
    }
    if record["inactiveFlag"]:
        record["inactiveDate"] = stamp(updated)
    record["_info"] = _info(cast, rng, number, updated, None, [])
    record["customFields"] = custom_fields(rng, number)
    return record


def agreement(cast: Cast, rng: Random, number: int, id: int, created: int, updated: int) -> Payload:
    open_ended = rng.random() < 0.5
    record: Payload = {
        "id": id,
        "name": f"Managed Services {id}",
        "type": reference("type", "finance/agreements/types", 2, "Managed"),
        "startDate": stamp(created - created % DAY),
        "noEndingDateFlag": open_ended,
        "cancelledFlag": number % 12 == 11,
        "applicationUnits": pick(rng, ["Amount", "Hours", "Incidents"]),
        "applicationLimit": 10.0,
        "applicationCycle": "CalendarMonth",
        "billAmount": float(int(rng.random() * 5000)),
        "billingCycle": reference("billingCycle", "finance/billingCycles", 2, "Monthly"),
        "agreementStatus": "Active",
    }
    if cast.companies:
        record["company"] = pick(rng, cast.companies)
    if not open_ended:
        record["endDate"] = stamp(created - created % DAY + 365 * DAY)
    info = _info(cast, rng, number, updated, None, [])
    record["_info"] = info | {"createdDate": stamp(created), "createdBy": info["updatedBy"]}
    record["customFields"] = custom_fields(rng, number)
    return record


def project(cast: Cast, rng: Random, number: int, id: int, created: int, updated: int) -> Payload:
    record: Payload = {
        "id": id,
        "name": f"{pick(rng, ['Office move', 'Cloud migration', 'Wi-Fi refresh'])} {id}",
        "status": reference("status", "project/statuses", 1, "Open"),
        "billingMethod": pick(rng, ["ActualRates", "FixedFee", "NotToExceed", "OverrideRate"]),
        "closedFlag": number % 3 == 0,
        "percentComplete": int(rng.random() * 100) / 100,
        "actualHours": int(rng.random() * 400) / 4,
        "estimatedStart": stamp(created),
        "estimatedEnd": stamp(created + 90 * DAY),
        "estimatedHours": 80.0,
    }
    if cast.companies:
        record["company"] = pick(rng, cast.companies)
    if cast.members:
        record["manager"] = pick(rng, cast.members)
    if cast.agreements and rng.random() < 0.5:
        record["agreement"] = pick(rng, cast.agreements)
    record["_info"] = _info(cast, rng, number, updated, None, [])
    record["customFields"] = custom_fields(rng, number)
    return record


def product(cast: Cast, rng: Random, number: int, id: int, created: int, updated: int) -> Payload:
    sku = pick(rng, words.CATALOG)
    cost = round(rng.random() * 900, 2)
    record: Payload = {
        "id": id,
        "catalogItem": reference("catalog", "procurement/catalog", 1 + id % 7, sku, identifier=sku),
        "description": odd_text(number, f"{sku} for site"),
        "quantity": float(1 + int(rng.random() * 9)),
        "price": round(cost * 1.3, 2),
        "cost": cost,
        "discount": 0.0,
        "billableOption": pick(rng, ["Billable", "DoNotBill", "NoCharge"]),
        "taxableFlag": True,
        "cancelledFlag": False,
        "purchaseDate": stamp(created),
    }
    if cast.companies:
        record["company"] = pick(rng, cast.companies)
    ticket_id = cast.ticket_before(rng, created)
    if ticket_id:
        record["ticket"] = {"id": ticket_id, "summary": pick(rng, words.PROBLEMS)}
    if cast.agreements and rng.random() < 0.3:
        record["agreement"] = pick(rng, cast.agreements)
    record["_info"] = _info(cast, rng, number, updated, None, [])
    record["customFields"] = custom_fields(rng, number)
    return record


MAKERS: dict[str, Maker] = {
    "members": member,
    "companies": company,
    "contacts": contact,
    "agreements": agreement,
    "projects": project,
    "tickets": ticket,
    "time_entries": time_entry,
    "products": product,
}
"""Table name to maker, in the order in which one refers to another."""

MASTERS = frozenset({"members", "companies", "contacts"})
"""Tables whose records may be older than the world's years."""


def revise(
    table: str, record: Payload, rng: Random, revision: int, updated: int, by: str
) -> Payload:
    """The record after somebody changed it: always different, sometimes a value set to nothing."""
    changed = dict(record)
    if table in ("tickets", "time_entries", "projects"):
        changed["actualHours"] = (record.get("actualHours") or 0) + 0.25
    if table == "tickets":
        changed["status"] = {"id": 1 + revision % 7, "name": words.STATUSES[revision % 7]}
        if revision % 3 == 0:
            changed.pop("owner", None)
            changed.pop("resources", None)
    elif table == "time_entries":
        changed["notes"] = f"{pick(rng, words.PHRASES)} (revision {revision})"
    elif table == "companies":
        changed["numberOfEmployees"] = (record.get("numberOfEmployees") or 0) + 1
    elif table == "contacts":
        changed["nickName"] = f"revision {revision}"
        if revision % 2 == 0:
            changed.pop("title", None)
    elif table == "members":
        changed["title"] = f"Engineer, grade {revision}"
    elif table == "agreements":
        changed["billAmount"] = (record.get("billAmount") or 0) + 10.0
    elif table == "products":
        changed["quantity"] = (record.get("quantity") or 0) + 1.0
    changed["customFields"] = custom_fields(rng, revision)
    info = record.get("_info") or {}
    changed["_info"] = info | {"lastUpdated": stamp(updated), "updatedBy": by}
    return changed
