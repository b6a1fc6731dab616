"""The factored retrieval path against ``Dig.recall_logit``, which defines it."""

from __future__ import annotations

import numpy as np
import pytest
import synthetic
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dig_models.config import ModelConfig
from dig_models.dig import Dig
from dig_models.features import FeatureSpec
from dig_models.nn.attention import UserSide
from dig_models.retrieve.scorer import BLOCK, Candidates, PrefixScorer
from dig_models.retrieve.trie import Trie

SHAPES = st.fixed_dictionaries(
    {
        "dim": st.sampled_from([4, 8, 12]),
        "heads": st.sampled_from([1, 2, 4]),
        "levels": st.integers(1, 4),
        "codes": st.integers(2, 7),
        "cross_layers": st.integers(1, 3),
        "cross_rank": st.integers(1, 9),
        "experts": st.integers(1, 3),
        "expert_hidden": st.integers(1, 9),
        "retrieval_query": st.sampled_from(["sid", "pool"]),
    }
)


def random_users(model: Dig, requests: int, slots: int, rng: np.random.Generator) -> UserSide:
    """User sides with histories of any length, holes in them included; the first slot is never empty."""
    dim = model.config.dim

    def draw(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.normal(size=shape).astype(np.float32))

    real = torch.from_numpy(rng.random((requests, slots)) < rng.random((requests, 1)))
    keys, values, mask, _ = model.attention.history(draw(requests, slots, dim), draw(requests, slots).abs() * 20, real)
    return UserSide(draw(requests, dim), keys, values, mask)


def unsettle(model: Dig, rng: np.random.Generator) -> None:
    """Statistics, biases and tables as training might leave them; one feature that never varied."""
    for norm in (model.norm_user, model.norm_history, model.norm_sid, model.norm_u2t):
        norm.mean_SC.copy_(torch.from_numpy(rng.normal(size=norm.mean_SC.shape)))
        norm.var_SC.copy_(torch.from_numpy(rng.gamma(1.0, 1.0, size=norm.var_SC.shape) + 0.05))
    model.norm_u2t.var_SC[1, 0] = 0.0
    model.quantizer.semantic.weight.copy_(torch.from_numpy(rng.normal(size=model.quantizer.semantic.weight.shape)))
    for parameter in model.parameters():
        parameter.add_(torch.from_numpy(rng.normal(size=parameter.shape).astype(np.float32)), alpha=0.1)


def rows_of(scorer: PrefixScorer, trie: Trie, level: int, requests: int, node_R: np.ndarray, request_R: np.ndarray, users) -> Candidates:  # type: ignore[no-untyped-def]
    """Rows under the parents that a search would have kept, found by walking down from the root."""
    codes_PL = torch.from_numpy(trie.codes(level))
    feature_QF = users.root_GF[torch.from_numpy(request_R)]
    for above in range(level):
        feature_QF = feature_QF + scorer._tables[feature_QF.shape[1]][above][codes_PL[torch.from_numpy(node_R), above]]
    return Candidates(
        bound_G=np.searchsorted(request_R, np.arange(requests + 1)),
        node_R=node_R,
        token_R=np.asarray(trie.token[level][node_R]),
        owner_R=np.arange(len(node_R)),
        feature_QF=feature_QF,
    )


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=SHAPES, seed=st.integers(0, 2**31), mlp=st.booleans(), hot=st.booleans())
@torch.no_grad()
def test_the_factored_scorer_gives_the_logits_of_the_model(
    spec: FeatureSpec, shape: dict[str, object], seed: int, mlp: bool, hot: bool
) -> None:
    rng = np.random.default_rng(seed)
    items = synthetic.make_items(spec, [f"i{n}" for n in range(40)])
    if int(shape["dim"]) % int(shape["heads"]):  # type: ignore[call-overload]
        shape = shape | {"heads": 1}
    model = synthetic.make_model(spec, items, seed=seed % 1000, **shape)
    unsettle(model, rng)
    if hot:  # exp of such a score overflows
        model.attention.log_temperature.fill_(4.5)
    # Random weights blow rounding up, a sharp attention the more; weights as trained are below.
    compare(model, spec, rng, mlp=mlp, tolerance=1e-3 if hot else 1e-4)


