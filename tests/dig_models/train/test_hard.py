"""Hard negatives: whence they are drawn, what they leave alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import Tiny, same, state

from dig_models.batch import Batch
from dig_models.dig import Dig
from dig_models.features import SOURCE_EXPOSED, SOURCE_RANDOM, FeatureSpec
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


RANDOM_SHARE = float(np.exp(-2.0))
"""What the offset of the batch's open rows, 2, stands for."""


def drawing(model: Dig, lookup: PairLookup, **changes: int) -> HardNegatives:
    common = {"each": 12, "beam": 2, "seed": 5, "rank": 0, "history": 0} | changes
    share_N = torch.full((len(model.code_NL),), RANDOM_SHARE, dtype=torch.float64)
    return HardNegatives(model=model, lookup=lookup, share_N=share_N, **common)  # type: ignore[arg-type]


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


def pool_of(model: Dig, batch: Batch, request: int, beam: int) -> list[int]:
    """Items of the best prefixes."""
    best = best_prefixes(model, batch, request, beam)
    return [row for row in range(1, len(model.code_NL)) if tuple(model.code_NL[row, :-1].tolist()) in best]


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
    new = added(found, batch)
    for name in ("request_R", "item_R", "cross_RC", "label_R", "source_R"):
        assert torch.equal(getattr(found, name)[~new], getattr(batch, name)), name
    for name in ("request_R", "item_R", "cross_RC", "label_R", "source_R", "offset_R"):
        assert getattr(found, name).dtype == getattr(batch, name).dtype
    assert bool((found.label_R[new] == 0).all()) and bool((found.source_R[new] == SOURCE_RANDOM).all())
    at = found.request_R[new]
    keys = (batch.user_hash_B[at], batch.ts_B[at], batch.offer_B[at], found.item_R[new])
    assert np.array_equal(found.cross_RC[new].numpy(), lookup(*(k.numpy() for k in keys)))


def added(found: Batch, batch: Batch) -> torch.Tensor:
    """Which rows of a batch with hard negatives are these, bool ``(R,)``."""
    own = [torch.nonzero(found.request_R == b).squeeze(1)[: int((batch.request_R == b).sum())] for b in range(batch.requests)]
    new = torch.ones(found.rows, dtype=torch.bool)
    new[torch.cat(own)] = False
    return new


@pytest.mark.parametrize("history", [0, 2])
def test_offsets_know_which_rows_hard_negatives_made_likelier(model: Dig, batch: Batch, lookup: PairLookup, history: int) -> None:
    """``each / S`` copies of an item of prefixes that hold ``S`` items; positives of these too, exposed rows and all others as before."""
    found = drawing(model, lookup, each=60, history=history, beam=20).added_to(batch)
    new, seen = added(found, batch), set[tuple[str, bool]]()
    before = iter(batch.offset_R.tolist())
    pools = [pool_of(model, batch, request, 20) for request in range(batch.requests)]
    for row in range(found.rows):
        request, item, positive = int(found.request_R[row]), int(found.item_R[row]), bool(found.label_R[row] > 0)
        inside = item in pools[request]
        if new[row]:
            bought = set(batch.item_R[(batch.request_R == request) & (batch.label_R > 0)].tolist())
            free = set(batch.history_BH[request].tolist()) - bought - {0}
            share = RANDOM_SHARE + (min(history / len(free), 1.0) if item in free else 0.0)
            seen.add(("new", item in free))
            assert inside
        else:
            share = float(np.exp(-next(before)))
            inside = inside and int(found.source_R[row]) != SOURCE_EXPOSED
            seen.add(("positive" if positive else "negative", inside))
        assert float(found.offset_R[row]) == pytest.approx(-np.log(share + 60 / len(pools[request]) * inside), abs=1e-5)
    assert seen == {("new", False), ("new", True), ("positive", True), ("positive", False), ("negative", True), ("negative", False)}


def test_an_item_is_drawn_as_often_as_its_offset_says(model: Dig, batch: Batch, lookup: PairLookup) -> None:
    each = 20_000
    found = drawing(model, lookup, each=each).added_to(batch)
    new = added(found, batch)
    for request in range(batch.requests):
        pool = pool_of(model, batch, request, 2)
        count_N = np.bincount(found.item_R[new & (found.request_R == request)].numpy(), minlength=len(model.code_NL))
        bought = batch.item_R[(batch.request_R == request) & (batch.label_R > 0)].tolist()
        left = [item for item in pool if item not in bought]
        assert count_N.sum() == count_N[left].sum()
        assert np.allclose(count_N[left], each / len(pool), rtol=0.2)


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


@pytest.mark.slow
def test_training_with_hard_negatives_sees_more_rows_once_there_are_codebooks(tiny: Tiny, world: World) -> None:
    rows, weights = {}, {}
    hard = {"hard_negatives": 3, "hard_beam": 2, "epochs": 1}
    for name, changes in (("without", {"epochs": 1}), ("with", hard), ("again", hard)):
        setup = tiny.setup(world, checkpoints=f"hard-{name}", **changes)
        rows[name], weights[name] = fit(setup, world).rows, state(setup.model)
    assert rows["without"] < rows["with"] == rows["again"]
    assert same(weights["with"], weights["again"]) == [] != same(weights["with"], weights["without"])
