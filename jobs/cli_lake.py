"""The commands of ``dig lake``: what is there, what is out of date and why, and bringing just that up to date."""

from __future__ import annotations

import json
import logging
import sys
from datetime import date
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.cli_options import ConfigOption, JsonOption, SetOption, local_folder, settings

if TYPE_CHECKING:
    from jobs.stale import Report

lake_app = typer.Typer(help="Tables and days that were built.", no_args_is_help=True)

FromOption = Annotated[str | None, typer.Option("--from", help="First day to look at; default: all.", metavar="DATE")]
ToOption = Annotated[str | None, typer.Option("--to", help="Last day to look at; default: all.", metavar="DATE")]


@lake_app.command("show")
def lake_show(config: ConfigOption = None, sets: SetOption = None, as_json: JsonOption = False) -> None:
    """Tables of the lake: days, gaps between them, and rows."""
    from jobs.tables import lake_rows

    force = settings(config, sets)
    rows = lake_rows(local_folder(force, "lake"))
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table("table", "days", "first", "last", "missing", "rows", box=None, pad_edge=False, header_style="bold")
    for name, row in rows.items():
        missing = str(row["missing"]) if row["missing"] else ""
        table.add_row(name, str(row["days"]), row["first"], row["last"], missing, f"{row['rows']:,}")
    if not rows:
        typer.echo(f"{local_folder(force, 'lake')} holds no partition yet; `dig retrain` builds it")
        return
    Console().print(table, highlight=False)


@lake_app.command("stale")
def lake_stale(
    first: FromOption = None, last: ToOption = None, config: ConfigOption = None, sets: SetOption = None, as_json: JsonOption = False
) -> None:
    """Days that are out of date, and why: raw files, an input, the code or settings changed since they were built."""
    force = settings(config, sets)
    local_folder(force, "lake")
    begin, end = _days(first, last)
    from jobs.stale import refresh_command, survey

    report = survey(force).between(begin, end)
    if as_json:
        typer.echo(json.dumps(_as_json(report), indent=2))
        return
    console = Console()
    if report.stale:
        console.print(_table(report), highlight=False)
        console.print(f"\n{len(report.stale)} days are out of date; to rebuild just those: {refresh_command(report)}", soft_wrap=True)
    else:
        console.print("nothing is out of date")
    for (table, day), why in report.unknown.items():
        console.print(Text(f"{table} {day} cannot be judged: {why}", style="yellow"), soft_wrap=True)


@lake_app.command("refresh")
def lake_refresh(first: FromOption = None, last: ToOption = None, config: ConfigOption = None, sets: SetOption = None) -> None:
    """Rebuild the days that are out of date, and no others, in one Spark application."""
    force = settings(config, sets)
    local_folder(force, "lake")
    begin, end = _days(first, last)
    from jobs.refresh import refresh

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    report, built = refresh(force, begin, end)
    if not report.stale:
        typer.echo("nothing is out of date")
        return
    table = Table("table", "out of date", "rebuilt", "as before", box=None, pad_edge=False, header_style="bold")
    for name, days in report.days().items():
        rebuilt = len(built.get(name, []))
        table.add_row(name, str(len(days)), str(rebuilt), str(len(days) - rebuilt))
    Console().print(table, highlight=False)


def _days(first: str | None, last: str | None) -> tuple[date | None, date | None]:
    """The days of ``--from`` and ``--to``.

    Raises:
        ConfigError: one of them is no date, or they are the wrong way round.
    """
    from jobs.config import ConfigError

    days: list[date | None] = []
    for option, text in (("--from", first), ("--to", last)):
        try:
            days.append(date.fromisoformat(text) if text else None)
        except ValueError:
            raise ConfigError(f"{option} {text}: expected a date, YYYY-MM-DD") from None
    begin, end = days
    if begin and end and begin > end:
        raise ConfigError(f"--from {begin} --to {end}: the range is empty; --from must not be after --to")
    return begin, end


def _table(report: Report) -> Table:
    from jobs.lake import shown

    table = Table("table", "days", "why", box=None, pad_edge=False, header_style="bold")
    for name, days, why in report.rows():
        table.add_row(name, shown(days), Text(why))
    return table


def _as_json(report: Report) -> dict[str, object]:
    stale = [
        {
            "table": one.table,
            "ds": one.day.isoformat(),
            "only_by_way": one.only_by_way,
            "reasons": [{"kind": r.kind, "what": r.what, "days": list(r.days)} for r in one.reasons],
        }
        for one in report.stale.values()
    ]
    return {"stale": stale, "unknown": [{"table": t, "ds": d.isoformat(), "why": why} for (t, d), why in report.unknown.items()]}
