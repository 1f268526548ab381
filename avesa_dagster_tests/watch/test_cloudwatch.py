"""What is published to CloudWatch, read back from it over real HTTP."""

from __future__ import annotations

import gzip
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from avesa_dagster.aws import client
from avesa_dagster.catalog.models import Catalog
from avesa_dagster.control.base import BudgetUse, ChunkState, TenantService
from avesa_dagster.control.health import Alarm, Sample
from avesa_dagster.control.jobs import Job, JobStatus, Processing, Trigger
from avesa_dagster.control.sqlite import SqliteControl
from avesa_dagster.errors import ConfigurationError, RetriableError, TimedOut
from avesa_dagster.watch import cloudwatch
from avesa_dagster.watch.cloudwatch import Detail, detail, publish
from avesa_dagster.watch.conversation import Patience
from avesa_dagster.watch.metrics import Meter, StoresCollector
from avesa_dagster_tests.control.conftest import open_dynamodb
from avesa_dagster_tests.moto import Moto

from .conftest import NOW
from .servers import listening

TEMPLATE = Path(__file__).parents[2] / "deploy" / "aws" / "avesa.yaml"
PIPELINE = "AVESA/DataPipeline"
Figure = dict[str, float]


@dataclass
class Site:
    """Control tables that are published, and the CloudWatch that takes it."""

    control: Any
    catalog: Catalog
    environment: str = field(default_factory=lambda: f"t{uuid.uuid4().hex[:12]}")

    def connect(
        self, tenant: str = "acme", *tables: str, service: str = "connectwise"
    ) -> TenantService:
        row: TenantService = self.control.registry.connect(
            tenant,
            service,
            history_start=NOW - timedelta(days=400),
            tables=tables or ("tickets",),
            requests_per_minute=None,
            now=NOW - timedelta(hours=2),
        )
        return row

    def publish(self, now: datetime = NOW, **more: Any) -> int:
        return publish(self.control, self.catalog, self.environment, now, **more)

    def chunk(self, tenant: str = "acme", seconds: float = 3.0, **more: Any) -> None:
        figures = {"records": 10, "requests": 4, "retries": 1, "state": ChunkState.COMPLETED}
        Meter(self.control.counters).chunk(
            tenant, more.pop("service", "connectwise"), more.pop("table", "tickets"),
            seconds=seconds, **{**figures, **more},
        )  # fmt: skip

    def job(self, job_id: str, status: JobStatus, **more: Any) -> None:
        ended = None if status in (JobStatus.RUNNING, JobStatus.PENDING) else NOW
        made = Job(
            job_id, "acme", "connectwise", ("tickets",), NOW - timedelta(days=9), NOW,
            Trigger.PERSON, NOW - timedelta(hours=1), NOW, status, completed_at=ended,
        )  # fmt: skip
        self.control.jobs.create(replace(made, **more))

    def figure(self, namespace: str, name: str, *place: str) -> Figure | None:
        """What CloudWatch says of a metric; None if it knows none with just these dimensions."""
        keys = ("Environment", "Tenant", "Service", "Table")
        values = zip(keys, (self.environment, *place), strict=False)
        metric = {
            "Namespace": namespace,
            "MetricName": name,
            "Dimensions": [{"Name": key, "Value": value} for key, value in values],
        }
        stats = ("Sum", "Minimum", "Maximum", "Average", "SampleCount")
        said = client("cloudwatch").get_metric_data(
            MetricDataQueries=[
                {
                    "Id": stat.lower(),
                    "MetricStat": {"Metric": metric, "Period": 172_800, "Stat": stat},
                }
                for stat in stats
            ],
            StartTime=NOW - timedelta(hours=12),
            EndTime=NOW + timedelta(hours=12),
        )["MetricDataResults"]
        found = {one["Id"]: one["Values"] for one in said}
        assert {len(values) for values in found.values()} <= {0, 1}
        return {stat: found[stat.lower()][0] for stat in stats if found[stat.lower()]} or None

    def total(self, namespace: str, name: str, *place: str) -> float | None:
        found = self.figure(namespace, name, *place)
        return None if found is None else found["Sum"]

    def published(self) -> set[tuple[str, ...]]:
        """Namespace, name and dimensions without the environment, of every metric."""
        pages = (
            client("cloudwatch")
            .get_paginator("list_metrics")
            .paginate(Dimensions=[{"Name": "Environment", "Value": self.environment}])
        )
        return {
            (m["Namespace"], m["MetricName"], *(d["Value"] for d in m["Dimensions"][1:]))
            for page in pages
            for m in page["Metrics"]
        }


