"""What training has shown, where two processes train together: what they tell each other, and what a resumed training knows."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from dig_models.config import TrainConfig
from dig_models.dig import Dig
from dig_models.features import FeatureSpec
from dig_models.items import ItemTable
from dig_models.train import checkpoint, optim
from dig_models.train.distributed import World
from tests.dig_models.conftest import make_batch, make_dig, pair_crosses

pytestmark = pytest.mark.slow
RANKS, STEPS, WARMUP, CUT, SEEN = 2, 6, 2, 4, 90
PARTS = ((1, 30), (30, 60), (1, 30), (60, SEEN))
"""Rows of the catalogue that a rank's batches show, by step and rank; from ``SEEN`` on none does."""


def _step(model: Dig, ddp: DistributedDataParallel, optimizer: torch.optim.Optimizer, step: int, rank: int) -> None:
    spec, items = model.spec, model.items
    assert items is not None
    first, last = PARTS[(step + rank) % len(PARTS)]
    batch = make_batch(spec, items, requests=3, rows=6, seed=RANKS * (step // 2) + rank)  # every second step is the one before it again
    history_BH = torch.where(batch.history_BH > 0, batch.history_BH % (last - first) + first, 0)
    batch = replace(batch, item_R=batch.item_R % (last - first) + first, history_BH=history_BH)
    if step == WARMUP:
        model.build_codebooks(1)
    optimizer.zero_grad()
    lookup = lambda user, ts, offer, item: pair_crosses(user, ts, offer, item, spec.cross_width)  # noqa: E731
    ddp(batch, "warmup" if step < WARMUP else "joint", lookup)["total"].backward()
    optimizer.step()
    model.update_codebooks()


def _train(home: Path, rank: int, spec: FeatureSpec, items: ItemTable) -> None:
    """One rank: a whole training with a checkpoint at ``CUT``, then another that goes on from there."""
    dist.init_process_group("gloo", init_method=f"file://{home}/store", rank=rank, world_size=RANKS)
    world = World(rank=rank, size=RANKS, device=torch.device("cpu"))
    left: dict[str, Any] = {}
    for name in ("whole", "resumed"):
        model = make_dig(spec, items, item_id_dropout=0.4)
        optimizer = optim.build(model, TrainConfig())
        read: list[tuple[Tensor, Tensor]] = []
        if name == "resumed":
            checkpoint.load(home / f"step-{CUT:08d}", model, optimizer, world)
        masked = model._masked

        def noted(item_M: Tensor, masked: Any = masked, read: list[Any] = read) -> Tensor:
            found: Tensor = masked(item_M)
            read.append((item_M, found))
            return found

        model._masked = noted  # type: ignore[method-assign]
        ddp = DistributedDataParallel(model, forward_sync_buffers=False)
        notes = []
        for step in range(CUT if name == "resumed" else 0, STEPS):
            _step(model, ddp, optimizer, step, rank)
            notes.append((model.shown.item_N.clone(), model.shown.bucket_T.clone()))
            if name == "whole" and step + 1 == CUT:
                checkpoint.save(home, CUT, model, optimizer, world, {"lineage": "l"})
        left[name] = {"state": model.state_dict(), "hashes": model.shown.hashes(), "notes": notes, "read": read}
    torch.save(left, home / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory, spec: FeatureSpec, items: ItemTable) -> list[dict[str, Any]]:
    """What each rank left behind."""
    home = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=_train, args=(home, rank, spec, items)) for rank in range(RANKS)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(600)
    assert [process.exitcode for process in ranks] == [0] * RANKS
    return [torch.load(home / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]


def test_after_every_step_all_ranks_have_noted_what_any_of_them_read(left: list[dict[str, Any]], items: ItemTable) -> None:
    shown: set[int] = set()
    for step in range(STEPS):
        for rank in left:
            item_M, masked_M = rank["whole"]["read"][step]
            shown |= set(item_M[~masked_M].tolist()) - {0}
        for rank in left:
            item_N, bucket_T = rank["whole"]["notes"][step]
            assert item_N.nonzero().flatten().tolist() == sorted(shown)
            assert torch.equal(bucket_T, left[0]["whole"]["notes"][step][1])
    assert 20 < len(shown) < SEEN < len(items)
    masked = {int(i) for rank in left for item_M, masked_M in rank["whole"]["read"] for i in item_M[masked_M]}
    assert masked - shown - {0}, "some item was never read with its id"


def test_a_resumed_training_knows_what_was_shown_before_it(left: list[dict[str, Any]]) -> None:
    for rank in left:
        assert len(rank["resumed"]["notes"]) == STEPS - CUT
        assert rank["resumed"]["hashes"].tolist() == left[0]["whole"]["hashes"].tolist()
        before, end = rank["whole"]["notes"][CUT - 1][0], rank["whole"]["notes"][-1][0]
        assert bool(before.any()) and not torch.equal(before, end), "something was shown before, and something after"
        for name, value in left[0]["whole"]["state"].items():
            for run in ("whole", "resumed"):
                assert torch.equal(rank[run]["state"][name], value), (run, name)
