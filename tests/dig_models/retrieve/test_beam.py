"""Beam search against dense scoring, and the order that it promises."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import synthetic
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dig_models.crosses import CrossStore
from dig_models.features import FeatureSpec
from dig_models.retrieve.beam import KnownScores, Scores, beam_search
from dig_models.retrieve.options import SearchOptions, U2t
from dig_models.retrieve.rerank import Retriever
from dig_models.retrieve.scorer import Candidates, PrefixCrosses, PrefixScorer, ScoredUsers
from dig_models.train.data import RequestTable

USERS = [f"u{i}" for i in range(7)]
WIDE = 10_000


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, spec: FeatureSpec) -> tuple[Retriever, RequestTable]:
    items = synthetic.make_items(spec, [f"i{n}" for n in range(90)])
    path = synthetic.write_crosses(tmp_path_factory.mktemp("crosses"), spec, items, USERS)
    store = CrossStore.open(path, spec, items)
    retriever = Retriever.of(synthetic.make_model(spec, items), spec, items, store)
    return retriever, RequestTable.from_arrow(synthetic.user_state(spec, items, USERS), spec, items)


def slow_scores(retriever: Retriever, requests: RequestTable, b: int, u2t: str, path_score: str) -> dict[int, float]:
    """Log-probability of every item of one request: each prefix of its SID scored alone, u2t by a loop over the items."""
    trie, model = retriever.trie, retriever.model
    codes_NL = trie.item_codes()
    users = retriever.users(requests, np.array([b]))
    cross_NC = retriever.catalogue(requests, b)
    own: dict[tuple[int, ...], float] = {}  # items share prefixes
    out = {}
    for row in range(1, len(codes_NL)):
        total = 0.0
        for level in range(trie.levels):
            prefix = codes_NL[row, : level + 1]
            if (key := tuple(prefix.tolist())) in own:
                total = total + own[key] if path_score == "sum_log" else own[key]
                continue
            prefix_RD = model.prefix_embeddings(torch.from_numpy(codes_NL[row : row + 1]))[:, level]
            request_R = torch.zeros(1, dtype=torch.int64)
            if u2t == "exact":
                under = [v for v in range(1, len(codes_NL)) if np.array_equal(codes_NL[v, : level + 1], prefix)]
                u2t_RC = torch.from_numpy(cross_NC[under].astype(np.float64).mean(axis=0, keepdims=True).astype(np.float32))
            else:
                u2t_RC = model.predict_u2t(users, request_R, prefix_RD)
            logit = model.recall_logit(users, request_R, prefix_RD, u2t_RC, torch.ones(1, dtype=torch.int64))
            own[key] = float(torch.nn.functional.logsigmoid(logit.double())[0])
            total = total + own[key] if path_score == "sum_log" else own[key]
        out[row] = total
    return out


@pytest.mark.parametrize("u2t", ["exact", "mlp"])
@pytest.mark.parametrize("path_score", ["last", "sum_log"])
@torch.no_grad()
def test_a_beam_as_wide_as_the_trie_equals_dense_scoring(world: tuple[Retriever, RequestTable], u2t: str, path_score: str) -> None:
    retriever, requests = world
    everything = len(retriever.items) - 1
    index_B = np.array([3, 0, 5])
    found = retriever.retrieve(
        requests,
        index_B,
        k=everything,
        beam=WIDE,
        rerank=0,
        u2t=u2t,
        path_score=path_score,
        chunk=2,  # type: ignore[arg-type]
    )
    for g, b in enumerate(index_B):
        slow = slow_scores(retriever, requests, int(b), u2t, path_score)
        assert sorted(found.item_GJ[g].tolist()) == sorted(slow)
        np.testing.assert_allclose(found.score_GJ[g], [slow[i] for i in found.item_GJ[g].tolist()], rtol=1e-4, atol=1e-5)
        assert np.all(np.diff(found.score_GJ[g]) <= 0)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), beam=st.integers(1, 12), limit=st.integers(1, 40))
@torch.no_grad()
def test_a_narrow_beam_is_greedy_over_existing_prefixes(world: tuple[Retriever, RequestTable], seed: int, beam: int, limit: int) -> None:
    """Reference: keep the best ``beam`` prefixes level by level with plain Python, on crosses drawn at random."""
    retriever, requests = world
    trie, model = retriever.trie, retriever.model
    rng = np.random.default_rng(seed)
    u2t = [rng.gamma(0.5, 1.0, (trie.nodes(level), retriever.spec.cross_width)).astype(np.float32) for level in range(trie.levels)]
    users = retriever.users(requests, np.array([seed % len(USERS)]))
    folded = retriever.scorer.users(users, mlp=False)
    found = beam_search(retriever.scorer, trie, folded, beam=beam, limit=limit, u2t=lambda level, _, node_R: u2t[level][node_R])
    alive = list(range(trie.nodes(0)))
    for level in range(trie.levels):
        request_R = torch.zeros(len(alive), dtype=torch.int64)
        prefix_RD = retriever.nodes[level][torch.tensor(alive)]
        logit = model.recall_logit(users, request_R, prefix_RD, torch.from_numpy(u2t[level][alive]), torch.ones_like(request_R))
        ranked = [n for _, n in sorted(zip((-torch.nn.functional.logsigmoid(logit)).tolist(), alive, strict=True))]
        if level + 1 < trie.levels:
            kept = sorted(ranked[:beam])
            alive = [c for n in kept for c in range(trie.child[level][n], trie.child[level][n + 1])]
    items = [int(i) for leaf in ranked for i in trie.order_M[trie.start[-1][leaf] : trie.start[-1][leaf + 1]]][:limit]
    assert found.item_GJ[0].tolist() == items + [0] * (limit - len(items))


def test_items_under_one_sid_keep_the_order_of_their_rows(world: tuple[Retriever, RequestTable]) -> None:
    retriever, requests = world
    codes_NL = np.repeat([[1, 2, 3]], len(retriever.items), axis=0)
    one = Retriever.of(retriever.model, retriever.spec, retriever.items, retriever.store, codes_NL=codes_NL)
    found = one.retrieve(requests, np.array([0]), k=20, beam=1, rerank=0)
    assert found.item_GJ[0].tolist() == list(range(1, 21))
    assert len(set(found.score_GJ[0].tolist())) == 1


@torch.no_grad()
def test_node_embeddings_are_those_of_their_prefixes(world: tuple[Retriever, RequestTable]) -> None:
    retriever, _ = world
    for level, node_PD in enumerate(retriever.nodes):
        own_PD = retriever.model.prefix_embeddings(torch.from_numpy(retriever.trie.codes(level)))[:, -1]
        torch.testing.assert_close(node_PD, own_PD)


def test_the_batch_does_not_change_an_answer(world: tuple[Retriever, RequestTable]) -> None:
    retriever, requests = world
    index_B = np.array([6, 1, 2, 4])
    together = retriever.retrieve(requests, index_B, k=12, beam=4, rerank=20, chunk=4)
    alone = [retriever.retrieve(requests, np.array([b]), k=12, beam=4, rerank=20) for b in index_B]
    assert together.item_GJ.tolist() == [a.item_GJ[0].tolist() for a in alone]
    np.testing.assert_allclose(together.score_GJ, np.concatenate([a.score_GJ for a in alone]), rtol=1e-5)


def test_bought_items_are_left_out_and_their_prefixes_do_not_crowd_the_beam(world: tuple[Retriever, RequestTable]) -> None:
    retriever, requests = world
    index_B = np.arange(len(USERS))
    found = retriever.retrieve(requests, index_B, k=30, beam=3, rerank=0, exclude_bought=True)
    for b, item_J in zip(index_B, found.item_GJ, strict=True):
        bought = set(retriever.store.bought(int(requests.user_B[b]), int(requests.ts_B[b])).tolist())
        assert bought and not bought & set(item_J.tolist())
        assert (item_J > 0).any()


def test_a_mask_that_allows_one_item_finds_it_with_a_beam_of_one(world: tuple[Retriever, RequestTable]) -> None:
    retriever, requests = world
    for row in (1, 40, len(retriever.items) - 1):
        allowed_N = np.zeros(len(retriever.items), dtype=bool)
        allowed_N[row] = True
        found = retriever.retrieve(requests, np.array([2]), k=5, beam=1, rerank=5, allowed_N=allowed_N)
        assert found.item_GJ[0].tolist() == [row, 0, 0, 0, 0]
        assert np.isinf(found.score_GJ[0, 1:]).all()


def test_no_allowed_item_gives_an_empty_answer(world: tuple[Retriever, RequestTable]) -> None:
    retriever, requests = world
    nothing = np.zeros(len(retriever.items), dtype=bool)
    found = retriever.retrieve(requests, np.array([2, 3]), k=5, beam=4, rerank=5, allowed_N=nothing)
    assert not found.item_GJ.any()


def test_reranking_orders_what_was_retrieved_by_the_ranking_path(world: tuple[Retriever, RequestTable]) -> None:
    retriever, requests = world
    index_B = np.array([1, 4])
    for u2t in ("exact", "mlp"):
        found = retriever.retrieve(requests, index_B, k=25, beam=5, rerank=25, u2t=u2t)
        path = retriever.retrieve(requests, index_B, k=25, beam=5, rerank=0, u2t=u2t)
        for g, b in enumerate(index_B):
            real = path.item_GJ[g] > 0
            score_P = retriever.rank(requests, int(b), path.item_GJ[g][real])
            assert sorted(found.item_GJ[g].tolist()) == sorted(path.item_GJ[g].tolist())
            np.testing.assert_allclose(found.score_GJ[g][: real.sum()], np.sort(score_P)[::-1], rtol=1e-4)


@torch.no_grad()
def test_rank_is_the_ranking_path_of_the_open_catalogue_with_real_crosses(world: tuple[Retriever, RequestTable]) -> None:
    retriever, requests = world
    rows = np.array([7, 2, 61])
    found = retriever.rank(requests, 4, rows)
    users = retriever.users(requests, np.array([4]))
    cross_NC = torch.from_numpy(retriever.catalogue(requests, 4))
    for row, score in zip(rows.tolist(), found, strict=True):
        e_RD = retriever.model.encode_items(torch.tensor([row]))
        logit = retriever.model.rank_logit(
            users, torch.zeros(1, dtype=torch.int64), e_RD, cross_NC[[row]], torch.ones(1, dtype=torch.int64)
        )
        assert score == pytest.approx(float(torch.nn.functional.logsigmoid(logit)), rel=1e-4)


def test_a_wide_beam_with_reranking_of_everything_equals_exhaustive_ranking(world: tuple[Retriever, RequestTable]) -> None:
    retriever, requests = world
    index_B = np.array([0, 6])
    dense_BN = retriever.exhaustive(requests, index_B, chunk=1)
    found = retriever.retrieve(requests, index_B, k=10, beam=WIDE, rerank=len(retriever.items))
    assert np.isinf(dense_BN[:, 0]).all()
    np.testing.assert_allclose(found.score_GJ, -np.sort(-dense_BN, axis=1)[:, :10], rtol=1e-4)


def test_rows_of_examples_do_not_reach_the_user_side(world: tuple[Retriever, RequestTable]) -> None:
    retriever, requests = world
    row_start = np.arange(len(requests) + 1)
    with_rows = replace(
        requests,
        row_start=row_start,
        item_R=np.ones(len(requests), dtype=np.int64),
        label_R=np.ones(len(requests), dtype=np.int8),
        source_R=np.zeros(len(requests), dtype=np.int8),
        weight_R=np.ones(len(requests), dtype=np.float32),
        cross_RW=np.full((len(requests), retriever.spec.cross_width_raw), np.nan, dtype=np.float32),
    )
    plain, rich = (retriever.retrieve(r, np.array([3]), k=10, beam=5, rerank=10) for r in (requests, with_rows))
    assert plain.item_GJ.tolist() == rich.item_GJ.tolist()


@pytest.mark.parametrize("u2t", ["exact", "mlp"])
@pytest.mark.parametrize("path_score", ["last", "sum_log"])
@torch.no_grad()
def test_a_second_search_of_the_same_requests_scores_only_what_the_first_did_not(
    world: tuple[Retriever, RequestTable], monkeypatch: pytest.MonkeyPatch, u2t: U2t, path_score: Literal["last", "sum_log"]
) -> None:
    retriever, requests = world
    part = np.array([3, 0, 5])
    side, known = retriever.users(requests, part), KnownScores.none(retriever.trie, len(part))
    scored: list[int] = []
    whole = PrefixScorer.logits

    def counted(self: PrefixScorer, level: int, users: ScoredUsers, rows: Candidates, crosses: PrefixCrosses | None) -> Scores:
        scored.append(len(rows.node_R))
        return whole(self, level, users, rows, crosses)

    monkeypatch.setattr(PrefixScorer, "logits", counted)
    wide = SearchOptions(k=20, beam=6, rerank=0, u2t=u2t, path_score=path_score)
    gone = replace(wide, exclude=[np.arange(1, 40), np.arange(0), np.arange(20, 60)])
    fresh = []
    for options in (wide, gone, wide):
        scored.clear()
        alone = retriever.paths(requests, part, side, options)
        every = sum(scored)
        scored.clear()
        shared = retriever.paths(requests, part, side, options, known=known)
        np.testing.assert_array_equal(shared.item_GJ, alone.item_GJ)
        np.testing.assert_allclose(shared.score_GJ, alone.score_GJ, atol=1e-5)
        fresh.append(sum(scored) / every)
    first, filtered, third = fresh
    assert first == 1.0 and 0.0 < filtered < 0.8 and third == 0.0