@pytest.fixture
def site(aws: Moto, control: SqliteControl, catalog: Catalog) -> Site:
    return Site(control, catalog)


@pytest.fixture(params=["sqlite", "dynamodb"])
def any_site(
    request: pytest.FixtureRequest, aws: Moto, tmp_path: Path, catalog: Catalog
) -> Iterator[Site]:
    opened = SqliteControl(tmp_path / "c.db") if request.param == "sqlite" else None
    control = opened or open_dynamodb(tmp_path)
    yield Site(control, catalog)
    if opened:
        opened.close()


def test_what_was_counted_arrives_once_at_each_level(any_site: Site) -> None:
    site = any_site
    site.connect("acme", "tickets", "companies")
    site.connect("other")
    site.chunk()
    site.chunk(table="companies", records=7)
    site.chunk(tenant="other", records=100, seconds=200)
    site.chunk(records=0, retries=0, state=ChunkState.FAILED, seconds=1.0)
    site.publish(finest=Detail.TABLE)
    site.publish(NOW + timedelta(minutes=1), finest=Detail.TABLE)
    whole = {
        "RecordsProcessed": 117, "ChunkRecordsProcessed": 117, "ChunkApiCalls": 16,
        "RequestRetries": 3, "ChunkProcessed": 3, "ChunkErrors": 1,
    }  # fmt: skip
    assert {name: site.total(PIPELINE, name) for name in whole} == whole
    assert site.total("DataQuality/Ingestion", "IngestionErrors") == 1
    mine = ("acme", "connectwise")
    assert site.total(PIPELINE, "ChunkRecordsProcessed", *mine) == 17
    assert site.total(PIPELINE, "ChunkRecordsProcessed", *mine, "companies") == 7
    assert site.total(PIPELINE, "ChunkApiCalls", *mine, "tickets") == 8
    assert site.total(PIPELINE, "ChunkErrors", *mine, "tickets") == 1
    assert site.total(PIPELINE, "ChunkErrors", "other", "connectwise") is None
    assert site.total(PIPELINE, "RecordsProcessed", *mine) is None
    site.chunk()
    site.publish(NOW + timedelta(minutes=2), finest=Detail.TABLE)
    assert site.total(PIPELINE, "RecordsProcessed") == 127
    assert site.total(PIPELINE, "ChunkRecordsProcessed", *mine, "tickets") == 20


def test_the_time_of_chunks_has_their_number_sum_and_bounds(site: Site) -> None:
    site.connect()
    for seconds in (0.3, 3.0, 4.0, 5000.0):
        site.chunk(seconds=seconds)
    site.publish()
    found = site.figure(PIPELINE, "ChunkProcessingTime", "acme", "connectwise")
    assert found is not None
    assert found["SampleCount"] == 4
    assert found["Sum"] == pytest.approx(5007.3)
    assert found["Minimum"] <= 0.3 and found["Maximum"] >= 5000
    for seconds in (7.0, 8.0):
        site.chunk(seconds=seconds)
    site.environment = f"{site.environment}b"
    site.publish(NOW + timedelta(minutes=1))
    found = site.figure(PIPELINE, "ChunkProcessingTime")
    assert found is not None
    assert (found["SampleCount"], found["Average"]) == (2, pytest.approx(7.5))
    assert (found["Minimum"], found["Maximum"]) == (5.0, 10.0)


