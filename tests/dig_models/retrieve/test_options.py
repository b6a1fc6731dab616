"""What a request may be answered with, and with how wide a beam: against scoring every prefix that exists."""

from __future__ import annotations

import numpy as np
import pytest
import synthetic
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dig_models.crosses import CrossStore
from dig_models.features import FeatureSpec
from dig_models.retrieve.allowed import AllowedItems
from dig_models.retrieve.beam import best_rows
from dig_models.retrieve.options import SearchOptions
from dig_models.retrieve.prefix_means import PrefixMeans
from dig_models.retrieve.rerank import Retriever
from dig_models.train.data import RequestTable

USERS = [f"u{i}" for i in range(6)]
ITEMS = 70
World = tuple[Retriever, RequestTable, list[np.ndarray]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, spec: FeatureSpec) -> World:
    """A retriever, requests, and the dense log-probability of every prefix by the model itself, ``(B, P)`` per level."""
    items = synthetic.make_items(spec, [f"i{n}" for n in range(ITEMS)])
    store = CrossStore.open(synthetic.write_crosses(tmp_path_factory.mktemp("options"), spec, items, USERS), spec, items)
    retriever = Retriever.of(synthetic.make_model(spec, items, codes=4), spec, items, store)
    requests = RequestTable.from_arrow(synthetic.user_state(spec, items, USERS), spec, items)
    return retriever, requests, dense_scores(retriever, requests)


@torch.no_grad()
def dense_scores(retriever: Retriever, requests: RequestTable) -> list[np.ndarray]:
    trie, model, means = retriever.trie, retriever.model, PrefixMeans(retriever.trie)
    side = retriever.users(requests, np.arange(len(USERS)))
    u2t = [means(retriever.catalogue(requests, b)) for b in range(len(USERS))]
    out = []
    for level in range(trie.levels):
        nodes = trie.nodes(level)
        request = torch.arange(len(USERS)).repeat_interleave(nodes)
        prefix_RD = retriever.nodes[level].repeat(len(USERS), 1)
        cross_RC = torch.from_numpy(np.concatenate([u[level] for u in u2t]))
        logit_R = model.recall_logit(side, request, prefix_RD, cross_RC, torch.ones_like(request))
        out.append(torch.nn.functional.logsigmoid(logit_R).view(len(USERS), nodes).numpy())
    return out


def slow_search(
    retriever: Retriever, dense: list[np.ndarray], b: int, beam: int, limit: int, path_score: str, good: np.ndarray
) -> list[int]:
    """Every valid prefix was scored; keep the best ``beam`` at each level with plain Python and sorting."""
    trie = retriever.trie
    rows = [frozenset(trie.order_M[a:z].tolist()) for a, z in zip(trie.start[-1], trie.start[-1][1:], strict=False)]
    alive, path = list(range(trie.nodes(0))), dict.fromkeys(range(trie.nodes(0)), 0.0)
    for level in range(trie.levels):
        start = trie.start[level]
        alive = [n for n in alive if good[trie.order_M[start[n] : start[n + 1]]].any()]
        path = {n: float(dense[level][b, n]) + (path[n] if path_score == "sum_log" else 0.0) for n in alive}
        ranked = sorted(alive, key=lambda n: (-path[n], n))
        if level + 1 < trie.levels:
            kept = sorted(ranked[:beam])
            pairs = [(c, path[n]) for n in kept for c in range(trie.child[level][n], trie.child[level][n + 1])]
            alive, path = [c for c, _ in pairs], dict(pairs)
    return [i for leaf in ranked for i in sorted(rows[leaf]) if good[i]][:limit]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_option_agrees_with_dense_scoring_of_all_prefixes(world: World, data: st.DataObject) -> None:
    retriever, requests, dense = world
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    index_B = rng.integers(0, len(USERS), data.draw(st.integers(1, 5)))
    each = [int(n) for n in rng.integers(1, 12, len(index_B))]
    beams = data.draw(st.sampled_from([each, each[0], 1, 1000]))
    masks = [rng.random(ITEMS + 1) < share for share in rng.choice([0.0, 0.05, 0.5, 1.0], len(index_B))]
    kind = data.draw(st.sampled_from(["none", "array", "one", "each"]))
    allowed = {"none": None, "array": masks[0], "one": retriever.allow(masks[0]), "each": [retriever.allow(m) for m in masks]}[kind]
    exclude = [rng.integers(0, ITEMS + 1, rng.integers(0, 30)) for _ in index_B] if data.draw(st.booleans()) else None
    bought, path_score, k = data.draw(st.booleans()), data.draw(st.sampled_from(["last", "sum_log"])), data.draw(st.integers(1, 30))
    options = SearchOptions(
        k=k,
        beam=beams,
        rerank=0,
        path_score=path_score,
        allowed=allowed,
        exclude_bought=bought,
        exclude=exclude,
        chunk=data.draw(st.integers(1, 6)),
    )
    found = retriever.search(requests, index_B, options)
    for g, b in enumerate(index_B.tolist()):
        good = np.ones(ITEMS + 1, dtype=bool) if kind == "none" else masks[g if kind == "each" else 0].copy()
        if exclude is not None:
            good[exclude[g]] = False
        if bought:
            good[retriever.store.bought(int(requests.user_B[b]), int(requests.ts_B[b]))] = False
        beam = beams if isinstance(beams, int) else beams[g]
        want = slow_search(retriever, dense, b, beam, k, path_score, good)
        assert found.item_GJ[g].tolist() == want + [0] * (k - len(want))


