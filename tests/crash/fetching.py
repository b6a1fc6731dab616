"""Crash scenario of fetching a version's bundle from a real MLflow server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jobs import registry
from jobs.config import Config
from tests.crash.harness import Scenario, files_of
from tests.jobs import evaluation_world as ew


def settings(root: Path) -> Config:
    return ew.settings(root, f"mlflow.tracking_uri={(root.parent / 'tracking_uri').read_text()}")


def registered(root: Path) -> None:
    """A version whose files lie with the server."""
    config = settings(root)
    source, store = root / "source", registry.client(config)
    source.mkdir()
    for name in ("model.json", "model.safetensors"):
        (source / name).write_bytes(name.encode() * 1000)
    run = store.create_run(registry.experiment_id(config)).info
    store.log_artifacts(run.run_id, str(source), registry.BUNDLE)
    store.create_registered_model(config.mlflow.model_name)
    tags = {registry.RUN_DATE: str(ew.DAY), registry.LINEAGE: "l" * 64}
    store.create_model_version(config.mlflow.model_name, run.artifact_uri, run.run_id, tags=tags)


def step(root: Path) -> None:
    config = settings(root)
    registry.fetch(config, registry.get(config, "1"))


def look(root: Path) -> Mapping[str, str]:
    """Whether the bundle is here, every file of it."""
    folders = [path for path in (root / "mlflow" / "bundles").glob("*") if not path.name.startswith(".")]
    for folder in folders:
        assert files_of(folder) == files_of(root / "source")
    return {"bundle": "here" if folders else "none"}


def leaves(root: Path) -> Mapping[str, object]:
    return files_of(root)


SCENARIOS = [
    Scenario(
        area="fetch",
        situation="bundle of a version not here yet",
        prepare=registered,
        step=step,
        look=look,
        leaves=leaves,
        points=("fetch.downloaded", "fetch.renamed"),
        needs="tracking_uri",
    )
]