def test_what_holds_at_present(site: Site) -> None:
    mine, other = site.connect("acme", "tickets", "companies"), site.connect("other")
    site.control.watermarks.advance(
        "acme", "connectwise", "tickets",
        lower=NOW - timedelta(days=1), upper=NOW - timedelta(minutes=30), now=NOW,
    )  # fmt: skip
    site.control.breakers.failed("acme", "connectwise", "401", credentials=True, now=NOW)
    site.control.alarms.put(
        Alarm("disagrees/acme/connectwise/tickets", "acme", "text", NOW),
        Alarm("disagrees/acme/connectwise/tickets@log", "acme", "text", NOW),
        Alarm("late/other/connectwise/tickets", "other", "text", NOW),
    )
    site.job("running", JobStatus.RUNNING)
    for table, extra in (("tickets", {"disagrees": "3 windows"}), ("companies", {})):
        for row in (mine, other):
            place = (row.tenant, "connectwise", table)
            lane = f"verify/{'/'.join(place)}"
            said = extra if row is mine else {}
            site.control.processing.beat(
                Processing(f"run-{place}", *place, lane, "verify", NOW, NOW, status="completed",
                           extra={"reached": "2026-01-01", **said})
            )  # fmt: skip
    site.publish(finest=Detail.TABLE, budget=lambda row: BudgetUse(200, 50, extra={"waiting": "7"}))
    fresh = ("DataQuality/Completeness", "DataFreshness")
    assert site.total(*fresh, "acme", "connectwise", "tickets") == 0.5
    assert site.total(*fresh, "acme", "connectwise", "companies") == 2
    whole = site.figure(*fresh)
    assert whole is not None
    assert (whole["Maximum"], whole["Minimum"], whole["SampleCount"]) == (2, 0.5, 3)
    suspended = ("AVESA/DataPipeline/Errors", "ServiceSuspended")
    assert site.total(*suspended) == site.total(*suspended, "acme", "connectwise") == 1
    assert site.total(*suspended, "other", "connectwise") is None
    assert site.total("DataQuality/Completeness", "DataLoss") == 1
    assert site.total("AVESA/DataPipeline/Notifications", "StandingAlarms") == 2
    assert site.total(PIPELINE, "JobsRunning") == 1
    assert site.total(PIPELINE, "JobsPending") == 0
    budget = site.figure(PIPELINE, "BudgetUsed")
    assert budget is not None
    assert budget["Average"] == 25
    assert site.total(PIPELINE, "RequestsWaiting") == 14
    # Of the three connected tables that were compared, one disagrees; `other` has no companies.
    score = ("DataQuality/Completeness", "CompletenessScore")
    assert site.total(*score) == pytest.approx(200 / 3)
    assert site.total(*score, "acme", "connectwise") == 50
    assert site.total(*score, "other", "connectwise") == 100


def test_a_score_of_nothing_is_not_published(site: Site) -> None:
    site.connect()
    site.publish()
    assert site.total("DataQuality/Completeness", "CompletenessScore") is None
    assert site.total("DataQuality/Completeness", "DataLoss") == 0


def test_each_end_of_a_job_counts_once(any_site: Site) -> None:
    site, ends = any_site, "AVESA/DataPipeline/Completion"
    site.connect()
    site.job("good", JobStatus.COMPLETED)
    site.job("partly", JobStatus.COMPLETED_WITH_ERRORS)
    site.job("bad", JobStatus.FAILED)
    site.job("unwanted", JobStatus.CANCELLED)
    site.job("under-way", JobStatus.RUNNING)
    site.job("long-ago", JobStatus.FAILED, completed_at=NOW - timedelta(days=8))
    site.publish()
    site.publish(NOW + timedelta(minutes=1))
    assert site.total(ends, "JobCompleted") == 1
    assert (
        site.total(ends, "JobFailed") == site.total(ends, "JobFailed", "acme", "connectwise") == 2
    )

    def again(job: Job) -> Job:
        return replace(job, completed_at=NOW + timedelta(minutes=5))

    site.control.jobs.change("bad", again, now=NOW)  # retried, and it failed again
    site.publish(NOW + timedelta(minutes=6))
    assert site.total(ends, "JobFailed") == 3


