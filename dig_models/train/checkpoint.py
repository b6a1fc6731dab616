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

from dig_models.faults import reached
from dig_models.files import naming_full_disk, replace_text, sync_dir, sync_tree
from dig_models.train.distributed import World
from dig_models.train.optim import state_tensors

KEEP = 2
META = "meta.json"
WRITING = ".writing-"


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
    writing, final = root / f"{WRITING}{step:08d}", root / f"step-{step:08d}"
    if world.leads:
        with naming_full_disk(root):
            shutil.rmtree(writing, ignore_errors=True)
            writing.mkdir(parents=True)
        reached("checkpoint.cleared")
    world.barrier()
    with naming_full_disk(root):
        state_dict_saver.save(_state(model, optimizer, world), checkpoint_id=str(writing))
    world.barrier()
    if world.leads:
        reached("checkpoint.tensors_written")
        replace_text(writing / META, json.dumps(meta, allow_nan=False))
        reached("checkpoint.meta_written")
        _install(writing, final)
        for old in steps(root)[:-KEEP]:
            _remove(old)
        reached("checkpoint.old_removed")
    world.barrier()
    return final


def _install(writing: Path, final: Path) -> None:
    """Give a finished checkpoint its name, once its files are durable; one of the same step goes when the new one stands."""
    sync_tree(writing)
    reached("checkpoint.synced")
    aside = writing.with_name(f"{writing.name}-old")
    if final.exists():
        final.rename(aside)
        reached("checkpoint.moved_aside")
    writing.rename(final)
    reached("checkpoint.renamed")
    sync_dir(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint; it loses its name first, so that what is named ``step-…`` is whole."""
    going = checkpoint.with_name(f"{WRITING}{checkpoint.name}")
    checkpoint.rename(going)
    reached("checkpoint.old_renamed")
    shutil.rmtree(going)


def steps(root: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(root.glob("step-*"))


def newest(root: Path, lineage: str, world: World) -> Path | None:
    """The newest complete checkpoint of this lineage, as rank 0 sees it; what cannot be used is removed.

    A checkpoint of another lineage (other data, settings or code) must not be mixed into this training.
    """
    found = None
    if world.leads:
        for path in steps(root):
            if read_meta(path)["lineage"] == lineage:
                found = str(path)
            else:
                _remove(path)
        for stale in root.glob(f"{WRITING}*"):
            shutil.rmtree(stale)
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
