"""The commands of ``dig`` that only look: ``config show``, ``index show | verify | diff``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.cli_options import ConfigOption, JsonOption, SetOption, local_folder, settings, settings_file

PIPED = 400
"""Columns of a table that a program reads: no line is broken."""

config_app = typer.Typer(help="Settings in force.", no_args_is_help=True)
index_app = typer.Typer(help="Generations of the SID index.", no_args_is_help=True)


@config_app.command("show")
def config_show(config: ConfigOption = None, sets: SetOption = None, as_json: JsonOption = False) -> None:
    """Every setting in force, with its value and where that came from."""
    from jobs.config import PLACES, load_layers

    force, layers = load_layers(settings_file(config), sets or [])
    rows = layers.leaves(force)
    if as_json:
        typer.echo(json.dumps({row.key: {"value": row.value, "origin": row.origin} for row in rows}, indent=2))
        return
    table = Table("key", "value", "from", box=None, pad_edge=False, header_style="bold")
    table.columns[0].no_wrap = True
    table.columns[1].overflow = table.columns[2].overflow = "fold"
    here = f"{Path.cwd()}/"
    derived = {f"paths.{place}": force.paths.at(place) for place in PLACES} | {"mlflow.tracking_uri": force.tracking_uri()}
    for row in rows:
        origin = row.origin.removeprefix(here)
        value = json.dumps(row.value) if row.value or row.key not in derived else f"{derived[row.key]}, by paths.home"
        table.add_row(Text(row.key), Text(value), Text(origin), style="dim" if origin == "default" else None)
    Console(width=None if sys.stdout.isatty() else PIPED).print(table)


@index_app.command("show")
def index_show(
    generation: Annotated[str | None, typer.Argument(help="Generation; default: the current one.")] = None,
    config: ConfigOption = None,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a generation holds, and which others there are."""
    force = settings(config, sets)
    from dig_models.index.generation import show
    from jobs.tables import generation_table

    found = show(local_folder(force, "index"), generation)
    if as_json:
        typer.echo(
            json.dumps({"current": found.current, "generations": found.generations, **found.manifest.model_dump(mode="json")}, indent=2)
        )
        return
    console = Console()
    console.print(generation_table(found))
    for name in found.generations:
        console.print(f"{'→' if name == found.current else ' '} {name}", highlight=False)


@index_app.command("verify")
def index_verify(
    generation: Annotated[str | None, typer.Argument(help="Generation; default: the current one.")] = None,
    config: ConfigOption = None,
    sets: SetOption = None,
) -> None:
    """Check a generation: checksums, every item found, a beam search that returns real items."""
    force = settings(config, sets)
    from dig_models.index.verify import verify

    found = verify(local_folder(force, "index"), generation)
    console = Console()
    for check, seen in found.checks:
        console.print(f"[green]✓[/] {check}: {seen}", highlight=False)
    console.print(f"index generation {found.generation} is sound", highlight=False)


@index_app.command("diff")
def index_diff(
    old: Annotated[str, typer.Argument(help="Generation to compare from.")],
    new: Annotated[str, typer.Argument(help="Generation to compare to.")],
    by: Annotated[
        list[str] | None, typer.Option(help="Item field to group by; may be repeated. Default: those with few values.", metavar="FIELD")
    ] = None,
    config: ConfigOption = None,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Items that came, went or moved between two generations, postings that changed, and where."""
    from dataclasses import asdict

    force = settings(config, sets)
    from dig_models.index.diff import NoSuchField, diff, grouping_fields
    from dig_models.index.generation import id_date
    from jobs.field_values import field_values
    from jobs.tables import difference_table

    root = Path(local_folder(force, "index"))
    try:
        fields = grouping_fields(root, new, by)
    except NoSuchField as error:
        raise typer.BadParameter(str(error)) from error
    words = field_values(force, [field.name for field in fields], id_date(new))
    found = diff(root, old, new, by=by, values=words)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
        return
    Console().print(difference_table(found))
