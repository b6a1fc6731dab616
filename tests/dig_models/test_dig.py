"""The network as a whole: which gradient reaches what, both paths, switches, codebooks, determinism."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dig_models.batch import Batch
from dig_models.dig import BIAS_GAIN, Dig
from dig_models.features import FeatureSpec, FieldSpec
from dig_models.items import ItemTable
from dig_models.nn.attention import UserSide
from dig_models.u2t import PairLookup
from tests.dig_models.conftest import make_batch, make_dig


def _joint(spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup, **changes: object) -> Dig:
    """A model with codebooks, one warm-up step old."""
    model = make_dig(spec, items, **changes)
    model(batch, "warmup", lookup)
    model.build_codebooks(1)
    return model


def _gradient_of(model: Dig, batch: Batch, lookup: PairLookup, **weights: float) -> dict[str, float]:
    """Norm of each parameter's gradient when only the named losses (and L_rank) count."""
    off = {"recall": 0.0, "commit": 0.0, "recon": 0.0, "u2t": 0.0}
    config = model.config.model_copy(update={"loss": model.config.loss.model_copy(update=off | weights)})
    model.config = config
    model.zero_grad()
    model(batch, "joint", lookup)["total"].backward()
    return {n: 0.0 if p.grad is None else float(p.grad.norm()) for n, p in model.named_parameters()}


def _train(model: Dig, batches: list[Batch], lookup: PairLookup, steps: int, warmup: int) -> list[float]:
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    totals = []
    for step in range(steps):
        if step == warmup:
            model.build_codebooks(3)
        parts = model(batches[step % len(batches)], "warmup" if step < warmup else "joint", lookup)
        optimizer.zero_grad()
        parts["total"].backward()
        optimizer.step()
        model.update_codebooks()
        totals.append(float(parts["total"].detach()))
    return totals


def test_rank_loss_reaches_the_encoder_without_a_straight_through_estimator(
    spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup
) -> None:
    model = _joint(spec, items, batch, lookup)
    model.zero_grad()
    model(batch, "warmup", lookup)["total"].backward()
    assert model.encoder.first.weight.grad is not None
    assert float(model.encoder.first.weight.grad.norm()) > 0
    assert not model.quantizer.code_LKD.requires_grad
    assert model.quantizer.semantic.weight.grad is not None
    assert float(model.quantizer.semantic.weight.grad.norm()) == 0


def test_recall_loss_reaches_semantic_rows_and_mixer_but_never_the_codes(
    spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup
) -> None:
    model = _joint(spec, items, batch, lookup)
    before = model.quantizer.code_LKD.clone()
    norms = _gradient_of(model, batch, lookup, recall=1.0)
    for name in ("quantizer.semantic.weight", "mixer.cross.down.0.weight", "norm_sid.weight", "norm_u2t.weight", "recall_bias"):
        assert norms[name] > 0, name
    assert "quantizer.code_LKD" not in dict(model.named_parameters())
    assert torch.equal(model.quantizer.code_LKD, before)
    assert norms["u2t_head.out.weight"] == 0, "MLP_u2t learns from L_u2t alone"


@pytest.mark.parametrize("through", [False, True])
def test_u2t_loss_trains_its_head_and_what_the_head_reads_only_if_asked(
    spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup, through: bool
) -> None:
    reads = ("user_tower.first.weight", "quantizer.semantic.weight")
    norms = {}
    for weight in (0.0, 1.0):
        model = _joint(spec, items, batch, lookup, u2t_gradient=through)
        norms[weight] = _gradient_of(model, batch, lookup, recall=1e-9, u2t=weight)
    assert norms[1.0]["u2t_head.out.weight"] > 0 == norms[0.0]["u2t_head.out.weight"]
    for name in reads:
        assert (norms[1.0][name] != pytest.approx(norms[0.0][name], rel=1e-3)) == through, name


def test_the_tokenizer_can_be_cut_off_from_the_rank_loss(spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup) -> None:
    """Ranking has a trained encoder as ever; what the quantizer reads is another, which ``L_commit`` and ``L_recon`` alone train."""
    model = _joint(spec, items, batch, lookup, rank_gradient_to_encoder=False, recon_stop="sid")
    own, tokens = ("encoder.", "item_fields."), "token_encoder."
    model.zero_grad()
    model(batch, "warmup", lookup)["total"].backward()
    found = {"warmup": {n: 0.0 if p.grad is None else float(p.grad.norm()) for n, p in model.named_parameters()}}
    found |= {name: _gradient_of(model, batch, lookup, recall=1e-9, **{name: 1.0}) for name in ("u2t", "commit", "recon")}
    found["recall"] = _gradient_of(model, batch, lookup, recall=1.0)
    for name, norms in found.items():
        assert all(n > 0 for p, n in norms.items() if p.startswith(own)), name
        assert {n > 0 for p, n in norms.items() if p.startswith(tokens)} == {name in ("commit", "recon")}, name