@settings(deadline=None)
@given(scores=st.lists(st.integers(0, 4), max_size=40), keep=st.integers(1, 45))
def test_of_equal_scores_the_first_are_kept(scores: list[int], keep: int) -> None:
    want = sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:keep])
    assert best_rows(np.array(scores, dtype=np.float32), keep).tolist() == want


def test_prefixes_that_tie_go_by_their_sid(world: World, spec: FeatureSpec) -> None:
    """A model without a head scores every prefix alike, to the last bit."""
    retriever, requests, _ = world
    model = synthetic.make_model(spec, retriever.items, codes=4)
    with torch.no_grad():
        model.mixer.head.weight.zero_()
        model.mixer.wide.weight.zero_()
    one = Retriever.of(model, spec, retriever.items, retriever.store, codes_NL=retriever.trie.item_codes())
    found = one.retrieve(requests, np.array([1]), k=5, beam=2, rerank=0)
    assert len(set(found.score_GJ[0].tolist())) == 1
    assert found.item_GJ[0].tolist() == one.trie.order_M[:5].tolist()


def test_a_mask_is_counted_once_and_serves_many_calls(world: World) -> None:
    retriever, requests, _ = world
    stock, fresh = np.arange(ITEMS + 1) % 2 == 0, np.arange(ITEMS + 1) % 3 == 0
    allowed = retriever.allow(stock & fresh)
    assert int(allowed.count[0].sum()) == int((stock & fresh)[1:].sum())
    found = retriever.search(requests, np.arange(4), SearchOptions(k=20, beam=9, allowed=allowed))
    assert (found.item_GJ[found.item_GJ > 0] % 6 == 0).all()
    assert (found.item_GJ > 0).any(axis=1).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"k": 0}, "option k: 0 found"),
        ({"beam": 0}, "option beam: 0 found"),
        ({"beam": [3, -1]}, "option beam: -1 found"),
        ({"rerank": -1}, "option rerank: -1 found"),
        ({"chunk": 0}, "option chunk: 0 found"),
        ({"u2t": "oracle"}, "option u2t: 'oracle' found, expected one of mlp, exact"),
        ({"path_score": "mean"}, "option path_score: 'mean' found"),
    ],
)
def test_options_out_of_range_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchOptions(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"beam": [3]}, "option beam: 1 entries found for 2 requests"),
        ({"exclude": [np.array([1])]}, "option exclude: 1 entries found for 2 requests"),
        ({"exclude": [np.array([1]), np.array([999])]}, r"row 999 found; rows of the item table are 1\.\.70"),
        ({"allowed": np.ones(5, dtype=bool)}, r"bool \(5,\) found; expected bool \(71,\)"),
        ({"allowed": np.ones(ITEMS + 1)}, r"float64 \(71,\) found; expected bool"),
        ({"allowed": []}, "option allowed: 0 entries found for 2 requests"),
    ],
)
def test_options_that_do_not_fit_are_refused(world: World, wrong: dict[str, object], message: str) -> None:
    retriever, requests, _ = world
    with pytest.raises(ValueError, match=message):
        retriever.search(requests, np.array([0, 1]), SearchOptions(**wrong))  # type: ignore[arg-type]


def test_a_mask_of_another_catalogue_is_refused(world: World) -> None:
    with pytest.raises(ValueError, match=r"expected bool \(71,\)"):
        AllowedItems.of(world[0].trie, np.ones(3, dtype=bool))


def test_a_damaged_model_is_refused_rather_than_answered(world: World, spec: FeatureSpec) -> None:
    retriever, requests, _ = world
    model = synthetic.make_model(spec, retriever.items, codes=4)
    with torch.no_grad():
        model.mixer.head.weight[0, 0] = torch.nan
    broken = Retriever.of(model, spec, retriever.items, retriever.store, codes_NL=retriever.trie.item_codes())
    with pytest.raises(ValueError, match="prefix scores of level 1: a score is not a finite number"):
        broken.retrieve(requests, np.array([0]), k=3, beam=3, rerank=0)


def test_without_u2t_no_prefix_is_told_apart_by_crosses(world: World) -> None:
    """The scores of a search are those of the model with the same crosses for every prefix: their mean in training."""
    retriever, requests, _ = world
    index = np.arange(len(USERS))
    found = retriever.search(requests, index, SearchOptions(k=10, beam=500, rerank=0, u2t="none"))
    model, side = retriever.model, retriever.users(requests, index)
    usual = model.norm_u2t.mean_SC[1]
    with torch.no_grad():
        for g in index:
            leaf = torch.from_numpy(retriever.trie.item_codes()[found.item_GJ[g]])
            at = torch.full((len(leaf),), int(g))
            prefix = model.prefix_embeddings(leaf)[:, -1]
            logit = model.recall_logit(side, at, prefix, usual.expand(len(leaf), -1), torch.ones_like(at))
            assert np.allclose(torch.nn.functional.logsigmoid(logit).numpy(), found.score_GJ[g], atol=1e-4)
    exact = retriever.search(requests, index, SearchOptions(k=10, beam=500, rerank=0))
    assert not np.array_equal(exact.item_GJ, found.item_GJ)
