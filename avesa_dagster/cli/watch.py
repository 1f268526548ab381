"""`avesa alerts`, `avesa metrics`: what is wrong, and how much was done."""

from __future__ import annotations

import gc
import os
from datetime import datetime
from pathlib import Path

import click

from avesa_dagster.cli.output import as_json_option, print_json, print_table
from avesa_dagster.control.health import Alarm
from avesa_dagster.errors import AvesaError, ConfigurationError
from avesa_dagster.installation import Installation
from avesa_dagster.watch.alerts import standing
from avesa_dagster.watch.findings import Finding, Kind, findings, title
from avesa_dagster.watch.metrics import StoresCollector
from avesa_dagster.watch.notify import Message, Severity
from avesa_dagster.watch.recipients import FILE, WEBHOOK, notifiers
from avesa_dagster.watch.serve import serve


@click.command(
    epilog="""\b
Examples:
  avesa alerts
  avesa alerts --json
  avesa alerts --test
"""
)
@click.option("--test", is_flag=True, help="Send a test message through each notifier instead.")
@as_json_option
def alerts(test: bool, as_json: bool) -> None:
    """List what is wrong now, and since when.

    AVESA_HOME/alerts.json (mode 0600) says who is told: webhook_url, sns_topic, smtp {host, port,
    user, password, from, to}, log. AVESA_ALERT_WEBHOOK overrides webhook_url, AVESA_ALERT_TOPIC
    sns_topic. With --test the exit code is 1 if a notifier fails.
    """
    installation = Installation.from_environment()
    if test:
        _test(installation.settings.home, as_json)
        return
    now = installation.clock()
    known = {alarm.key: alarm for alarm in standing(installation.control.alarms)}
    found = findings(installation.control, installation.catalog, now)
    said = [_row(finding, known.get(finding.key), now) for finding in found]
    # Only who compares with the source finds these; they hold until the next comparison.
    said += [_disagreement(a) for a in known.values() if a.key.startswith(f"{Kind.DISAGREES}/")]
    if as_json:
        print_json(said)
    elif not said:
        click.echo("Nothing is wrong.")
    else:
        print_table(
            ("severity", "since", "what", "text"),
            [(row["severity"], row["since"], title(str(row["key"])), row["text"]) for row in said],
        )


@click.command(
    epilog="""\b
Examples:
  avesa metrics
  avesa metrics --port 9999 --host 0.0.0.0
"""
)
@click.option("--port", type=click.IntRange(0, 65_535), default=9464, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True)
def metrics(port: int, host: str) -> None:
    """Serve metrics for Prometheus, until stopped.

    They are read from the installation when they are asked for; port 0 picks a free one. Whoever
    reaches the port can read them: tenants' names and figures, never records or credentials.
    """
    installation = Installation.from_environment()
    collector = StoresCollector(
        installation.control, installation.catalog, installation.clock, installation.use
    )
    with serve(port, host, collector) as endpoint:
        # A scrape makes some hundred thousand objects. To look through all of them, and through
        # what was loaded before, every now and then would be a third of its time.
        gc.freeze()
        gc.set_threshold(200_000)
        address = f"[{host}]" if ":" in host else host
        click.echo(f"Metrics: http://{address}:{endpoint.port}/metrics  (stop with Ctrl-C)")
        try:
            endpoint.wait()
        except KeyboardInterrupt:
            click.echo("stopping")


def _row(finding: Finding, alarm: Alarm | None, now: datetime) -> dict[str, object]:
    return {
        "key": finding.key,
        "kind": finding.kind.value,
        "tenant": finding.tenant,
        "service": finding.service,
        "about": finding.about,
        "severity": finding.severity.value,
        "text": finding.text,
        "since": alarm.since if alarm else now,
        "said_at": alarm.said_at if alarm else None,
    }


def _disagreement(alarm: Alarm) -> dict[str, object]:
    _, tenant, service, table = alarm.key.split("/")
    finding = Finding(Kind.DISAGREES, tenant, service, table, Severity.ERROR, alarm.text)
    return _row(finding, alarm, alarm.since)


def _test(home: Path, as_json: bool) -> None:
    chosen = notifiers(home, os.environ)
    if not chosen:
        raise ConfigurationError(
            "no notifier is configured", hint=f"write {home / FILE}, or set {WEBHOOK}"
        )
    message = Message(
        subject="test of the alerts",
        text="Somebody ran `avesa alerts --test`. Nothing is wrong.",
        severity=Severity.WARNING,
        tenant=None,
        service=None,
        key="test",
    )
    errors: dict[str, str | None] = {}
    for notifier in chosen:
        try:
            notifier.send(message)
        except AvesaError as error:
            errors[notifier.name] = str(error)
        else:
            errors[notifier.name] = None
        if not as_json:
            failure = errors[notifier.name]
            click.echo(f"{notifier.name}: " + (f"FAILED: {failure}" if failure else "sent"))
    if as_json:
        print_json([{"notifier": name, "error": error} for name, error in errors.items()])
    if any(errors.values()):
        raise click.exceptions.Exit(1)