def test_of_a_tokenizer_that_is_cut_off_ranking_reads_nothing_and_sids_nothing_of_ranking(
    spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup
) -> None:
    model = _joint(spec, items, batch, lookup, rank_gradient_to_encoder=False).eval()
    assert model.token_encoder is not None

    def seen() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            e_ND = model.encode_catalogue()
            logit_R = model.rank_logit(model.user_side(batch), batch.request_R, e_ND[batch.item_R], batch.cross_RC, batch.domain_R)
            return logit_R, model.codes(e_ND)

    logit_R, code_NL = seen()
    changed: dict[torch.nn.Module, tuple[bool, bool]] = {}
    for module in (model.token_encoder, model.encoder):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        found = seen()
        changed[module] = (not torch.equal(found[0], logit_R), not torch.equal(found[1], code_NL))
        logit_R, code_NL = found
    assert changed == {model.token_encoder: (False, True), model.encoder: (True, False)}


def test_a_tokenizer_cut_off_from_ranking_starts_the_rest_of_the_model_alike(spec: FeatureSpec, items: ItemTable) -> None:
    whole, cut = make_dig(spec, items).state_dict(), make_dig(spec, items, rank_gradient_to_encoder=False).state_dict()
    assert {n for n in cut if n not in whole} and all(n.startswith("token_encoder.") for n in cut if n not in whole)
    assert [n for n in whole if not n.startswith("corpus_norm.") and not torch.equal(whole[n], cut[n])] == []


