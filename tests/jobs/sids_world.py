"""A lake of two dates that SIDs are made on beforehand, to damage at will."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from dig_models.items import ItemTable
from jobs import registry, sids, sids_inputs
from jobs.config import Config
from jobs.entry import run
from jobs.train_inputs import lake_inputs
from tests.jobs import train_world as tw

QUICK = ("tokenizers.rqvae.epochs=3", "tokenizers.rqvae.hidden=[8]", "tokenizers.rqvae.latent=4")
RQVAE, RKMEANS = ("tokenizer=rqvae", *QUICK), ("tokenizer=rkmeans",)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("lake")
    config = tw.build(home, days=(tw.before(1), tw.DAY))
    assert registry.versions(config) == []  # makes the database, which takes longer than all else here
    return home


@pytest.fixture
def home(built: Path, tmp_path: Path) -> Path:
    """A copy of the lake, to damage at will."""
    for name in ("lake", "mlflow"):
        shutil.copytree(built / name, tmp_path / name)
    return tmp_path


def made(home: Path, *sets: str, day: object = tw.DAY) -> int:
    own = [f"paths.home={home}", *(f"model.{k}={v}" for k, v in tw.ew.SMALL.items()), *tw.SETS, *sets]
    threads = torch.get_num_threads()
    try:
        return run("sids", sids.main, ["--date", str(day), *(part for one in own for part in ("--set", one))])
    finally:
        torch.set_num_threads(threads)


def result(home: Path, *sets: str) -> sids_inputs.Made:
    found = sids_inputs.found(tw.settings(home, *sets), tw.DAY)
    assert found is not None
    return found


def known(config: Config) -> ItemTable:
    return ItemTable.from_arrow(lake_inputs(config, tw.DAY).items_known(), config.dataset.spec())
