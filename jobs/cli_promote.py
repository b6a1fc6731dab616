"""The commands of ``dig`` that move what serves, and show who moved it: ``promote``, ``rollback``, ``index log``."""

from __future__ import annotations

import getpass
import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from jobs.cli_options import ConfigOption, SetOption, local_folder, settings

if TYPE_CHECKING:
    from jobs.promotion import Action, Entry, Request

ReasonOption = Annotated[str, typer.Option(help="Why; stands in the promotion log.")]
WhoOption = Annotated[str | None, typer.Option(help="Who asks; default: the user that runs this.")]


def promote(
    reason: ReasonOption,
    version: Annotated[str | None, typer.Option(help="Registered version; goes out with its newest generation.", metavar="N")] = None,
    generation: Annotated[
        str | None, typer.Option(help="Index generation; goes out with the version it was made with.", metavar="ID")
    ] = None,
    past_gate: Annotated[bool, typer.Option("--past-gate", help="Also a version that did not pass the gate.")] = False,
    who: WhoOption = None,
    config: ConfigOption = None,
    sets: SetOption = None,
) -> None:
    """Make a version champion and its index current, both or neither."""
    if (version is None) == (generation is None):
        raise typer.BadParameter("give either --version or --generation")
    force = settings(config, sets)
    from jobs.promote import by_hand, of_generation, of_version

    target = of_version(force, version) if version is not None else of_generation(force, str(generation))
    _tell(by_hand(force, target, _request("promote", reason, who, past_gate=past_gate)))


def rollback(reason: ReasonOption, who: WhoOption = None, config: ConfigOption = None, sets: SetOption = None) -> None:
    """Go back to the version and index that were in force before; nothing is built."""
    force = settings(config, sets)
    from jobs.promote import by_hand

    _tell(by_hand(force, None, _request("rollback", reason, who, past_gate=True)))


def index_log(
    config: ConfigOption = None,
    sets: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Who promoted what when and why, oldest first, with what was refused or undone."""
    force = settings(config, sets)
    from jobs.promotion import entries
    from jobs.tables import promotion_table

    found = entries(Path(local_folder(force, "index")))
    if as_json:
        typer.echo(json.dumps([asdict(entry) for entry in found], indent=2))
    elif not found:
        typer.echo(f"{local_folder(force, 'index')}: nothing was promoted yet")
    else:
        Console().print(promotion_table(found), highlight=False)


def _request(action: Action, reason: str, who: str | None, *, past_gate: bool) -> Request:
    from jobs.promotion import Request

    at = datetime.now(UTC).isoformat(timespec="seconds")
    return Request(action=action, who=who or getpass.getuser(), reason=reason, at=at, past_gate=past_gate, allow_older=True)


def _tell(entry: Entry) -> None:
    from jobs.promote import said

    Console().print(entry.message or f"{said(entry.after)}; before: {entry.before}", highlight=False, soft_wrap=True)
