"""``dig index push | pull``: copies of the index in an object store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli_options import ConfigOption, SetOption, local_folder, settings

GenerationOption = Annotated[str | None, typer.Option(help="Generation; default: the one that serves.", metavar="ID")]


def push(
    url: Annotated[str | None, typer.Argument(help="Where to, as in s3://bucket/index; default: every one of index.mirrors.")] = None,
    generation: GenerationOption = None,
    config: ConfigOption = None,
    sets: SetOption = None,
) -> None:
    """Copy what serves to a mirror and switch the mirror to it; what is there already is not sent again."""
    force = settings(config, sets)
    from dig_models.index import mirror
    from jobs.config import ConfigError
    from jobs.mirrors import push_all

    if url is None and not force.index.mirrors:
        raise ConfigError("index.mirrors: empty, and no URL was given: there is nowhere to push to")
    if url is None and generation is not None:
        raise typer.BadParameter("give the URL of one mirror as well: all of them follow what serves", param_hint="--generation")
    root = Path(local_folder(force, "index"))
    done = push_all(force) if url is None else [mirror.push(root, url, generation, keep=force.index.keep)]
    for one in done:
        typer.echo(f"{one.url} serves {one.generation}: {one.sent} files sent ({one.sent_bytes:,} bytes), {len(one.removed)} removed")


def pull(
    url: Annotated[str, typer.Argument(help="Where from, as in s3://bucket/index.")],
    generation: GenerationOption = None,
    config: ConfigOption = None,
    sets: SetOption = None,
) -> None:
    """Bring what a mirror serves into the local index (paths.index), verify it and switch to it."""
    force = settings(config, sets)
    from dig_models.index import mirror

    root = Path(local_folder(force, "index"))
    done = mirror.pull(url, root, generation, keep=force.index.keep)
    typer.echo(f"{root} serves {done.generation}: {done.received} files fetched ({done.received_bytes:,} bytes)")


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("push")(push)
    app.command("pull")(pull)
