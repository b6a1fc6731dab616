"""Checkpoints in mid-epoch: written whole or not at all, the newest two kept.

``<root>/step-<n>/`` holds a ``torch.distributed.checkpoint`` of model, optimizer and generators, and ``meta.json`` (lineage, epoch,
step, figures so far). It is written under another name and renamed when every rank has finished, so a folder named ``step-…`` is
complete. All ranks see ``root`` (one host, or a shared file system).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver

from dig_models.train.distributed import World
from dig_models.train.optim import state_tensors

KEEP = 2
META = "meta.json"


def _state(model: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> dict[str, Any]:
    """Live tensors to save, or to load into."""
    generators: dict[str, Tensor] = {f"cpu-{world.rank}": torch.get_rng_state()}
    if world.device.type == "cuda":
        generators[f"cuda-{world.rank}"] = torch.cuda.get_rng_state(world.device)
    return {"model": dict(model.state_dict()), "optimizer": state_tensors(model, optimizer), "generators": generators}


def save(root: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, world: World, meta: dict[str, Any]) -> Path:
    """Write the checkpoint of a step; all ranks call it, and it returns when the checkpoint is complete.

    Args:
        root: folder of the checkpoints.
        step: steps done.
        model: not wrapped by DDP.
        optimizer: one made by ``optim.build``.
        world: this process.
        meta: JSON values to keep beside the tensors; floats come back bit for bit.
    """
    writing, final = root / f".writing-{step:08d}", root / f"step-{step:08d}"
    if world.leads:
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir(parents=True)
    world.barrier()
    state_dict_saver.save(_state(model, optimizer, world), checkpoint_id=str(writing))
    world.barrier()
    if world.leads:
        (writing / META).write_text(json.dumps(meta, allow_nan=False))
        shutil.rmtree(final, ignore_errors=True)
        writing.rename(final)
        for old in steps(root)[:-KEEP]:
            shutil.rmtree(old)
    world.barrier()
    return final


def steps(root: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(root.glob("step-*"))


def newest(root: Path, lineage: str, world: World) -> Path | None:
    """The newest complete checkpoint of this lineage, as rank 0 sees it; what cannot be used is removed.

    A checkpoint of another lineage (other data, settings or code) must not be mixed into this training.
    """
    found = None
    if world.leads:
        for stale in root.glob(".writing-*"):
            shutil.rmtree(stale)
        for path in steps(root):
            if read_meta(path)["lineage"] == lineage:
                found = str(path)
            else:
                shutil.rmtree(path)
    agreed = world.agreed(found)
    return Path(agreed) if agreed else None


def read_meta(path: Path) -> dict[str, Any]:
    """What was kept beside the tensors of a checkpoint."""
    loaded: dict[str, Any] = json.loads((path / META).read_text())
    return loaded


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> dict[str, Any]:
    """Load a checkpoint into model, optimizer and generators, in place; returns its meta."""
    state = _state(model, optimizer, world)
    state_dict_loader.load(state, checkpoint_id=str(path))
    model.load_state_dict(state["model"])
    torch.set_rng_state(state["generators"][f"cpu-{world.rank}"])
    if world.device.type == "cuda":
        torch.cuda.set_rng_state(state["generators"][f"cuda-{world.rank}"], world.device)
    return read_meta(path)
