"""Hard negatives: whence they are drawn, what they leave alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import Tiny, same, state

from dig_models.batch import Batch
from dig_models.dig import Dig
from dig_models.features import SOURCE_RANDOM, FeatureSpec
from dig_models.items import ItemTable
from dig_models.train.distributed import World
from dig_models.train.hard import OPEN, HardNegatives
from dig_models.train.loop import fit
from dig_models.u2t import PairLookup
from tests.dig_models.conftest import make_dig


@pytest.fixture
def model(spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup) -> Dig:
    made = make_dig(spec, items)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    made(batch, "warmup", lookup)
    made.build_codebooks(1)
    return made


def drawing(model: Dig, lookup: PairLookup, **changes: int) -> HardNegatives:
    common = {"each": 12, "beam": 2, "seed": 5, "rank": 0} | changes
    return HardNegatives(model=model, lookup=lookup, offset=1.5, **common)  # type: ignore[arg-type]


def best_prefixes(model: Dig, batch: Batch, request: int, beam: int) -> set[tuple[int, ...]]:
    """The slow way: level by level, every prefix that exists under those kept, scored one by one."""
    model.eval()
    users, kept = model.user_side(batch), [()]
    for level in range(model.config.levels - 1):
        there = sorted({tuple(c[: level + 1]) for c in model.code_NL[1:].tolist()})
        asked = [p for p in there if p[:-1] in kept]
        scores = []
        for prefix in asked:
            e_1D = model.prefix_embeddings(torch.tensor([prefix]))[:, -1]
            at = torch.tensor([request])
            scores.append(float(model.recall_logit(users, at, e_1D, model.predict_u2t(users, at, e_1D), torch.tensor([OPEN])).detach()))
        kept = [asked[i] for i in np.argsort([-s for s in scores], kind="stable")[:beam]]
    model.train()
    return set(kept)


def test_items_come_from_the_prefixes_that_a_search_by_the_recall_path_would_expand(model: Dig, batch: Batch, lookup: PairLookup) -> None:
    none = replace(batch, label_R=torch.zeros_like(batch.label_R))
    found = drawing(model, lookup, each=60).added_to(none)
    for request in range(batch.requests):
        expected = best_prefixes(model, batch, request, 2)
        new = found.item_R[(found.request_R == request)][int((batch.request_R == request).sum()) :]
        assert {tuple(c[:-1]) for c in model.code_NL[new].tolist()} == expected
        pool = [row for row in range(1, len(model.code_NL)) if tuple(model.code_NL[row, :-1].tolist()) in expected]
        assert set(new.tolist()) <= set(pool) and len(set(new.tolist())) > 0.7 * len(pool), "each item of the prefixes has its chance"


def test_the_batch_s_own_rows_stay_and_the_new_ones_are_open_negatives_with_real_crosses(
    model: Dig, batch: Batch, lookup: PairLookup
) -> None:
    found = drawing(model, lookup).added_to(batch)
    assert found.rows > batch.rows and bool((found.request_R.diff() >= 0).all())
    old = torch.cat([torch.nonzero(found.request_R == b).squeeze(1)[: int((batch.request_R == b).sum())] for b in range(batch.requests)])
    for name in ("request_R", "item_R", "cross_RC", "label_R", "source_R", "offset_R"):
        assert torch.equal(getattr(found, name)[old], getattr(batch, name)), name
        assert getattr(found, name).dtype == getattr(batch, name).dtype
    new = torch.ones(found.rows, dtype=torch.bool)
    new[old] = False
    assert bool((found.label_R[new] == 0).all()) and bool((found.source_R[new] == SOURCE_RANDOM).all())
    assert bool((found.offset_R[new] == 1.5).all())
    at = found.request_R[new]
    keys = (batch.user_hash_B[at], batch.ts_B[at], batch.offer_B[at], found.item_R[new])
    assert np.array_equal(found.cross_RC[new].numpy(), lookup(*(k.numpy() for k in keys)))


def test_a_positive_of_the_request_is_never_a_hard_negative(model: Dig, batch: Batch, lookup: PairLookup) -> None:
    drawn = drawing(model, lookup, each=60).added_to(replace(batch, label_R=torch.zeros_like(batch.label_R)))
    first = drawn.item_R[drawn.request_R == 0][-1]
    bought = replace(batch, item_R=torch.where((batch.request_R == 0) & (batch.label_R > 0), first, batch.item_R))
    assert bool(((bought.request_R == 0) & (bought.label_R > 0)).any())
    found = drawing(model, lookup, each=60).added_to(bought)
    own = int((batch.request_R == 0).sum())
    assert int(first) not in found.item_R[found.request_R == 0][own:].tolist()
    assert int(first) in drawn.item_R[drawn.request_R == 0][own:].tolist()


def test_seed_step_and_rank_decide_and_the_model_stays_as_it_is(model: Dig, batch: Batch, lookup: PairLookup) -> None:
    before = {n: v.clone() for n, v in model.state_dict().items()}
    one = drawing(model, lookup).added_to(batch)
    torch.manual_seed(1)
    assert torch.equal(one.item_R, drawing(model, lookup).added_to(batch).item_R)
    assert model.training and all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    others = [drawing(model, lookup, seed=6), drawing(model, lookup, rank=1)]
    assert all(o.added_to(batch).item_R.tolist() != one.item_R.tolist() for o in others)
    model.step += 1
    assert drawing(model, lookup).added_to(batch).item_R.tolist() != one.item_R.tolist()


def test_a_sid_of_one_level_works_too(spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup) -> None:
    model = make_dig(spec, items, levels=1)
    model(batch, "warmup", lookup)
    model.build_codebooks(1)
    found = drawing(model, lookup, beam=20).added_to(batch)
    assert found.rows > batch.rows and bool((found.item_R > 0).all())


def test_training_with_hard_negatives_sees_more_rows_once_there_are_codebooks(tiny: Tiny, world: World) -> None:
    rows, weights = {}, {}
    hard = {"hard_negatives": 3, "hard_beam": 2, "epochs": 1}
    for name, changes in (("without", {"epochs": 1}), ("with", hard), ("again", hard)):
        setup = tiny.setup(world, checkpoints=f"hard-{name}", **changes)
        rows[name], weights[name] = fit(setup, world).rows, state(setup.model)
    assert rows["without"] < rows["with"] == rows["again"]
    assert same(weights["with"], weights["again"]) == [] != same(weights["with"], weights["without"])
