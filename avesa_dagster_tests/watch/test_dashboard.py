"""The dashboard and the scrape example that ship: whole, and about metrics that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from avesa_dagster.cli import watch
from avesa_dagster.control.base import ChunkState
from avesa_dagster.control.jobs import Job, JobStatus, Trigger
from avesa_dagster.watch.alerts import settle
from avesa_dagster.watch.findings import Finding, Kind
from avesa_dagster.watch.metrics import Meter
from avesa_dagster.watch.notify import Severity

from .conftest import NOW
from .test_metrics import Site, site

__all__ = ["site"]
DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.fixture(scope="module")
def dashboard() -> Any:
    return json.loads((DEPLOY / "grafana" / "avesa.json").read_text())


def expressions(dashboard: Any) -> Iterator[str]:
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]
            assert variable["definition"] == variable["query"]["query"]


def test_every_metric_and_label_that_it_names_is_served(dashboard: Any, site: Site) -> None:
    site.connect()
    Meter(site.control.counters).chunk(
        "acme", "connectwise", "tickets", seconds=1, records=1, requests=1, retries=1,
        state=ChunkState.COMPLETED,
    )  # fmt: skip
    site.control.jobs.create(
        Job(
            "j", "acme", "connectwise", ("tickets",), NOW, NOW, Trigger.PERSON, NOW, NOW,
            status=JobStatus.RUNNING,
        )
    )  # fmt: skip
    late = Finding(Kind.LATE, "acme", "connectwise", "tickets", Severity.WARNING, "late")
    settle([late], site.control.alarms, [], NOW)
    served: dict[str, set[str]] = {}
    for name, labels in site.scrape().values:
        served.setdefault(name, set()).update(label for label, _ in labels)
    named = set()
    for expression in expressions(dashboard):
        metrics = set(re.findall(r"\bavesa_[a-z0-9_]+", expression))
        assert metrics, expression
        assert metrics <= set(served), expression
        named |= metrics
        shared = set.intersection(*(served[metric] for metric in metrics))
        for grouped in re.findall(r"by \(([^)]*)\)", expression):
            assert set(grouped.split(", ")) <= shared, expression
        for selector in re.findall(r"\{([^}]*)\}", expression):
            assert set(re.findall(r"(\w+)\s*=~?", selector)) <= shared, expression
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in served}
    assert families == {re.sub(r"_(bucket|sum|count)$", "", name) for name in named}


def test_every_legend_names_labels_that_are_left(dashboard: Any) -> None:
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            wanted = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            grouped = re.findall(r"by \(([^)]*)\)", target["expr"])
            if grouped:
                assert wanted <= set(grouped[0].split(", ")), target["expr"]


def test_every_expression_is_closed_and_obeys_the_variables(dashboard: Any) -> None:
    for expression in expressions(dashboard):
        for opening, closing in ("()", "{}", "[]"):
            assert expression.count(opening) == expression.count(closing), expression
        assert expression.count('"') % 2 == 0
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            selectors = re.findall(r"\bavesa_[a-z0-9_]+(\{[^}]*\})?", target["expr"])
            assert all('tenant=~"$tenant", service=~"$service"' in s for s in selectors), target


def test_panels_have_ids_of_their_own_and_do_not_overlap(dashboard: Any) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 10
    assert len({panel["title"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        assert 0 <= at["x"] < at["x"] + at["w"] <= 24
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)


def test_it_works_with_any_prometheus(dashboard: Any) -> None:
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert list(variables) == ["datasource", "tenant", "service"]
    assert variables["datasource"]["query"] == "prometheus"
    for panel in dashboard["panels"]:
        for place in (panel, *panel["targets"]):
            assert place["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for name in ("tenant", "service"):
        assert variables[name]["multi"]
        assert variables[name]["includeAll"]
    assert "id" not in dashboard  # it would replace the dashboard with that number


def test_the_scrape_example_asks_where_the_command_serves() -> None:
    [job] = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    defaults = {option.name: option.default for option in watch.metrics.params}
    [target] = job["static_configs"][0]["targets"]
    assert target == f"{defaults['host']}:{defaults['port']}"
