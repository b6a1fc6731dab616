"""Switches of the method in the network as a whole: exploration, coupled codebook, given SIDs, no u2t."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dig_models.batch import Batch
from dig_models.bundle import load_bundle, save_bundle
from dig_models.dig import Dig
from dig_models.features import FeatureSpec
from dig_models.index.encode import write_codes
from dig_models.items import ItemTable
from dig_models.quantize.known import KnownSids
from dig_models.train.warm import rename_codes, warm_start
from dig_models.u2t import PairLookup
from tests.dig_models.conftest import make_dig


def joint(spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup, **changes: object) -> Dig:
    model = make_dig(spec, items, **changes)
    model(batch, "warmup", lookup)
    model.build_codebooks(1)
    return model


def train(model: Dig, batch: Batch, lookup: PairLookup, steps: int = 12) -> list[float]:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    totals = []
    for _ in range(steps):
        optimizer.zero_grad()
        parts = model(batch, "joint", lookup)
        parts["total"].backward()
        optimizer.step()
        model.update_codebooks()
        totals.append(float(parts["recall"]))
    return totals


def encoder_gradient(model: Dig, batch: Batch, lookup: PairLookup) -> float:
    """What L_recall alone sends to the encoder that the quantizer reads, where ranking is cut off from it."""
    off = {"recall": 1.0, "commit": 0.0, "recon": 0.0, "u2t": 0.0}
    model.config = model.config.model_copy(update={"loss": model.config.loss.model_copy(update=off)})
    model.zero_grad()
    model(batch, "joint", lookup)["total"].backward()
    assert model.token_encoder is not None
    grad = model.token_encoder.mlp.first.weight.grad
    return 0.0 if grad is None else float(grad.norm())


GUMBEL = ("gumbel_sdud", "gumbel_frqud")
WHOLE: dict[str, object] = {}
CUT_OFF: dict[str, object] = {"rank_gradient_to_encoder": False, "recon_stop": "sid"}


@pytest.mark.parametrize(
    ("changes", "reached"),
    [
        ({}, False),
        ({"assignment": "gumbel_sdud"}, True),
        ({"assignment": "gumbel_frqud"}, True),
        ({"assignment": "gumbel_sdud", "gumbel_gradient": False}, False),
        ({"codebook": "coupled_ste"}, True),
    ],
)
def test_the_recall_loss_reaches_the_encoder_only_by_a_soft_or_straight_through_assignment(
    spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup, changes: dict[str, object], reached: bool
) -> None:
    model = joint(spec, items, batch, lookup, rank_gradient_to_encoder=False, retrieval_query="pool", **changes)
    assert (encoder_gradient(model, batch, lookup) > 0) == reached


@pytest.mark.parametrize("assignment", GUMBEL)
def test_exploration_is_for_training_alone_and_codes_are_the_nearest_elsewhere(
    spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup, assignment: str
) -> None:
    model = joint(spec, items, batch, lookup, assignment=assignment, sdud_sigma=5.0, frqud_ratio=0.01)
    e_MD = model.encode_items(torch.arange(1, 60))
    nearest = model.quantizer.assign(e_MD)
    taken, _ = model._tokens(e_MD, torch.arange(1, 60))
    assert not torch.equal(taken, nearest)
    assert torch.equal(model.codes(e_MD), nearest)
    model.eval()
    assert torch.equal(model._tokens(e_MD, torch.arange(1, 60))[0], nearest)
    model.train()
    model.settled = True
    assert torch.equal(model._tokens(e_MD, torch.arange(1, 60))[0], model.codes(e_MD, torch.arange(1, 60)))


@pytest.mark.parametrize("changes", [{"assignment": a} for a in GUMBEL] + [{"codebook": "coupled_ste"}, {"u2t_teacher": "none"}, CUT_OFF])
def test_every_switch_trains_with_every_parameter_in_every_phase(
    spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup, changes: dict[str, object]
) -> None:
    model = make_dig(spec, items, **changes)
    for phase in ("warmup", "joint"):
        if phase == "joint":
            model.build_codebooks(0)
        model.zero_grad(set_to_none=True)
        model(batch, phase, lookup)["total"].backward()
        assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    model.settled = True  # a warm start that keeps its codes
    model.zero_grad(set_to_none=True)
    model(batch, "joint", lookup)["total"].backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    model.settled = False
    recall = train(model, batch, lookup, steps=25)
    assert np.isfinite(recall).all() and recall[-1] < recall[0]


@pytest.mark.parametrize("assignment", GUMBEL)
def test_a_code_that_no_item_has_never_shows_a_row_its_own_crosses(
    spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup, assignment: str
) -> None:
    """Unless the row's item is of the longest prefix that there is: then it counts as often as any item of it."""
    model = joint(spec, items, batch, lookup, assignment=assignment, sdud_sigma=50.0, frqud_ratio=0.01, u2t_samples=64)
    with torch.no_grad():
        model.quantizer.code_LKD.mul_(0.05)  # noise decides
    item_M, at_R = torch.unique(batch.item_R, return_inverse=True)
    code_RL = model._tokens(model.encode_items(item_M), item_M)[0][at_R]
    marked = replace(batch, cross_RC=torch.ones_like(batch.cross_RC))
    taught_RLC = model._teacher(marked, code_RL, lambda user, ts, offer, item: np.zeros((len(user), spec.cross_width), dtype=np.float32))
    strange = 0
    for row, (item, code) in enumerate(zip(batch.item_R.tolist(), code_RL, strict=True)):
        pool = list(range(1, len(items)))
        for level in range(model.config.levels):
            same = [i for i in pool if bool((model.code_NL[i, : level + 1] == code[: level + 1]).all())]
            strange += not same
            pool = same or pool
            own = float(taught_RLC[row, level, 0])
            assert own == 0 if item not in pool else own == pytest.approx(1 / len(pool), abs=0.35)
    assert strange > 20


