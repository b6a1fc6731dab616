"""Crash scenarios of training: a checkpoint of a small network, and the end of a real training that goes on from its last checkpoint."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dig_models.bundle import BundleError, load_bundle
from dig_models.files import DiskFull
from dig_models.train import checkpoint
from dig_models.train.distributed import World, process_group
from jobs import registry, train
from jobs.config import Config
from jobs.entry import run
from tests.crash.harness import Scenario, files_of
from tests.jobs import train_world as tw

LINEAGE = "l" * 64
OTHER = "train.lr=0.01"

# ---- a checkpoint ----------------------------------------------------------------------------------------------------


def network(fill: float) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A layer with that value in every weight, and an optimizer that has no state yet."""
    torch.manual_seed(0)
    model = nn.Linear(64, 64)
    nn.init.constant_(model.weight, fill)
    return model, torch.optim.Adam(model.parameters())


def save(root: Path, *steps: int, fill: float = 0.0) -> None:
    """Go on as training does: clear what cannot be used, then a checkpoint of each step, its weights all that number."""
    with process_group("gloo", 1) as world:
        checkpoint.newest(root / "steps", LINEAGE, world)
        for step in steps:
            model, optimizer = network(step + fill)
            checkpoint.save(root / "steps", step, model, optimizer, world, {"lineage": LINEAGE, "step": step})


def saved(root: Path, steps: tuple[int, ...], fill: float = 0.0) -> int:
    try:
        save(root, *steps, fill=fill)
    except DiskFull as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def look_at_steps(root: Path) -> Mapping[str, str]:
    """Step and weights of the newest checkpoint, read as a resumed training reads it."""
    newest = checkpoint.steps(root / "steps")[-1]
    for path in checkpoint.steps(root / "steps"):
        model, optimizer = network(-1.0)
        meta = checkpoint.load(path, model, optimizer, World(rank=0, size=1, device=torch.device("cpu")))
        assert meta["lineage"] == LINEAGE and path.name == f"step-{meta['step']:08d}"
        assert model.weight.detach().unique().numel() == 1
    return {"newest": f"{newest.name}: {float(model.weight[0, 0].detach())}"}


def steps_left(root: Path) -> Mapping[str, object]:
    """Every file of the checkpoints; the index of the tensors names no two saves alike, so that its name stands for it."""
    return {name: "there" if name.endswith(".metadata") else digest for name, digest in files_of(root / "steps").items()}


# ---- the end of a training -------------------------------------------------------------------------------------------


def fit(root: Path, *sets: str) -> int:
    """``python -m jobs.train``."""
    small = [f"paths.home={root}", *(f"model.{k}={v}" for k, v in tw.ew.SMALL.items()), *tw.SETS, *sets]
    return run("train", train.main, ["--config", "conf/local.yaml", "--date", str(tw.DAY), *(p for one in small for p in ("--set", one))])


def settings(root: Path) -> Config:
    return tw.settings(root)


def home(root: Path) -> Path:
    return Path(settings(root).paths.at("checkpoints")) / tw.DAY.isoformat()


class _Stopped(Exception):
    """Training is stopped after its last step."""


def fitted(root: Path) -> None:
    """A lake, the bundle of a training with other settings, and a training that was stopped after its last step."""
    tw.build(root)
    assert fit(root, OTHER) == 0
    real, train.reached = train.reached, _stop  # type: ignore[attr-defined]
    try:
        fit(root)
    except _Stopped:
        return
    finally:
        train.reached = real  # type: ignore[attr-defined]
    raise AssertionError("training came to its end")


def _stop(point: str) -> None:
    if point == "training.fitted":
        raise _Stopped


def look_at_bundle(root: Path) -> Mapping[str, str]:
    """The bundle of the date, loaded whole; which weights, which learning rate."""
    if not (home(root) / "bundle").exists():
        with pytest.raises(BundleError, match="holds no complete bundle"):
            load_bundle(home(root) / "bundle")
        return {"bundle": "none"}
    bundle = load_bundle(home(root) / "bundle")
    return {"bundle": f"{bundle.info['lineage']} {float(sum(p.double().sum() for p in bundle.model.state_dict().values()))}"}


def training_left(root: Path) -> Mapping[str, object]:
    """Files of the training, its record without times, and its MLflow runs."""
    found: dict[str, object] = dict(files_of(home(root).parent))
    found["train.json"] = _record(root / "runs" / tw.DAY.isoformat() / "train.json")
    found[f"{tw.DAY}/train.json"] = _record(home(root) / "train.json")
    settled = json.loads((home(root) / "bundle" / "model.json").read_text())
    settled["info"].pop("mlflow_run_id")
    found[f"{tw.DAY}/bundle/model.json"] = settled
    store, config = registry.client(settings(root)), settings(root)
    found["mlflow"] = sorted(r.info.status for r in store.search_runs([registry.experiment_id(config)]))
    return found


def _record(path: Path) -> Mapping[str, object]:
    timed = ("examples_per_s", "seconds", "step_seconds", "wait_share", "peak_rss_bytes", "mlflow_run_id", "curves")
    return {name: value for name, value in json.loads(path.read_text()).items() if name not in timed}


def _checkpoint(situation: str, step: Callable[[Path], int], *points: str, fill: float = 0.0, **more: Any) -> Scenario:
    return Scenario(
        area="checkpoint",
        situation=situation,
        prepare=partial(saved, steps=(1, 2), fill=fill),
        step=step,
        look=look_at_steps,
        leaves=steps_left,
        points=tuple(p if "." in p else f"checkpoint.{p}" for p in points),
        **more,
    )


SCENARIOS = [
    _checkpoint(
        "third of two that are kept",
        partial(saved, steps=(3,)),
        *("cleared", "tensors_written", "file.written", "meta_written", "synced", "renamed", "old_renamed", "old_removed"),
        full=("file.written",),
    ),
    _checkpoint(
        "same step again",
        partial(saved, steps=(2,)),
        *("moved_aside", "renamed"),
        fill=0.5,
        gaps={"checkpoint.moved_aside": "step-00000001: 1.5"},
    ),
    Scenario(
        area="training",
        situation="bundle of other settings there",
        prepare=fitted,
        step=fit,
        look=look_at_bundle,
        leaves=training_left,
        points=(
            "bundle.items_written",
            *(
                f"training.{point}"
                for point in (
                    *("fitted", "tracked", "bundle_written", "report_written", "old_moved_aside", "bundle_renamed", "old_removed"),
                    *("checkpoints_removed", "superseded"),
                )
            ),
        ),
        full=("file.written@2",),
        gaps={"training.old_moved_aside": "none"},
    ),
]
