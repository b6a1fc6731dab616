"""Options that every command of ``dig`` shares."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from jobs.config import Config

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="Settings file; default: $DIG_CONFIG, then conf/local.yaml.", metavar="FILE")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override one setting, as in dataset.sample_users=1.0; may be repeated.", metavar="KEY=VALUE"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def settings_file(config: Path | None) -> Path:
    """The settings file in force."""
    from jobs.config import CONF_DIR

    return config or Path(os.environ.get("DIG_CONFIG") or CONF_DIR / "local.yaml")


def settings(config: Path | None, sets: list[str] | None) -> Config:
    """The settings in force.

    Raises:
        ConfigError: they cannot be used.
    """
    from jobs.config import load

    return load(settings_file(config), sets or [])


def local_folder(config: Config, name: Literal["lake", "index"]) -> str:
    """One of the places, which must be a folder.

    Raises:
        ConfigError: it is a URL.
    """
    from jobs.config import ConfigError

    place = config.paths.at(name)
    if "://" in place:
        raise ConfigError(f"paths.{name} {place}: expected a folder (local or a mounted share), found a URL")
    return place
