"""Warm start."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
import pytest
import synthetic
import torch
from tiny import Tiny

from dig_models.bundle import Bundle, load_bundle, read_sids, save_bundle
from dig_models.dig import Dig
from dig_models.features import FeatureSpec, FeatureSpecMismatch
from dig_models.quantize.known import KnownSids
from dig_models.retrieve.rerank import Retriever
from dig_models.train.data import RequestTable
from dig_models.train.distributed import World
from dig_models.train.loop import fit
from dig_models.train.warm import align, between, rename_codes, settle, unaligned, warm_start


@pytest.fixture
def ancestor(tiny: Tiny) -> Bundle:
    model = tiny.model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.build_codebooks(0)
    return Bundle(model.eval(), tiny.spec, tiny.items, model.code_NL.numpy().copy(), {})


def fresh(tiny: Tiny, **changes: object) -> Dig:
    return tiny.model(**changes)


def test_codes_of_items_that_stay_are_kept_and_new_items_get_codes(tiny: Tiny, ancestor: Bundle) -> None:
    items = synthetic.make_items(tiny.spec, [*(f"i{n}" for n in range(10, 60)), "new-1", "new-2"])
    model = fresh(tiny)
    assert warm_start(model, ancestor, items)
    old = ancestor.items.rows(items.hash_N)
    stay = old > 0
    assert stay.sum() == 50
    assert model.code_NL[torch.from_numpy(stay)].tolist() == ancestor.codes_NL[old[stay]].tolist()
    assert (model.code_NL[1:] >= 0).all()
    assert torch.equal(model.mixer.state_dict()[k := next(iter(model.mixer.state_dict()))], ancestor.model.mixer.state_dict()[k])


@pytest.mark.slow
def test_a_warm_training_keeps_the_codes_of_known_items_and_can_be_told_to_move_them(tiny: Tiny, ancestor: Bundle, world: World) -> None:
    codes = {}
    for choice in ("keep", "move"):
        model = fresh(tiny)
        assert warm_start(model, ancestor, tiny.items)
        setup = tiny.setup(world, model=model, checkpoints=f"warm-{choice}", warm_codes=choice, warm_epochs=3, lr=0.02)
        record = fit(replace(setup, warm=True), world)
        assert len(record.epochs) == 3 and not record.codebooks
        codes[choice] = model.codes(model.encode_catalogue())[1:].numpy()
    assert np.array_equal(codes["keep"], ancestor.codes_NL[1:])
    assert (codes["move"] != ancestor.codes_NL[1:]).any()


def test_other_losses_still_start_warm(tiny: Tiny, ancestor: Bundle) -> None:
    assert warm_start(fresh(tiny, loss={"commit": 0.5}), ancestor, tiny.items)


def test_another_number_of_codes_takes_the_weights_but_not_the_codebooks(tiny: Tiny, ancestor: Bundle) -> None:
    model = fresh(tiny, codes=8)
    assert not warm_start(model, ancestor, tiny.items)
    assert not bool(model.quantizer.built) and (model.code_NL == -1).all()
    assert torch.equal(model.rank_bias, ancestor.model.rank_bias)


def test_a_model_of_other_features_is_refused(tiny: Tiny, ancestor: Bundle) -> None:
    spec = FeatureSpec.model_validate({**tiny.spec.model_dump(), "history_length": 7})
    model = Dig(ancestor.model.config, spec)
    with pytest.raises(FeatureSpecMismatch, match="start from"):
        warm_start(model, ancestor, tiny.items)


@pytest.mark.slow
def test_what_was_shown_to_the_ancestor_is_taken_over_with_its_encoder(tiny: Tiny, world: World) -> None:
    before = tiny.model()
    fit(tiny.setup(world, model=before, checkpoints="shown"), world)
    settle(before, tiny.items)
    old = Bundle(before, tiny.spec, tiny.items, before.code_NL.numpy().copy(), {})
    assert len(before.shown.hashes()) == len(tiny.items) - 1, "the random negatives alone show every item"
    later = synthetic.make_items(tiny.spec, [*(f"i{n}" for n in range(10, 60)), "new-1"])
    model = fresh(tiny)
    assert warm_start(model, old, later)
    assert np.array_equal(model.shown.hashes(), before.shown.hashes())
    assert torch.equal(model.shown.bucket_T, before.shown.bucket_T)
    assert model.shown.item_N[1:].tolist() == [str(item) != "new-1" for item in later.id_N[1:]]
    other = fresh(tiny, encoder_hidden=16)
    warm_start(other, old, later)
    assert not len(other.shown.hashes()) and not other.shown.bucket_T.any()


# ---- names of codes --------------------------------------------------------------------------------------------------


def some_labels(model: Dig, seed: int = 3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(model.config.codes) for _ in range(model.config.levels)])


def every_prefix(model: Dig, tiny: Tiny) -> Iterator[tuple[str, torch.Tensor]]:
    """Ranking, recall and u2t logits of every item (and of every prefix of every item) for some requests."""
    batch = next(iter(tiny.stream().in_order()))
    with torch.no_grad():
        e_ND = model.encode_catalogue()[1:]
        users = model.user_side(batch)
        request_R = torch.arange(batch.requests).repeat_interleave(len(e_ND))
        domain_R = torch.zeros(len(request_R), dtype=torch.int64)
        cross_RC = torch.rand(len(request_R), tiny.spec.cross_width, generator=torch.Generator().manual_seed(0))
        yield "rank", model.rank_logit(users, request_R, e_ND.repeat(batch.requests, 1), cross_RC, domain_R)
        prefix_NLD = model.prefix_embeddings(model.code_NL[1:])
        for level in range(model.config.levels):
            prefix_RD = prefix_NLD[:, level].repeat(batch.requests, 1)
            yield f"prefix {level}", prefix_RD
            yield f"recall {level}", model.recall_logit(users, request_R, prefix_RD, cross_RC, domain_R)
            yield f"u2t {level}", model.predict_u2t(users, request_R, prefix_RD)


def test_other_names_change_no_bit_of_a_score(tiny: Tiny, ancestor: Bundle) -> None:
    model = ancestor.model
    settle(model, tiny.items)
    before, codes = dict(every_prefix(model, tiny)), model.code_NL[1:].numpy().copy()
    label_LK = some_labels(model)
    rename_codes(model, label_LK)
    assert np.array_equal(model.code_NL[1:].numpy(), label_LK[np.arange(model.config.levels), codes]) and (model.code_NL[0] == -1).all()
    after = dict(every_prefix(model, tiny))
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


@pytest.mark.parametrize(("u2t", "rerank"), [("mlp", 0), ("exact", 0), ("exact", 30)])
def test_the_beam_search_finds_the_same_items_with_the_same_scores_under_other_names(
    tiny: Tiny, ancestor: Bundle, u2t: Literal["mlp", "exact"], rerank: int
) -> None:
    model = ancestor.model
    settle(model, tiny.items)
    table = pq.read_table(tiny.folders("validation")[0] + "/part-0.parquet", partitioning=None)
    requests = RequestTable.from_arrow(table, tiny.spec, tiny.items)
    found = []
    for _ in range(2):
        retriever = Retriever.of(model, tiny.spec, tiny.items, tiny.store, codes_NL=model.code_NL.numpy().copy())
        found.append(retriever.retrieve(requests, np.arange(len(requests)), k=20, beam=4, rerank=rerank, u2t=u2t))
        rename_codes(model, some_labels(model))
    for request in range(len(requests)):
        before, after = (dict(zip(f.item_GJ[request].tolist(), f.score_GJ[request].tolist(), strict=True)) for f in found)
        assert before.keys() == after.keys()
        assert [after[item] for item in before] == pytest.approx(list(before.values()), abs=1e-6)


def test_all_that_belongs_to_a_code_goes_with_its_name(tiny: Tiny, ancestor: Bundle) -> None:
    model = ancestor.model
    quantizer = model.quantizer
    with torch.no_grad():
        for of in (quantizer.count_LK, quantizer.sum_LKD, quantizer.idle_LK):
            of.copy_(torch.arange(of.numel()).view(of.shape))
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    settle(model, tiny.items)
    label_LK = some_labels(model)
    rename_codes(model, label_LK)
    shape = (model.config.levels, model.config.codes, -1)
    for name in ("code_LKD", "count_LK", "sum_LKD", "idle_LK", "semantic.weight"):
        was, now = before[name].view(shape), quantizer.state_dict()[name].view(shape)
        for level in range(shape[0]):
            for code in range(shape[1]):
                assert torch.equal(now[level, label_LK[level, code]], was[level, code]), name
    rename_codes(model, np.argsort(label_LK, axis=1))
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


def test_a_training_step_after_renaming_takes_the_renamed_codes(tiny: Tiny, ancestor: Bundle) -> None:
    """Nothing derived from the old names is left: buckets of the u2t teacher are those of the new codes."""
    model = ancestor.model
    batch = next(iter(tiny.stream().in_order()))
    model.eval()
    first = {name: float(value.detach()) for name, value in model(batch, "joint", tiny.lookup).items()}
    settle(model, tiny.items)
    rename_codes(model, some_labels(model))
    second = {name: float(value.detach()) for name, value in model(batch, "joint", tiny.lookup).items()}
    # Draws of the teacher follow the order of buckets, so only what does not depend on draws is the same to the bit.
    assert first["rank"] == second["rank"] and first["commit"] == pytest.approx(second["commit"], abs=1e-6)
    assert first["recon"] == pytest.approx(second["recon"], abs=1e-6)


def test_what_is_no_permutation_is_refused(tiny: Tiny, ancestor: Bundle) -> None:
    levels, codes = ancestor.model.config.levels, ancestor.model.config.codes
    for wrong in (np.zeros((levels, codes), np.int64), np.arange(codes)[None]):
        with pytest.raises(ValueError, match="a permutation of 0"):
            rename_codes(ancestor.model, wrong)


def test_a_model_under_other_names_is_aligned_to_no_churn_at_all_and_says_what_it_did(tiny: Tiny, ancestor: Bundle) -> None:
    model = ancestor.model
    settle(model, tiny.items)
    old, label_LK = model.reserved, some_labels(model)
    rename_codes(model, label_LK)
    assert between(old, model.reserved).rate > 0.5  # type: ignore[union-attr]
    found = align(model, old)
    assert np.array_equal(model.reserved.code_XL, old.code_XL) and np.array_equal(
        model.code_NL[1:].numpy(), old.find(tiny.items.hash_N[1:])
    )
    assert found.churn is not None and found.churn.rate == 0.0
    assert found.unaligned is not None and found.unaligned.rate > 0.5 and sum(found.unaligned.first) == pytest.approx(found.unaligned.rate)
    assert np.array_equal(unaligned(model.reserved, found.as_dict()).code_XL, label_LK[np.arange(old.levels), old.code_XL])
    assert align(model, old).as_dict()["renamed"] == [0] * old.levels, "a second time there is nothing to do"


def test_a_model_trained_anew_is_closer_to_the_old_one_aligned_than_not(tiny: Tiny, ancestor: Bundle) -> None:
    settle(ancestor.model, tiny.items)
    old, model = ancestor.model.reserved, fresh(tiny)
    model.load_state_dict(ancestor.model.state_dict())
    model.build_codebooks(5)
    settle(model, tiny.items)
    found = align(model, old)
    assert found.churn is not None and found.unaligned is not None
    assert found.churn.first[0] < found.unaligned.first[0] and found.churn.rate <= found.unaligned.rate


# ---- items outside the catalogue -------------------------------------------------------------------------------------


def test_a_settled_model_gives_an_item_its_sid_in_every_catalogue(tiny: Tiny, ancestor: Bundle, tmp_path: Path) -> None:
    model = ancestor.model
    everyone = synthetic.make_items(tiny.spec, [*(f"i{n}" for n in range(60)), "new-1", "new-2"])
    settle(model, everyone)
    said = {int(h): tuple(c) for h, c in zip(everyone.hash_N[1:], model.code_NL[1:].tolist(), strict=True)}
    model.set_items(tiny.items)
    with torch.no_grad():
        model.quantizer.code_LKD.mul_(-1)  # nearest codes are others now
    save_bundle(tmp_path, model, tiny.items, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["items.parquet", "model.json", "model.safetensors", "reserved.parquet"]
    bundle = load_bundle(tmp_path)
    for sids in (bundle.sids, read_sids(tmp_path)):
        assert {int(h): tuple(c) for h, c in zip(sids.hash_X, sids.code_XL.tolist(), strict=True)} == said
    bundle.model.set_items(everyone)
    again = bundle.model.codes(bundle.model.encode_catalogue())[1:].tolist()
    assert [tuple(c) for c in again] == [said[int(h)] for h in everyone.hash_N[1:]]
    stranger = synthetic.make_items(tiny.spec, ["i1", "never seen"])
    bundle.model.set_items(stranger)
    assert (bundle.model.code_NL[1:] >= 0).all(dim=1).tolist() == [int(h) in said for h in stranger.hash_N[1:]]


def test_a_damaged_reserve_is_named(tiny: Tiny, ancestor: Bundle, tmp_path: Path) -> None:
    settle(ancestor.model, synthetic.make_items(tiny.spec, [*(f"i{n}" for n in range(60)), "new-1"]))
    ancestor.model.set_items(tiny.items)
    save_bundle(tmp_path, ancestor.model, tiny.items, {})
    file = tmp_path / "reserved.parquet"
    file.write_bytes(file.read_bytes()[:-3])
    for read in (load_bundle, read_sids):
        with pytest.raises(ValueError, match=r"reserved\.parquet: damaged"):
            read(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match=r"reserved\.parquet: missing"):
        load_bundle(tmp_path)


@pytest.mark.slow
def test_an_item_published_after_training_keeps_its_sid_when_it_is_trained_on(tiny: Tiny, ancestor: Bundle, world: World) -> None:
    """Published with the first model, unknown to the training of the second, part of the training of the third."""
    later = synthetic.make_items(tiny.spec, [*(f"i{n}" for n in range(60)), "new-1", "new-2"])
    ancestor.model.settled = True
    ancestor.model.set_items(later)
    published = {
        int(h): c for h, c in zip(later.hash_N[1:], ancestor.model.codes(ancestor.model.encode_catalogue())[1:].tolist(), strict=True)
    }
    ancestor.model.set_items(tiny.items)
    model = fresh(tiny)
    assert warm_start(model, ancestor, tiny.items, later)
    fit(replace(tiny.setup(world, model=model, checkpoints="second", warm_epochs=1, lr=0.05), warm=True), world)
    model.set_items(later)
    nearest = model.quantizer.assign(model.encode_catalogue())[1:].tolist()
    assert any(published[int(h)] != c for h, c in zip(later.hash_N[1:], nearest, strict=True)), "the encoder has moved on"
    settle(model, later)
    second = KnownSids(model.reserved.hash_X, model.reserved.code_XL)
    assert {int(h): c for h, c in zip(second.hash_X, second.code_XL.tolist(), strict=True)} == published

    model.set_items(tiny.items)
    third = fresh(tiny)
    assert warm_start(third, Bundle(model, tiny.spec, tiny.items, model.code_NL.numpy().copy(), {}), later)
    assert third.code_NL[1:].tolist() == [published[int(h)] for h in later.hash_N[1:]]
