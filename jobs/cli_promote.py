"""The commands of ``dig`` that move what serves, and show who moved it: ``promote``, ``rollback``, ``index log``."""

from __future__ import annotations

import getpass
import json
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from jobs.cli_options import ConfigOption, SetOption, local_folder, settings

if TYPE_CHECKING:
    from jobs.config import Config
    from jobs.promotion_log import Action, Pair, Request

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
    request = _request(force, "promote", reason, who)
    from jobs.promote import of_generation, of_version

    target = of_version(force, version) if version is not None else of_generation(force, str(generation))
    _move(force, target, replace(request, past_gate=past_gate))


def rollback(reason: ReasonOption, who: WhoOption = None, config: ConfigOption = None, sets: SetOption = None) -> None:
    """Go back to the version and index that were in force before; nothing is built."""
    force = settings(config, sets)
    _move(force, None, _request(force, "rollback", reason, who))


def index_log(
    config: ConfigOption = None,
    sets: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Who promoted what when and why, oldest first, with what was refused or undone."""
    force = settings(config, sets)
    from jobs.promotion_log import entries
    from jobs.tables import promotion_lines

    found = entries(Path(local_folder(force, "index")))
    if as_json:
        typer.echo(json.dumps([asdict(entry) for entry in found], indent=2))
    elif not found:
        typer.echo(f"{local_folder(force, 'index')}: nothing was promoted yet")
    else:
        for line in promotion_lines(found):
            Console().print(line, soft_wrap=True)


def _request(config: Config, action: Action, reason: str, who: str | None) -> Request:
    """The request of this moment: what is moved by others from now on refuses it."""
    from jobs.promotion_log import NOTHING, Request

    current = Path(local_folder(config, "index"), "CURRENT")
    seen = current.read_text().strip() if current.is_file() else NOTHING
    now = datetime.now(UTC).isoformat(timespec="seconds")
    asked_by = who or getpass.getuser()
    return Request(
        action=action, who=asked_by, reason=reason, at=now, begun=now, expected=seen, by_hand=True, past_gate=action == "rollback"
    )


def _move(config: Config, target: Pair | None, request: Request) -> None:
    from jobs.followers import follow_all
    from jobs.promote import said
    from jobs.promotion import move

    entry = move(config, target, request)
    Console().print(entry.message or f"{said(entry.after)}; before: {entry.before}", highlight=False, soft_wrap=True)
    for copy in follow_all(config):
        Console().print(f"{copy.place} serves {copy.generation}", highlight=False, soft_wrap=True)