def test_more_jobs_than_are_read_at_first(site: Site) -> None:
    site.connect()
    for number in range(cloudwatch._JOBS + 30):
        site.job(f"j{number}", JobStatus.COMPLETED, completed_at=NOW - timedelta(seconds=number))
    site.publish()
    assert site.total("AVESA/DataPipeline/Completion", "JobCompleted") == cloudwatch._JOBS + 30


@pytest.mark.parametrize("finest", list(Detail))
def test_the_detail_says_which_levels_there_are(site: Site, finest: Detail) -> None:
    site.connect()
    site.chunk()
    site.publish(finest=finest)
    assert {len(known) - 2 for known in site.published()} == {
        Detail.ENVIRONMENT: {0}, Detail.SERVICE: {0, 2}, Detail.TABLE: {0, 2, 3},
    }[finest]  # fmt: skip


def test_the_variable_of_the_detail() -> None:
    assert detail({}) is detail({"AVESA_METRICS_DETAIL": "service"}) is Detail.SERVICE
    assert detail({"AVESA_METRICS_DETAIL": "table"}) is Detail.TABLE
    assert detail({"AVESA_METRICS_DETAIL": "environment"}) is Detail.ENVIRONMENT
    with pytest.raises(ConfigurationError, match="AVESA_METRICS_DETAIL is 'all'"):
        detail({"AVESA_METRICS_DETAIL": "all"})


def test_what_cloudwatch_does_not_take_is_published_later(
    site: Site, moto: Moto, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.connect()
    site.chunk()
    with listening(lambda connection: None) as port:
        pass  # nobody listens there any more
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    client.cache_clear()
    for _ in range(2):
        with pytest.raises(RetriableError, match=r"CloudWatch.*cannot be reached"):
            site.publish()
        site.chunk()
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto.url)
    client.cache_clear()
    site.publish()
    assert site.total(PIPELINE, "RecordsProcessed") == 30


