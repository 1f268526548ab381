"""Encoded queries: what they select, what is dropped from them, and keysets over them."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avesa_dagster.sandbox.servicenow.query import matches, parse
from avesa_dagster.sandbox.servicenow.stamps import Zone, stored
from avesa_dagster.sandbox.servicenow.world import World, WorldSpec

from .conftest import Client, Rows, keyset_pages

ORDER = "^ORDERBYsys_updated_on^ORDERBYsys_id"


def values(rows: Rows, column: str) -> set[str]:
    return {row[column] for row in rows}


def test_comparisons_on_text_and_numbers(client: Client) -> None:
    rows = client.rows("incident")
    every = values(rows, "priority")
    assert every == {"1", "2", "3", "4"}
    for clause, wanted in {
        "priority=2": {"2"},
        "priority!=2": every - {"2"},
        "priority>2": {"3", "4"},
        "priority>=2": {"2", "3", "4"},
        "priority<2": {"1"},
        "priority<=2": {"1", "2"},
        "priorityIN1,3": {"1", "3"},
        "priorityBETWEEN2@3": {"2", "3"},
        "priority=1^ORpriority=4": {"1", "4"},
        "priority=1^NQpriority=3": {"1", "3"},
        "priority>1^priority<4": {"2", "3"},
    }.items():
        found = client.rows("incident", query=clause)
        assert values(found, "priority") == wanted, clause
        assert (
            len(found)
            == sum(row["priority"] in wanted for row in rows)
            == client.count("incident", clause)
        )


def test_text_operators_and_missing_values(client: Client) -> None:
    rows = client.rows("incident", exclude_reference_link="true")
    for clause, wanted in {
        "short_descriptionLIKEprinter": lambda r: "printer" in r["short_description"].lower(),
        "short_descriptionSTARTSWITHVPN": lambda r: r["short_description"].startswith("VPN"),
        "numberENDSWITH7": lambda r: r["number"].endswith("7"),
        "closed_atISEMPTY": lambda r: r["closed_at"] == "",
        "closed_atISNOTEMPTY": lambda r: r["closed_at"] != "",
        "company=": lambda r: r["company"] == "",
        "close_code!=Solved (Permanently)": lambda r: r["close_code"] == "",
    }.items():
        mine = {row["sys_id"] for row in rows if wanted(row)}
        assert mine and set(client.ids("incident", query=clause)) == mine, clause
    company = next(row["company"] for row in rows if row["company"])
    assert values(client.rows("incident", query=f"company={company}^active=true"), "active") == {
        "true"
    }


def test_instants(client: Client) -> None:
    moments = [row["sys_updated_on"] for row in client.rows("incident", query=ORDER)]
    middle = moments[150]
    for clause, kept in {
        f"sys_updated_on>={middle}": lambda m: m >= middle,
        f"sys_updated_on>{middle}": lambda m: m > middle,
        f"sys_updated_on<{middle}": lambda m: m < middle,
        f"sys_updated_on<={middle}": lambda m: m <= middle,
        f"sys_updated_on={middle}": lambda m: m == middle,
        f"sys_updated_on!={middle}": lambda m: m != middle,
        f"sys_updated_onBETWEEN{moments[20]}@{middle}": lambda m: moments[20] <= m <= middle,
        f"sys_updated_on>={middle[:10]}": lambda m: m >= middle[:10],
    }.items():
        found = [row["sys_updated_on"] for row in client.rows("incident", query=clause + ORDER)]
        assert found == [moment for moment in moments if kept(moment)], clause


def test_generated_dates_are_in_the_zone_of_the_user(client: Client) -> None:
    generated = "sys_updated_on>=javascript:gs.dateGenerate('2025-01-01','00:00:00')"

    def least() -> str:
        found = client.rows("incident", query=generated + ORDER, limit=1)
        return str(found[0]["sys_updated_on"])

    literal = client.count("incident", "sys_updated_on>=2025-01-01 08:00:00")
    assert client.count("incident", generated) == literal  # the user is in Los Angeles
    client.control("user", time_zone="GMT")
    assert client.count("incident", generated) == client.count(
        "incident", "sys_updated_on>=2025-01-01 00:00:00"
    )
    client.control("mutate", table="incident", count=1, at="2024-12-31T20:00:00Z")
    before = least()
    client.control("user", time_zone="Asia/Tokyo")
    assert least() < before


def test_orders(client: Client) -> None:
    down = [row["number"] for row in client.rows("incident", query="ORDERBYDESCnumber")]
    assert down == sorted(down, reverse=True) and len(down) == 300
    mixed = client.rows("incident", query="ORDERBYpriority^ORDERBYDESCsys_updated_on")
    assert [r["priority"] for r in mixed] == sorted(r["priority"] for r in mixed)
    urgent = [row["sys_updated_on"] for row in mixed if row["priority"] == "1"]
    assert urgent == sorted(urgent, reverse=True)


@pytest.mark.parametrize(
    "invalid",
    [
        "no_such_field=1",
        "sys_updated_on>=2025-06-01T00:00:00Z",
        "sys_updated_on>=yesterday",
        "sys_updated_on>=javascript:gs.daysAgo(1)",
        "sys_updated_onAFTER2025-06-01",
        "sys_updated_on",
        "company.name=Contoso",
    ],
)
def test_invalid_clauses_are_dropped_without_a_word(client: Client, invalid: str) -> None:
    assert len(client.ids("incident", query=invalid)) == 300
    assert client.count("incident", invalid) == 300
    assert client.count("incident", f"priority=1^{invalid}") == client.count(
        "incident", "priority=1"
    )
    assert client.count("incident", f"priority=1^NQ{invalid}") == 300
    assert client.count("incident", f"{invalid}^ORpriority=1") in (
        300,
        client.count("incident", "priority=1"),
    )
    client.control("property", name="glide.invalid_query.returns_no_rows", value=True)
    assert client.ids("incident", query=f"priority=1^{invalid}") == []
    assert client.count("incident", invalid) == 0
    assert client.count("incident", "priority=1") > 0


@pytest.mark.parametrize("size", [1, 7, 40])
def test_a_keyset_walk_gives_every_row_once(client: Client, size: int) -> None:
    client.control("mutate", table="incident", count=30, at="2025-03-03T03:03:03Z")
    start, end = "2025-01-01 00:00:00", "2025-06-01 00:00:00"
    pages = keyset_pages(client, "incident", start, end, size)
    walked = [row["sys_id"] for page in pages for row in page]
    truth = client.truth("incident")
    moments = {sys_id: about["updated_at"] for sys_id, about in truth.items()}
    wanted = [s for s, at in moments.items() if "2025-01-01T00" <= at < "2025-06-01T00"]
    assert sorted(walked) == sorted(wanted) and len(walked) > 60
    assert all(len(page) == size for page in pages[:-2])
    assert walked == sorted(walked, key=lambda sys_id: (moments[sys_id], sys_id))


def test_a_walk_by_sys_id(client: Client) -> None:
    walked: list[str] = []
    while True:
        last = walked[-1] if walked else ""
        query = f"sys_id>{last}^ORDERBYsys_id" if last else "ORDERBYsys_id"
        page = client.ids("task", query=query, limit=70)
        walked += page
        if not page:
            break
    assert walked == sorted(client.alive("task")) and len(walked) == 360
    assert client.count("task", "sys_id>=4^sys_id<8") == sum("4" <= s < "8" for s in walked)
    assert client.count("task", f"sys_idIN{walked[3]},{walked[9]},nothing") == 2


WORLD = World(11, WorldSpec(incidents=60, changes=12, problems=5, tasks=3), 1_749_000_000)
_edges = sorted(
    {WORLD.store_of("task").latest(n).updated or 0 for n in range(len(WORLD.store_of("task")))}
)[::9]
_ids = sorted(WORLD.store_of("task").sys_id(n) for n in range(0, 60, 7))
_moments = st.sampled_from([stored(edge) for edge in _edges])
_clauses = st.one_of(
    st.builds(
        "{}{}{}".format,
        st.sampled_from(["sys_updated_on", "sys_updated_on", "sys_created_on"]),
        st.sampled_from([">=", ">", "<", "<=", "=", "!="]),
        _moments,
    ),
    st.builds("sys_updated_onBETWEEN{}@{}".format, _moments, _moments),
    st.builds(
        "sys_id{}{}".format,
        st.sampled_from([">", ">=", "<", "<=", "=", "!="]),
        st.sampled_from([*_ids, "7", ""]),
    ),
    st.builds("sys_idIN{}".format, st.lists(st.sampled_from(_ids), max_size=4).map(",".join)),
    st.sampled_from(["priority=1", "active=true", "nonsense=1", "sys_class_name=incident"]),
)
_joined = st.lists(st.tuples(st.sampled_from(["^", "^", "^OR", "^NQ"]), _clauses), max_size=6)
_orders = st.sampled_from(
    [
        "",
        "^ORDERBYsys_id",
        "^ORDERBYDESCsys_id",
        ORDER,
        "^ORDERBYDESCsys_updated_on^ORDERBYDESCsys_id",
        "^ORDERBYsys_created_on^ORDERBYsys_id",
        "^ORDERBYsys_updated_on",
        "^ORDERBYpriority^ORDERBYDESCsys_id",
    ]
)


@settings(max_examples=200, deadline=None)
@given(_joined, _orders, st.sampled_from(["task", "incident"]), st.integers(1, 30))
def test_the_planner_selects_what_reading_every_row_would(
    parts: list[tuple[str, str]], order: str, table: str, size: int
) -> None:
    text = "".join(joint + clause for joint, clause in parts).lstrip("^") + order
    selector, zone = WORLD.selector_of(table), Zone("UTC")
    query = parse(text, WORLD.schema.columns(table), zone)
    value = {number: WORLD.value_of(table, number) for number in WORLD.numbers(table)}
    wanted = [n for n in value if any(matches(block, value[n]) for block in query.blocks)]
    axis, selected = selector.select(table, query)
    assert sorted(selected) == sorted(wanted) and len(selected) == len(wanted)
    walked = []
    for start in range(0, len(wanted) + size, size):
        walked += selector.ordered(table, query, axis, selected, start, size, None)
    assert sorted(walked) == sorted(wanted)
    for name, down in reversed(query.order):
        wanted.sort(key=lambda n, name=name: value[n](name), reverse=down)
    assert walked == wanted or not order.endswith("sys_id")


def test_zones_with_summer_time_are_read_and_shown_alike() -> None:
    zone, moment = Zone("Australia/Lord_Howe"), datetime(2024, 1, 1)
    for hours in range(0, 9000, 37):
        text = f"{moment + timedelta(hours=hours):%Y-%m-%d %H:%M:%S}"
        instant = zone.instant(text)
        assert instant is not None
        assert zone.display(instant) == text or "2024-10-06" in text