def test_a_resumed_exploration_draws_the_same_codes(spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup) -> None:
    model = joint(spec, items, batch, lookup, assignment="gumbel_sdud")
    state = {n: v.clone() for n, v in model.state_dict().items()}
    expected = model(batch, "joint", lookup)
    restored = make_dig(spec, items, seed=9, assignment="gumbel_sdud")
    restored.load_state_dict(state)
    torch.manual_seed(99)
    assert torch.equal(restored(batch, "joint", lookup)["total"], expected["total"])


def test_a_coupled_codebook_is_its_own_semantic_table_and_no_gradient_moves_it(
    spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup
) -> None:
    model = joint(spec, items, batch, lookup, codebook="coupled_ste")
    before = model.quantizer.code_LKD.clone()
    train(model, batch, lookup, steps=4)
    assert torch.equal(model.quantizer.semantic.weight, model.quantizer.code_LKD.flatten(0, 1))
    assert not torch.equal(model.quantizer.code_LKD, before), "it follows its items"
    assert not model.quantizer.semantic.weight.requires_grad


@pytest.mark.parametrize("changes", [{"assignment": a} for a in GUMBEL] + [{"codebook": "coupled_ste"}, CUT_OFF])
def test_bundles_keep_what_the_switches_added_and_codes_can_be_renamed(  # type: ignore[no-untyped-def]
    spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup, tmp_path, changes: dict[str, object]
) -> None:
    model = joint(spec, items, batch, lookup, **changes)
    train(model, batch, lookup, steps=2)
    model.eval()
    prefix = model.prefix_embeddings(model.code_NL[1:])
    model.settled = True
    rename_codes(model, np.stack([np.roll(np.arange(8), level + 1) for level in range(3)]))
    assert torch.equal(model.prefix_embeddings(model.code_NL[1:]), prefix)
    save_bundle(tmp_path, model, items, {})
    loaded = load_bundle(tmp_path).model
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