@pytest.mark.parametrize("query", ["sid", "pool"])
def test_every_parameter_takes_part_in_every_phase(
    spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup, query: str
) -> None:
    model = make_dig(spec, items, retrieval_query=query)
    for phase in ("warmup", "joint"):
        if phase == "joint":
            model.build_codebooks(0)
        model.zero_grad(set_to_none=True)
        model(batch, phase, lookup)["total"].backward()
        assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_base_computes_nothing_of_the_recall_path(
    spec: FeatureSpec, items: ItemTable, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the recall path ran")

    model = make_dig(spec, items, loss={"recall": 0.0})
    for name in ("_joint", "_teacher", "codes", "prefix_embeddings"):
        monkeypatch.setattr(model, name, refuse)
    monkeypatch.setattr(model.quantizer, "assign", refuse)
    parts = model(batch, "joint", refuse)
    assert set(parts) == {"total", "rank"}
    assert torch.isclose(parts["total"], parts["rank"])


def test_warmup_and_joint_agree_on_the_rank_loss_s_form(spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup) -> None:
    model = _joint(spec, items, batch, lookup)
    model.eval()
    warm, joint = model(batch, "warmup", lookup), model(batch, "joint", lookup)
    assert torch.isclose(warm["rank"], joint["rank"], atol=1e-6)


def test_total_is_the_weighted_sum_of_the_parts(spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup) -> None:
    weights = {"recall": 0.7, "commit": 0.3, "recon": 0.2, "u2t": 0.5}
    model = _joint(spec, items, batch, lookup, loss=weights)
    parts = model(batch, "joint", lookup)
    assert torch.isclose(parts["total"], parts["rank"] + sum(w * parts[name] for name, w in weights.items()))
    levels = torch.stack([parts[f"recall_{level}"] for level in (1, 2, 3)])
    assert torch.isclose(parts["recall"], levels.mean())


def test_losses_are_those_of_the_public_scoring_functions(spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup) -> None:
    """In evaluation mode, L_rank, L_recall and L_u2t of ``forward`` follow from rank_logit, recall_logit and predict_u2t."""
    model = _joint(spec, items, batch, lookup, u2t_teacher="batch_mean", u2t_mix=0.0)
    model.eval()
    parts = model(batch, "joint", lookup)
    users = model.user_side(batch)
    domain = (batch.source_R > 0).long()
    e = model.encode_items(batch.item_R)

    def slow(logit: torch.Tensor) -> float:
        p = torch.sigmoid(logit.detach() + batch.offset_R)
        bce = -(batch.label_R * p.log() + (1 - batch.label_R) * (1 - p).log())
        return float((bce[domain == 0].mean() + bce[domain == 1].mean()) / 2)

    assert np.isclose(slow(model.rank_logit(users, batch.request_R, e, batch.cross_RC, domain)), float(parts["rank"]), rtol=1e-4)
    code = model.codes(e, batch.item_R)
    prefix = model.prefix_embeddings(code)
    recall, distil = [], []
    for level in range(3):
        predicted = model.predict_u2t(users, batch.request_R, prefix[:, level])
        recall.append(slow(model.recall_logit(users, batch.request_R, prefix[:, level], predicted, domain)))
        key = [tuple(c[: level + 1]) for c in code.tolist()]
        teacher = torch.stack([batch.cross_RC[[i for i, k in enumerate(key) if k == own]].mean(0) for own in key])
        distil.append(float((predicted.detach() - teacher).square().sum(1).mean()))
    assert np.isclose(np.mean(recall), float(parts["recall"]), rtol=1e-4)
    assert np.isclose(np.mean(distil), float(parts["u2t"]), rtol=1e-4)
    distinct = torch.unique(torch.cat([batch.item_R, batch.history_BH.flatten()]))
    e_M = model.encode_items(distinct)
    semantic = model.prefix_embeddings(model.codes(e_M, distinct))[:, -1]
    assert np.isclose(float((e_M - semantic).detach().square().sum(1).mean()), float(parts["recon"]), rtol=1e-4)


@pytest.mark.parametrize("teacher", ["batch_mean", "leave_one_out", "catalogue_sample"])
@pytest.mark.parametrize("key", ["prefix", "token"])
def test_every_teacher_trains(spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup, teacher: str, key: str) -> None:
    model = make_dig(spec, items, u2t_teacher=teacher, bucket_key=key)
    totals = _train(model, [batch], lookup, steps=40, warmup=10)
    assert np.isfinite(totals).all()
    assert totals[-1] < totals[10]


def test_what_is_learned_holds_on_rows_never_seen(spec: FeatureSpec, items: ItemTable, lookup: PairLookup) -> None:
    batches = [make_batch(spec, items, requests=20, rows=20, seed=s) for s in range(60)]
    model = make_dig(spec, items)
    held = make_batch(spec, items, requests=20, rows=20, seed=99)
    _train(model, batches, lookup, steps=60, warmup=60)
    trained = model.eval()(held, "warmup", lookup)["rank"]
    fresh = make_dig(spec, items)
    fresh(batches[0], "warmup", lookup)
    untrained = fresh.eval()(held, "warmup", lookup)["rank"]
    assert float(trained) < 0.97 * float(untrained)


def test_biases_start_at_the_base_rate_of_each_domain(spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup) -> None:
    model = make_dig(spec, items)
    model(batch, "warmup", lookup)
    for s in (0, 1):
        own = (batch.source_R > 0) == bool(s)
        rate = (float(batch.label_R[own].sum()) + 0.5) / (int(own.sum()) + 1)
        expected = np.log(rate / (1 - rate)) - float(batch.offset_R[own].mean())
        assert np.isclose(BIAS_GAIN * float(model.rank_bias.detach()[s]), expected, atol=1e-5)


def test_domains_keep_their_own_cross_statistics(spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup) -> None:
    shifted = replace(batch, cross_RC=batch.cross_RC + 5.0 * (batch.source_R > 0)[:, None])
    model = make_dig(spec, items)
    model(shifted, "warmup", lookup)
    for s in (0, 1):
        own = shifted.cross_RC[(batch.source_R > 0) == bool(s)]
        assert torch.allclose(model.norm_u2i.mean_SC[s], own.mean(0), atol=1e-4)


def test_corpus_statistics_come_from_the_catalogue_not_from_the_batch(
    spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup
) -> None:
    model = make_dig(spec, items)
    model(batch, "warmup", lookup)
    e = model.encode_catalogue()[1:]
    assert torch.allclose(e.mean(0), torch.zeros(8), atol=1e-4)
    assert torch.allclose(e.std(0, correction=0), torch.ones(8), atol=1e-2)


def test_item_id_dropout_masks_the_item_id_field_alone(spec: FeatureSpec, items: ItemTable) -> None:
    model = make_dig(spec, items)
    rows = torch.arange(1, 20)
    masked = model.corpus_norm(model._raw_encode(rows, torch.ones(19, dtype=torch.bool)))
    without = replace(items, fields={**items.fields, "item_id": np.zeros_like(items.fields["item_id"])})
    model.set_items(without)
    assert torch.allclose(masked, model.encode_items(rows))
    assert not torch.allclose(masked, make_dig(spec, items).encode_items(rows))


def test_items_are_encoded_once_however_often_they_occur(
    spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _joint(spec, items, batch, lookup, u2t_teacher="batch_mean")
    seen: list[int] = []
    encode = model._raw_encode

    def counting(item_M: torch.Tensor, masked_M: torch.Tensor | None = None) -> torch.Tensor:
        seen.extend(item_M.tolist())
        return encode(item_M, masked_M)

    monkeypatch.setattr(model, "_raw_encode", counting)
    model(batch, "joint", lookup)
    assert sorted(seen) == sorted(set(batch.item_R.tolist()) | set(batch.history_BH.flatten().tolist()))


def test_a_row_s_score_does_not_depend_on_the_rows_beside_it(spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup) -> None:
    model = _joint(spec, items, batch, lookup)
    model.eval()
    users, domain = model.user_side(batch), (batch.source_R > 0).long()
    e = model.encode_items(batch.item_R)
    prefix = model.prefix_embeddings(model.codes(e))[:, 1]
    for r in (0, 9, batch.rows - 1):
        one = slice(r, r + 1)
        for score, side in ((model.rank_logit, e), (model.recall_logit, prefix)):
            together = score(users, batch.request_R, side, batch.cross_RC, domain)
            alone = score(users, batch.request_R[one], side[one], batch.cross_RC[one], domain[one])
            assert torch.allclose(together[r], alone[0], atol=1e-4)


def test_a_request_without_history_is_scored(spec: FeatureSpec, items: ItemTable, batch: Batch) -> None:
    model = make_dig(spec, items).eval()
    users: UserSide = model.user_side(batch)
    assert int(users.mask_BH[0].sum()) == 1
    e = model.encode_items(batch.item_R)
    logit = model.rank_logit(users, batch.request_R, e, batch.cross_RC, torch.zeros(batch.rows, dtype=torch.int64))
    assert bool(torch.isfinite(logit).all())


def test_an_unknown_item_is_scored_and_does_not_shift_the_catalogue(spec: FeatureSpec, items: ItemTable, batch: Batch) -> None:
    model = make_dig(spec, items).eval()
    logit = model.rank_logit(
        model.user_side(batch), torch.tensor([0]), model.encode_items(torch.tensor([0])), batch.cross_RC[:1], torch.tensor([1])
    )
    assert bool(torch.isfinite(logit).all())


def test_target_free_pooling_reads_the_same_history_for_every_prefix(
    spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup
) -> None:
    model = _joint(spec, items, batch, lookup, retrieval_query="pool").eval()
    users = model.user_side(batch)
    read = model.pooled(users, batch.request_R)
    assert torch.equal(read[batch.request_R == 1], read[batch.request_R == 1][:1].expand_as(read[batch.request_R == 1]))


def test_the_joint_phase_needs_codebooks(spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup) -> None:
    with pytest.raises(RuntimeError, match="build_codebooks"):
        make_dig(spec, items)(batch, "joint", lookup)


def test_codebooks_start_from_a_collision_free_tree(spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup) -> None:
    model = make_dig(spec, items, assignment="frozen_tree")
    model(batch, "warmup", lookup)
    figures = model.build_codebooks(1)
    assert figures["tree_collision_rate"] == 0.0
    assert len(torch.unique(model.code_NL[1:], dim=0)) == len(items) - 1


def test_frozen_codes_stay_and_online_codes_follow_the_embeddings(
    spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup
) -> None:
    for assignment in ("frozen_tree", "online_rq"):
        model = make_dig(spec, items, assignment=assignment)
        _train(model, [batch], lookup, steps=12, warmup=10)
        before = model.code_NL[1:].clone()
        with torch.no_grad():
            model.item_fields.table.weight.mul_(-1.0)
        model.update_codebooks()
        assert torch.equal(model.code_NL[1:], before) == (assignment == "frozen_tree")


def test_frozen_codes_follow_items_into_another_catalogue_and_new_items_get_nearest_codes(
    spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup
) -> None:
    model = make_dig(spec, items, assignment="frozen_tree")
    _train(model, [batch], lookup, steps=3, warmup=2)
    known = model.code_NL.clone()
    keep = np.r_[0, np.arange(2, len(items), 2)]
    hashes = items.hash_N[keep].copy()
    hashes[-1] += 1
    fewer = replace(
        items,
        hash_N=hashes,
        id_N=items.id_N[keep],
        name_N=items.name_N[keep],
        fields={n: v[keep] for n, v in items.fields.items()},
        numbers={n: v[keep] for n, v in items.numbers.items()},
        key_KN=items.key_KN[:, keep],
    )
    model.set_items(fewer)
    e = model.encode_catalogue()
    code = model.codes(e)
    assert torch.equal(code[1:-1], known[torch.from_numpy(keep)][1:-1])
    assert torch.equal(code[-1], model.quantizer.assign(e[-1:])[0])
    with pytest.raises(ValueError, match="pass item_M"):
        model.codes(e[:3])


def test_a_dead_code_is_reset_to_a_residual_of_its_level_with_its_semantic_row(
    spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup
) -> None:
    model = _joint(spec, items, batch, lookup, dead_code_steps=2)
    with torch.no_grad():
        model.quantizer.code_LKD[1, 3] = 1e3
        model.quantizer.sum_LKD[1, 3] = 1e3 * model.quantizer.count_LK[1, 3]
    assert model.update_codebooks()["codes_reset"] == 0
    figures = model.update_codebooks()
    row = 1 * 8 + 3
    assert row in model.reset_rows.tolist()
    assert figures["codes_reset"] == len(model.reset_rows)
    vector = model.quantizer.code_LKD[1, 3]
    assert torch.equal(model.quantizer.semantic.weight[row], vector)
    candidates = model.quantizer.residuals(model.encode_catalogue()[1:], model.code_NL[1:])[:, 1]
    assert float((candidates - vector).norm(dim=1).min()) < 0.5


def test_update_reports_usage_collisions_and_error(spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup) -> None:
    model = _joint(spec, items, batch, lookup)
    before = model.quantizer.code_LKD.clone()
    code = model.codes(model.encode_catalogue())[1:]
    e = model.encode_catalogue()[1:]
    figures = model.update_codebooks()
    distinct = len({tuple(c) for c in code.tolist()})
    assert np.isclose(figures["collision_rate"], 1 - distinct / len(code))
    assert figures["codes_used_1"] == len(set(code[:, 0].tolist()))
    assert torch.equal(model.code_NL[1:], code)
    assert not torch.equal(before, model.quantizer.code_LKD)
    assert np.isclose(figures["quantization_error"], float((e - model.quantizer.quantized(code).sum(1)).square().sum(1).mean()), rtol=0.05)


def test_before_the_codebooks_an_update_measures_the_corpus_alone(spec: FeatureSpec, items: ItemTable) -> None:
    model = make_dig(spec, items)
    assert model.update_codebooks() == {}
    assert bool(model.corpus_norm.measured)


def test_training_repeats_itself_whatever_the_global_generator_is_at(spec: FeatureSpec, items: ItemTable, lookup: PairLookup) -> None:
    batches = [make_batch(spec, items, seed=s) for s in range(3)]
    results = []
    for noise in (1, 2):
        model = make_dig(spec, items, item_id_dropout=0.5)
        torch.manual_seed(noise)
        results.append((_train(model, batches, lookup, steps=12, warmup=6), model.state_dict()))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(results[0][1][n], results[1][1][n]) for n in results[0][1])


def test_a_restored_state_goes_on_as_if_never_stopped(spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup) -> None:
    model = make_dig(spec, items)
    _train(model, [batch], lookup, steps=8, warmup=4)
    state = {n: v.clone() for n, v in model.state_dict().items()}
    expected = model(batch, "joint", lookup)
    restored = make_dig(spec, items, seed=9)
    restored.load_state_dict(state)
    found = restored(batch, "joint", lookup)
    assert all(torch.equal(expected[n], found[n]) for n in expected)


def test_user_and_context_fields_may_share_a_name(spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup) -> None:
    same = spec.model_copy(update={"context_fields": (FieldSpec(name="age", buckets=8),)})
    model = make_dig(same, items)
    assert bool(torch.isfinite(model(batch, "warmup", lookup)["total"]))


def test_a_numeric_user_field_is_refused(spec: FeatureSpec, items: ItemTable) -> None:
    wrong = spec.model_copy(update={"user_fields": (FieldSpec(name="spend", kind="numeric"),)})
    with pytest.raises(ValueError, match="u_spend is not"):
        make_dig(wrong, items)
