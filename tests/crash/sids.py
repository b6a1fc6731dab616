"""Crash scenario of the SIDs that a tokenizer makes before a training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from dig_models.quantize.known import read_sids
from jobs import runs, sids, sids_inputs
from jobs.config import Config
from jobs.entry import run
from tests.crash.harness import Scenario, files_of
from tests.jobs import train_world as tw

OTHER = "train.seed=5"


def make(root: Path, *sets: str) -> int:
    """``python -m jobs.sids``."""
    small = [f"paths.home={root}", "tokenizer=rkmeans", *(f"model.{k}={v}" for k, v in tw.ew.SMALL.items()), *tw.SETS, *sets]
    threads = torch.get_num_threads()
    try:
        return run("sids", sids.main, ["--config", "conf/local.yaml", "--date", str(tw.DAY), *(p for one in small for p in ("--set", one))])
    finally:
        torch.set_num_threads(threads)


def settings(root: Path) -> Config:
    return tw.settings(root, "tokenizer=rkmeans")


def others(root: Path) -> None:
    """A lake, and SIDs of other settings."""
    tw.build(root)
    assert make(root, OTHER) == 0


def look(root: Path) -> Mapping[str, str]:
    """The SIDs of the date, as a training takes them."""
    config = settings(root)
    made = sids_inputs.found(config, tw.DAY)
    assert made is not None, "neither old nor new"
    return {"sids": f"{made.lineage} {read_sids(made.sids, levels=config.model.levels, codes=config.model.codes).code_XL.sum()}"}


def left(root: Path) -> Mapping[str, object]:
    """Files of the tokenizer, and its records without times."""
    config = settings(root)
    found: dict[str, object] = dict(files_of(sids_inputs.home(config, tw.DAY)))
    made = sids_inputs.found(config, tw.DAY)
    assert made is not None
    found[f"{made.folder.name}/{sids_inputs.RECORD}"] = {k: v for k, v in made.record.items() if k != "seconds"}
    found["sids.json"] = {k: v for k, v in runs.read(config, tw.DAY, "sids").items() if k != "seconds"}
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


SCENARIOS = [
    Scenario(
        area="sids",
        situation="those of other settings there",
        prepare=others,
        step=make,
        look=look,
        leaves=left,
        points=("sids.written", "sids.sealed", "sids.current", "sids.old_removed"),
        full=("file.written",),
    )
]