@pytest.mark.parametrize("mlp", [False, True])
@torch.no_grad()
def test_at_the_default_shape_it_agrees_to_a_hundred_thousandth(spec: FeatureSpec, mlp: bool) -> None:
    torch.manual_seed(5)
    model = Dig(ModelConfig(), spec)
    model.set_items(synthetic.make_items(spec, [f"i{n}" for n in range(300)]))
    model.build_codebooks(5)
    model.mixer.wide.weight.normal_(std=0.1)
    compare(model.eval(), spec, np.random.default_rng(5), mlp=mlp, tolerance=1e-5)


def compare(model: Dig, spec: FeatureSpec, rng: np.random.Generator, *, mlp: bool, tolerance: float) -> None:
    trie = Trie.build(model.code_NL.numpy())
    scorer, requests = PrefixScorer(model), int(rng.integers(1, 5))
    side = random_users(model, requests, int(rng.integers(1, 7)), rng)
    users = scorer.users(side, mlp=mlp)
    for level in range(trie.levels):
        node_R = np.tile(np.arange(trie.nodes(level)), requests)
        request_R = np.repeat(np.arange(requests), trie.nodes(level))
        kept = rng.random(len(node_R)) < 0.7
        node_R, request_R = node_R[kept], request_R[kept]
        request = torch.from_numpy(request_R)
        prefix_RD = model.prefix_embeddings(torch.from_numpy(trie.codes(level)))[torch.from_numpy(node_R), -1]
        cross_RC = rng.gamma(0.5, 2.0, (len(node_R), spec.cross_width)).astype(np.float32)
        seen_RC = model.predict_u2t(side, request, prefix_RD) if mlp else torch.from_numpy(cross_RC)
        want_R = model.recall_logit(side, request, prefix_RD, seen_RC, torch.ones_like(request))
        rows = rows_of(scorer, trie, level, requests, node_R, request_R, users)
        got_R = scorer.logits(level, users, rows, None if mlp else lambda *_, cross_RC=cross_RC: cross_RC)
        scale = max(float(want_R.abs().max()) if len(want_R) else 0.0, 1.0)
        np.testing.assert_allclose(got_R / scale, want_R.numpy() / scale, rtol=tolerance, atol=tolerance)


@torch.no_grad()
def test_rows_beyond_a_block_are_scored_as_those_within(spec: FeatureSpec) -> None:
    items = synthetic.make_items(spec, [f"i{n}" for n in range(120)])
    model = synthetic.make_model(spec, items)
    scorer, trie = PrefixScorer(model), Trie.build(model.code_NL.numpy())
    requests = 2 * BLOCK // trie.nodes(0) + 3
    users = scorer.users(random_users(model, requests, 5, np.random.default_rng(1)), mlp=True)
    request_R, node_R = np.repeat(np.arange(requests), trie.nodes(0)), np.tile(np.arange(trie.nodes(0)), requests)
    together = scorer.logits(0, users, rows_of(scorer, trie, 0, requests, node_R, request_R, users), None)
    assert len(together) > 2 * BLOCK
    for g in (0, requests // 2, requests - 1):
        rows = np.flatnonzero(request_R == g)
        alone = scorer.logits(0, users, rows_of(scorer, trie, 0, requests, node_R[rows], request_R[rows], users), None)
        np.testing.assert_allclose(together[rows], alone, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", ["norm_user", "norm_u2t"])
def test_the_affine_form_of_a_norm_is_what_it_does_in_evaluation(spec: FeatureSpec, name: str) -> None:
    items = synthetic.make_items(spec, ["a", "b", "c"])
    model = synthetic.make_model(spec, items, codes=2)
    unsettle(model, np.random.default_rng(0))
    norm = getattr(model, name)
    for domain in range(norm.domains):
        x_RC = torch.randn(5, norm.mean_SC.shape[1])
        member_RS = torch.nn.functional.one_hot(torch.full((5,), domain), 2).float()
        scale_C, shift_C = norm.affine(domain)
        torch.testing.assert_close(x_RC * scale_C + shift_C, norm(x_RC, member_RS), rtol=1e-4, atol=1e-4)
