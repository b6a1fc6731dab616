"""Great Expectations context without a project folder or network, and its data docs: one HTML site per table."""

from __future__ import annotations

import logging
import os
import shutil
from html import escape
from pathlib import Path
from typing import Any

from jobs.config import Config, ConfigError
from jobs.files import replace_text

KEPT_RUNS = 30
STORE = ".validations"


def place(config: Config, name: str) -> Path:
    """Folder of the docs or the quarantine.

    Raises:
        ConfigError: it is a URL.
    """
    where: str = config.paths.at(name)  # type: ignore[arg-type]
    if "://" in where:
        raise ConfigError(f"paths.{name}: {where}: a folder (local or a mounted share) is expected, not a URL")
    return Path(where)


def open_context(config: Config, table: str) -> Any:
    """Context whose validation results and docs lie under ``<docs>/<table>``; everything else is in memory.

    Usage statistics and progress bars are off.
    """
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    import great_expectations as gx
    from great_expectations.data_context.types.base import DataContextConfig, InMemoryStoreBackendDefaults, ProgressBarsConfig

    site = place(config, "docs") / table
    site.mkdir(parents=True, exist_ok=True)
    _forget_old_runs(site)
    settings = DataContextConfig(
        store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
        progress_bars=ProgressBarsConfig(globally=False),
        analytics_enabled=False,
        data_docs_sites={
            "gates": {
                "class_name": "SiteBuilder",
                "show_how_to_buttons": False,
                "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
                "store_backend": _folder(site),
            }
        },
    )
    settings.stores[settings.validation_results_store_name] = {
        "class_name": "ValidationResultsStore",
        "store_backend": _folder(site / STORE),
    }
    return gx.get_context(project_config=settings, mode="ephemeral")


def _folder(path: Path) -> dict[str, str]:
    return {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(path)}


def _forget_old_runs(site: Path) -> None:
    """Keep the newest runs of each suite, so that the index stays short and quick to write."""
    for top in (site / STORE, site / "validations"):
        for suite in sorted(p for p in top.glob("*") if p.is_dir()):
            for old in sorted(p for p in suite.iterdir() if p.is_dir())[: -KEPT_RUNS or None]:
                shutil.rmtree(old)


def write(config: Config, context: Any, table: str) -> Path:
    """Write the table's pages and the list of tables; path of the table's first page."""
    context.build_data_docs()
    root = place(config, "docs")
    tables = sorted(path.parent.name for path in root.glob("*/index.html"))
    links = "\n".join(f'<li><a href="{escape(t)}/index.html">{escape(t)}</a></li>' for t in tables)
    title = f"Data gates of {escape(config.dataset.name)}"
    page = f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title>\n<h1>{title}</h1>\n<ul>\n{links}\n</ul></html>\n'
    replace_text(root / "index.html", page)
    return root / table / "index.html"
