"""The ways to answer that ``benchmarks.retrieval`` compares give the same answers, on a catalogue small enough for a unit test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.retrieval_methods import Dense, DictTrie, Exhaustive, Factored, Floor, rows_by_level
from benchmarks.retrieval_static import CsrMask, DictMask, StaticMask, agree
from benchmarks.retrieval_world import Size, build, open_world, skewed_codes
from dig_models.retrieve.rerank import Retriever
from dig_models.train.data import RequestTable

SIZE = Size(items=600, levels=3, codes=8)
BEAM = 5
World = tuple[Retriever, RequestTable]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root: Path = tmp_path_factory.mktemp("catalogues")
    build(SIZE, root)
    return open_world(SIZE, root)


@pytest.mark.parametrize("method", [Dense, DictTrie])
def test_methods_with_a_beam_give_the_same_lists(world: World, method: type[Dense] | type[DictTrie]) -> None:
    retriever, requests = world
    index_B = np.array([4, 0, 7])
    own, other = Factored(retriever, requests, BEAM, "mlp").answer(index_B), method(retriever, requests, BEAM).answer(index_B)
    np.testing.assert_allclose(other.score_GJ, own.score_GJ, rtol=1e-4, atol=1e-4)
    for found, wanted in zip(other.item_GJ, own.item_GJ, strict=True):
        assert len(np.setxor1d(found, wanted)) <= 2  # a tie at the last place


def test_a_beam_that_keeps_everything_is_exhaustive(world: World) -> None:
    retriever, requests = world
    index_B = np.array([1, 2])
    every, wide = Exhaustive(retriever, requests).answer(index_B), Factored(retriever, requests, 10_000, "mlp").answer(index_B)
    np.testing.assert_allclose(every.score_GJ, wide.score_GJ, rtol=1e-5, atol=1e-6)


def test_the_floor_multiplies_for_as_many_rows_as_a_search_scores(world: World) -> None:
    retriever, requests = world
    index_B = np.arange(20)
    rows = sum(sum(level) for at in (0, 16) for level in rows_by_level(retriever, requests, BEAM, index_B[at : at + 16]))
    assert Floor(retriever, requests, BEAM, index_B).run() == rows


@pytest.mark.parametrize("level", [1, 2])
def test_mask_steps_let_the_same_children_through(world: World, level: int) -> None:
    trie, rng = world[0].trie, np.random.default_rng(0)
    node_X = np.sort(rng.integers(0, trie.nodes(level - 1), 12))
    score_XK = torch.randn(12, SIZE.codes)
    csr = CsrMask(trie, level)
    wanted = csr.step(node_X, score_XK)
    token_R = trie.token[level][wanted[1]]
    assert agree(wanted, StaticMask(trie, level, SIZE.codes).step(node_X, score_XK), token_R)
    assert agree(wanted, DictMask(trie, level).step(node_X, score_XK), token_R)
    assert not agree(wanted, csr.step(node_X[::-1].copy(), score_XK), token_R)


def test_codes_are_skewed_and_each_prefix_has_an_order_of_its_own() -> None:
    code_NL = skewed_codes(Size(items=7787, levels=3, codes=64))
    assert code_NL[1:].min() >= 0
    assert code_NL[1:].max() < 64
    by_level = [len(np.unique(code_NL[1:, : level + 1], axis=0)) for level in range(3)]
    assert by_level[1] < 2_000
    assert by_level[2] < 6_000
    top = [np.bincount(code_NL[code_NL[:, 0] == first, 1], minlength=64).argmax() for first in range(8)]
    assert len(set(top)) > 1
