"""Crash scenarios of registration: the real job against a real MLflow store in a SQLite file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from jobs import register, registry, runs, tracking
from jobs.config import Config
from jobs.entry import run
from jobs.evaluate import evaluate
from tests.crash.harness import Scenario, files_of
from tests.jobs import evaluation_world as ew

FIRST, SECOND = "a" * 64, "b" * 64
TRAINED = {"steps": 1, "examples": 1, "ancestor": None, "inputs": {}, "curves": {"steps": [{"step": 1, "rank": 0.5}], "epochs": []}}


def settings(root: Path) -> Config:
    return ew.settings(root)


def trained(root: Path) -> None:
    """A model that was trained and evaluated, its training tracked elsewhere; the registry is empty."""
    world = ew.build(root)
    ew.train(world, steps=6, lineage=FIRST)
    registry.experiment_id(world.config)
    runs.save(world.config, ew.DAY, "train", TRAINED)
    runs.save(world.config, ew.DAY, "evaluate", evaluate(world.config, ew.DAY))


def champion(root: Path) -> None:
    """The model of ``trained`` is champion, and another one of the date was trained, tracked here, and evaluated."""
    trained(root)
    config = settings(root)
    assert step(root) == 0
    registry.set_alias(config, registry.CHAMPION, "1")
    info = root / "checkpoints" / ew.DAY.isoformat() / "bundle" / "model.json"
    info.write_text(info.read_text().replace(FIRST, SECOND))
    runs.save(config, ew.DAY, "train", TRAINED | {"mlflow_run_id": tracking.new_run(config, ew.DAY, SECOND, "train")})
    runs.save(config, ew.DAY, "evaluate", runs.read(config, ew.DAY, "evaluate") | {"lineage": SECOND})


def step(root: Path) -> int:
    """``python -m jobs.register``."""
    small = [f"paths.home={root}", *(f"model.{name}={value}" for name, value in ew.SMALL.items())]
    options = ["--config", "conf/local.yaml", "--date", str(ew.DAY), *(part for one in small for part in ("--set", one))]
    return run("register", register.main, options)


def look(root: Path) -> Mapping[str, str]:
    """Champion, challenger and the versions there are, each with the lineage of the bundle that it holds."""
    config = settings(root)
    found = {f"version {ref.version}": f"{ref.lineage}: {_lineage(config, ref)}" for ref in registry.versions(config)}
    for alias in (registry.CHAMPION, registry.CHALLENGER):
        ref = registry.find(config, alias)
        found[alias] = ref.version if ref else "none"
    return {"version 1": "none", "version 2": "none"} | found


def _lineage(config: Config, ref: registry.ModelRef) -> str:
    return str(json.loads((registry.fetch(config, ref) / "model.json").read_text())["info"]["lineage"])


def leaves(root: Path) -> Mapping[str, object]:
    """Versions with tags and files, runs with their state, artifacts and metrics, and the record of the job."""
    config = settings(root)
    store = registry.client(config)
    found: dict[str, object] = {}
    for ref in registry.versions(config):
        found[ref.version] = [dict(ref.tags), files_of(registry.fetch(config, ref))]
    for one in store.search_runs([registry.experiment_id(config)]):
        artifacts = sorted(artifact.path for artifact in store.list_artifacts(one.info.run_id))
        found[f"run of {one.data.tags[tracking.LINEAGE]}"] = [one.info.status, dict(one.data.metrics), artifacts]
    record = runs.read(config, ew.DAY, "register")
    return found | {"register.json": {name: value for name, value in record.items() if name != "run_id"}}


STEPS = ("run_found", "artifacts_logged", "metrics_logged", "model_logged", "model_named", "version_created", "challenger_set")
SCENARIOS = [
    Scenario(
        area="register",
        situation=situation,
        prepare=prepare,
        step=step,
        look=look,
        leaves=leaves,
        points=tuple(f"register.{point}" for point in points),
    )
    for situation, prepare, points in (
        ("first model", trained, ("model_named",)),
        ("a champion there", champion, STEPS),
    )
]
