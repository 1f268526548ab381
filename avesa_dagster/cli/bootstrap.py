"""`avesa bootstrap`: what an AWS account lacks of an installation is made."""

from __future__ import annotations

from collections.abc import Iterable

import click
from rich.console import Console
from rich.text import Text

from avesa_dagster.cli.output import console
from avesa_dagster.doctor.findings import Finding, Level
from avesa_dagster.settings import Aws, Settings


@click.command(
    epilog="""\b
Examples:
  AVESA_PROFILE=aws AVESA_BUCKET=my-lake avesa bootstrap --dry-run
  AVESA_PROFILE=aws AVESA_BUCKET=my-lake AVESA_ENVIRONMENT=prod avesa bootstrap --yes
"""
)
@click.option("--dry-run", is_flag=True, help="Say what would be made, and make nothing.")
@click.option("--yes", is_flag=True, help="Do not ask before making it.")
@click.option("--topic", is_flag=True, help="Make an SNS topic for alarms too.")
def bootstrap(dry_run: bool, yes: bool, topic: bool) -> None:
    """Make what this AWS account lacks: the lake's bucket, the control tables.

    What is there is never changed and never deleted, whoever made it: the stack of deploy/aws, an
    earlier avesa bootstrap, or somebody else. If something is there that cannot be used, nothing
    is made. Run it again after an error: it goes on where it stopped.

    Exit code 0: all is there (or, with --dry-run, could be made). 1: something is in the
    way, or is set so that AVESA cannot work with it.
    """
    settings = Settings.from_environment()
    if settings.aws is None:
        click.echo(
            "The embedded profile needs nothing: AVESA_HOME is made when a tenant is connected. "
            "Set AVESA_PROFILE=aws for an AWS account."
        )
        return
    _bootstrap(settings.aws, dry_run, yes, topic)


def _bootstrap(where: Aws, dry_run: bool, yes: bool, topic: bool) -> None:
    from avesa_dagster.doctor.bootstrap import planned, topic_arn

    talk = Console(stderr=True)
    with talk.status("looking at what is there"):
        plan = planned(where, topic=topic)
    account = plan.account
    click.echo(
        f"Account {account.number} in {account.region}, environment {where.environment}, bucket "
        f"{where.bucket}; as {account.who}"
    )
    if plan.refused:
        click.echo("Nothing is made: what is there cannot be used, and is left as it is.")
        _say(plan.refused, "✗", "red")
        raise click.exceptions.Exit(1)
    for step in () if yes and not dry_run else plan.steps:
        console.print(Text(f"  + {step.what}"), soft_wrap=True)
    if plan.differing:
        click.echo("Set otherwise than AVESA would; it stays as it is:")
        _say(plan.differing, "!", "yellow")
    if not plan.steps:
        click.echo("Nothing is missing.")
    elif dry_run:
        click.echo(f"{len(plan.steps)} step(s) would be done. Nothing was made.")
    else:
        if not yes:
            click.confirm(f"Do these {len(plan.steps)} step(s)?", abort=True, err=True)
        for number, step in enumerate(plan.steps, 1):
            with talk.status(f"{number} of {len(plan.steps)}: {step.what}"):
                step.make()
            console.print(Text.assemble(("✓ ", "green"), step.what), soft_wrap=True)
        click.echo("Made. Look at all of it: avesa doctor")
    if topic:
        click.echo(f"AVESA_ALERT_TOPIC={topic_arn(where, account)}")
    if any(finding.level is Level.PROBLEM for finding in plan.differing):
        raise click.exceptions.Exit(1)


def _say(findings: Iterable[Finding], mark: str, style: str) -> None:
    for finding in findings:
        told = f"{finding.where}: {finding.what}" if finding.where else finding.what
        console.print(Text.assemble((f"  {mark} ", style), told), soft_wrap=True)
        if finding.todo:
            console.print(Text.assemble(("    → ", style), finding.todo), soft_wrap=True)
