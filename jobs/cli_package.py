"""``dig index package``: a generation as an MLflow model folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from jobs.cli_options import ConfigOption, SetOption, local_folder, settings


def package(
    folder: Annotated[Path, typer.Argument(help="Where to write the model; must not be there yet.", metavar="FOLDER")],
    generation: Annotated[str | None, typer.Option(help="Generation; default: the current one.", metavar="ID")] = None,
    config: ConfigOption = None,
    sets: SetOption = None,
) -> None:
    """Write a generation as an MLflow model that retrieves and ranks: mlflow models serve -m FOLDER --env-manager local."""
    force = settings(config, sets)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from jobs.pyfunc_service import package as write

    if folder.exists():
        raise typer.BadParameter(
            f"{folder} is there already; name another folder, or remove it first: a server may have it open", param_hint="FOLDER"
        )
    done = write(Path(local_folder(force, "index")), folder, force.retrieve, force.serve, generation)
    typer.echo(f"{folder} holds {done}; serve it: mlflow models serve -m {folder} --env-manager local --host 127.0.0.1 --port 5001")
