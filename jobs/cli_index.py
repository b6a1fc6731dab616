"""``dig index gc | refresh``: what removes generations, and what brings new items into the one that serves."""

from __future__ import annotations

import getpass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated

import typer

from jobs.cli_options import ConfigOption, SetOption, local_folder, settings


def gc(
    keep: Annotated[int | None, typer.Option(min=1, help="Newest generations that stay; default: index.keep.", metavar="N")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    url: Annotated[str | None, typer.Option(help="Clear up this mirror of the index instead, as in s3://bucket/index.")] = None,
    config: ConfigOption = None,
    sets: SetOption = None,
) -> None:
    """Remove old generations; never the one that serves, the one before it, what a rollback needs, nor one that is open."""
    force = settings(config, sets)
    if url:
        from jobs import mirrors

        gone = mirrors.collect(Path(local_folder(force, "index")), url, keep or force.index.keep, dry_run=dry_run)
    else:
        from jobs import promotion

        gone = promotion.collect(force, keep, dry_run=dry_run)
    for generation in gone:
        typer.echo(f"{'would remove' if dry_run else 'removed'} {generation}")
    if not gone:
        typer.echo("nothing to remove")


def refresh(
    day: Annotated[str, typer.Option("--date", help="Day of the items snapshot, YYYY-MM-DD.", metavar="DATE")],
    past_limit: Annotated[
        bool, typer.Option("--past-limit", help="Also if more items are withdrawn than index.max_withdrawn allows.")
    ] = False,
    who: Annotated[str | None, typer.Option(help="Who asks; default: the user that runs this.")] = None,
    config: ConfigOption = None,
    sets: SetOption = None,
) -> None:
    """Bring the new items of a day into the index that serves, and take out those that were withdrawn; nothing is trained."""
    force = settings(config, sets)
    try:
        wanted = date.fromisoformat(day)
    except ValueError:
        raise typer.BadParameter(f"{day!r}: expected a date, YYYY-MM-DD", param_hint="--date") from None
    from jobs.followers import follow_all
    from jobs.fresh import publish
    from jobs.promotion_log import Request

    now = datetime.now(UTC).isoformat(timespec="seconds")
    reason = f"items of {wanted}"
    request = Request(action="refresh", who=who or getpass.getuser(), reason=reason, at=now, begun=now, past_gate=True)
    done = publish(force, wanted, request, past_limit=past_limit)
    typer.echo(f"{done.outcome}: {done.generation} serves, {done.arrived} new items and {done.withdrawn} withdrawn since {done.base}")
    for copy in follow_all(force, only_behind=True):
        typer.echo(f"{copy.place} serves {copy.generation}")


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("gc")(gc)
    app.command("refresh")(refresh)