def test_without_u2t_crosses_say_nothing_on_the_recall_path(spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup) -> None:
    model = joint(spec, items, batch, lookup, u2t_teacher="none")
    train(model, batch, lookup, steps=5)
    model.eval()
    users, domain = model.user_side(batch), torch.zeros(batch.rows, dtype=torch.int64)
    prefix = model.prefix_embeddings(model.codes(model.encode_items(batch.item_R), batch.item_R))[:, -1]
    one, other = (model.recall_logit(users, batch.request_R, prefix, k * batch.cross_RC, domain) for k in (0.0, 3.0))
    assert torch.equal(one, other)


def given(items: ItemTable, levels: int = 3, codes: int = 8, seed: int = 5) -> KnownSids:
    rng = np.random.default_rng(seed)
    return KnownSids.of(items.hash_N[1:-4], rng.integers(0, codes - 1, (len(items) - 5, levels)))


def test_given_sids_stay_whatever_training_does_and_items_without_one_get_nearest_codes(
    spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup
) -> None:
    model = make_dig(spec, items, assignment="given")
    sids = given(items)
    model.reserved = sids
    model.set_items(items)
    model(batch, "warmup", lookup)
    figures = model.build_codebooks(1)
    assert figures["tree_collision_rate"] < 1
    expected = sids.find(items.hash_N[1:])
    train(model, batch, lookup, steps=6)
    code = model.code_NL[1:].numpy()
    assert np.array_equal(code[:-4], expected[:-4])
    assert (code[-4:] >= 0).all() and (expected[-4:] == -1).all()
    assert torch.equal(model.codes(model.encode_catalogue())[1:-4], torch.from_numpy(expected[:-4]))


def test_codebooks_of_given_sids_are_the_mean_residuals_of_their_items(
    spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup
) -> None:
    model = make_dig(spec, items, assignment="given")
    model.reserved = given(items)
    model.set_items(items)
    model(batch, "warmup", lookup)
    model.build_codebooks(1)
    e = model.encode_catalogue()[1:-4]
    code = model.code_NL[1:-4]
    first = torch.stack([e[code[:, 0] == k].mean(0) for k in range(7)])
    assert torch.allclose(model.quantizer.code_LKD[0, :7], first, atol=1e-5)
    left = e - first[code[:, 0]]
    second = torch.stack([left[code[:, 1] == k].mean(0) for k in range(7)])
    assert torch.allclose(model.quantizer.code_LKD[1, :7], second, atol=1e-5)
    assert torch.isfinite(model.quantizer.code_LKD).all(), "a code that no item has is somewhere too"


def test_given_sids_of_other_items_or_larger_codebooks_are_refused(
    spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup
) -> None:
    for sids, message in ((KnownSids.none(3), "none of 120 items has a SID"), (given(items, codes=12), "codes run up to 10")):
        model = make_dig(spec, items, assignment="given")
        model.reserved = sids
        model.set_items(items)
        with pytest.raises(ValueError, match=message):
            model.build_codebooks(1)


def test_codebooks_are_not_taken_over_without_the_embeddings_that_they_quantize(
    spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup, tmp_path: Path
) -> None:
    for name, changes in (("whole", WHOLE), ("cut", CUT_OFF)):
        model = joint(spec, items, batch, lookup, **changes).eval()
        save_bundle(tmp_path / name, model, items, {})
    for name, changes, kept in (("whole", WHOLE, True), ("cut", CUT_OFF, True), ("whole", CUT_OFF, False), ("cut", WHOLE, False)):
        model = make_dig(spec, items, **changes)
        assert warm_start(model, load_bundle(tmp_path / name), items) is kept is bool(model.quantizer.built)


def test_an_index_has_no_room_for_two_embeddings_of_an_item(
    spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup, tmp_path: Path
) -> None:
    model = joint(spec, items, batch, lookup, **CUT_OFF).eval()
    with pytest.raises(ValueError, match="rank_gradient_to_encoder: false is an ablation"):
        write_codes(model, items, tmp_path / "sid.npy", tmp_path / "embedding.npy")