def test_a_cloudwatch_that_says_nothing_holds_nobody(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.connect()

    def silent(connection: socket.socket) -> None:
        while connection.recv(65_536):
            pass

    with listening(silent) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        client.cache_clear()
        began = time.monotonic()
        with pytest.raises(TimedOut, match="CloudWatch did not finish"):
            site.publish(patience=Patience(step=0.9, whole=1.0))
        assert time.monotonic() - began < 2.5
    with pytest.raises(TimedOut, match="CloudWatch took 0 figures"):
        site.publish(patience=Patience(step=1, whole=0))


def test_who_dies_before_it_remembers_publishes_one_call_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.connect()
    site.chunk()

    def dies(self: object, amounts: Sequence[Sample]) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(type(site.control.counters), "add", dies)
        with pytest.raises(KeyboardInterrupt):
            site.publish()
    site.publish()
    site.publish()
    assert site.total(PIPELINE, "RecordsProcessed") == 20


def test_two_publishers_at_once_publish_less_afterwards(site: Site) -> None:
    """Both read, then both publish: what was too much is held back from the next."""
    site.connect()
    site.chunk(records=10)
    together = threading.Barrier(2)
    counters = site.control.counters

    class Slow:
        def __getattr__(self, name: str) -> Any:
            return getattr(counters, name)

        def all(self) -> list[Sample]:
            samples: list[Sample] = counters.all()
            together.wait(10)
            return samples

    class Beside:
        counters = Slow()

        def __getattr__(self, name: str) -> Any:
            return getattr(site.control, name)

    def one() -> None:
        publish(Beside(), site.catalog, site.environment, NOW)

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert site.total(PIPELINE, "RecordsProcessed") == 20
    for _ in range(3):
        site.chunk(records=10)
        site.publish()
    assert site.total(PIPELINE, "RecordsProcessed") == 40


def test_an_erased_tenant_leaves_nothing(site: Site) -> None:
    site.connect("acme")
    site.connect("other")
    site.chunk()
    site.chunk(tenant="other")
    site.publish()
    # While it is erased a publication is under way, which remembers after its counters are gone.
    site.control.registry.disconnect("acme", "connectwise", now=NOW)
    site.control.counters.forget("acme")
    site.control.registry.forget("acme")
    late = (("service", "connectwise"), ("table", "tickets"), ("tenant", "acme"))
    site.control.counters.add([Sample(f"cloudwatch/{PIPELINE}/avesa_records_total", late, 10)])
    site.publish()
    assert not [s for s in site.control.counters.all() if dict(s.labels)["tenant"] == "acme"]
    assert [s for s in site.control.counters.all() if dict(s.labels)["tenant"] == "other"]


def test_what_was_published_is_no_metric_for_prometheus(site: Site) -> None:
    site.connect()
    site.chunk()
    before = [f.name for f in StoresCollector(site.control, site.catalog, lambda: NOW).collect()]
    site.publish()
    after = [f.name for f in StoresCollector(site.control, site.catalog, lambda: NOW).collect()]
    assert after == before


def test_counters_of_others_are_not_published(site: Site) -> None:
    site.connect()
    labels = (("service", "connectwise"), ("table", "tickets"), ("tenant", "acme"))
    odd = (("service", "connectwise"), ("table", "tic kets\n"), ("tenant", "acme"))
    unknown = (("service", "connectwise"), ("table", "tickets"), ("tenant", "nobody"))
    site.control.counters.add(
        [
            Sample("other_total", labels, 5),
            Sample("avesa_records_total", odd, 5),
            Sample("avesa_records_total", unknown, 5),
            Sample("avesa_records_total", (), 5),
        ]
    )
    site.publish()
    assert site.total(PIPELINE, "RecordsProcessed") is None


class Taken:
    """A CloudWatch that takes everything, and keeps how large each call was."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, connection: socket.socket) -> None:
        data = b""
        while True:
            while b"\r\n\r\n" not in data:
                part = connection.recv(65_536)
                if not part:
                    return
                data += part
            head, _, body = data.partition(b"\r\n\r\n")
            fields = dict(line.decode().lower().split(": ", 1) for line in head.split(b"\r\n")[1:])
            while len(body) < int(fields["content-length"]):
                body += connection.recv(1 << 20)
            packed = fields.get("content-encoding") == "gzip"
            self.sizes.append(len(gzip.decompress(body) if packed else body))
            answer = b"\xbf\xff"
            connection.sendall(
                b"HTTP/1.1 200 OK\r\nsmithy-protocol: rpc-v2-cbor\r\n"
                b"Content-Type: application/cbor\r\nContent-Length: 2\r\n\r\n" + answer
            )
            data = b""


def test_calls_are_small_enough_and_hold_everything(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With names as long as can be."""
    tables = ("tickets", "time_entries", "companies", "contacts")
    for number in range(30):
        tenant = f"{number:02}".ljust(63, "x")
        site.connect(tenant, *tables)
        for table in tables:
            site.chunk(tenant, table=table, seconds=12.3)
    taken = Taken()
    with listening(taken) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        client.cache_clear()
        published = site.publish(finest=Detail.TABLE)
    assert published > 30 * 4 * 5
    assert len(taken.sizes) >= published // 500
    assert max(taken.sizes) < 500_000  # of 1,000,000
    monkeypatch.undo()


def test_every_part_of_what_was_counted_is_in_one_call(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So small calls are as right as large ones."""
    monkeypatch.setattr(cloudwatch, "_MOST", 12)
    for tenant in ("a", "b", "c"):
        site.connect(tenant)
        site.chunk(tenant)
        site.chunk(tenant, state=ChunkState.FAILED, records=0)
    site.publish(finest=Detail.TABLE)
    site.publish(finest=Detail.TABLE)
    assert site.total(PIPELINE, "RecordsProcessed") == 30
    assert site.total(PIPELINE, "ChunkErrors") == 3
    assert site.total(PIPELINE, "ChunkRecordsProcessed", "b", "connectwise", "tickets") == 10


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_whatever_fails_nothing_is_lost(data: st.DataObject) -> None:
    """Each figure of CloudWatch is what was counted, or more by calls that failed after they
    arrived."""
    names = st.sampled_from(["avesa_records_total", "avesa_requests_total", "avesa_retries_total"])
    counted: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    arrived: dict[str, float] = {}
    twice: dict[str, float] = {}
    for _ in range(data.draw(st.integers(1, 6))):
        tenant = data.draw(st.sampled_from(["a", "b"]))
        labels = (("service", "s"), ("table", "t"), ("tenant", tenant))
        name = data.draw(names)
        more = data.draw(st.integers(0, 1000))
        counted[name, labels] = counted.get((name, labels), 0) + more
        samples = [Sample(n, own, value) for (n, own), value in counted.items()]
        for sheet in cloudwatch._counted_sheets(
            cloudwatch._counts(samples), "dev", NOW, Detail.TABLE
        ):
            outcome = data.draw(st.sampled_from(["taken", "refused", "taken, then died"]))
            if outcome == "refused":
                break
            for datum in sheet.data():
                if len(datum["Dimensions"]) > 1:
                    continue
                held = arrived if outcome == "taken" else twice
                held[datum["MetricName"]] = held.get(datum["MetricName"], 0) + datum["Value"]
            if outcome != "taken":
                break
            for sample in sheet.counted:
                counted[sample.name, sample.labels] = (
                    counted.get((sample.name, sample.labels), 0) + sample.value
                )
    samples = [Sample(n, own, value) for (n, own), value in counted.items()]
    for sheet in cloudwatch._counted_sheets(cloudwatch._counts(samples), "dev", NOW, Detail.TABLE):
        for datum in sheet.data():
            if len(datum["Dimensions"]) == 1:
                name = datum["MetricName"]
                arrived[name] = arrived.get(name, 0) + datum["Value"]
    for counter, metric in (
        ("avesa_records_total", "RecordsProcessed"),
        ("avesa_records_total", "ChunkRecordsProcessed"),
        ("avesa_requests_total", "ChunkApiCalls"),
        ("avesa_retries_total", "RequestRetries"),
    ):
        whole = sum(value for (name, _), value in counted.items() if name == counter)
        assert arrived.get(metric, 0) == whole


class _Loader(yaml.SafeLoader):
    """CloudFormation's tags are left as they are."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: getattr(node, "value", None))


def test_alarms_and_dashboards_speak_of_metrics_that_are_published(site: Site) -> None:
    site.connect("acme")
    site.chunk()
    site.chunk(state=ChunkState.FAILED)
    site.job("bad", JobStatus.FAILED)
    site.publish()
    published = {known[:2] for known in site.published() if len(known) == 2}
    template = yaml.load(TEMPLATE.read_text(), _Loader)["Resources"].values()
    wanted: set[tuple[str, str]] = set()
    for resource in template:
        if resource["Type"] == "AWS::CloudWatch::Alarm":
            own = resource["Properties"]
            stats = [m["MetricStat"]["Metric"] for m in own.get("Metrics", ()) if "MetricStat" in m]
            wanted |= {(m["Namespace"], m["MetricName"]) for m in [*stats, own] if "Namespace" in m}
    ours = {(space, name) for space, name in wanted if not space.startswith("AWS/")}
    assert ours
    assert ours <= published
