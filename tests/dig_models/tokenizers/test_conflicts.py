"""Items that share a SID: a suffix, transport, or the nearest free code."""

from __future__ import annotations

import numpy as np
import pytest

from dig_models.evaluate.sid_quality import measure
from dig_models.features import FeatureSpec
from dig_models.items import ItemTable
from dig_models.quantize.tree import nearest_codes
from dig_models.tokenizers.base import Tokenizer
from dig_models.tokenizers.conflicts import SinkhornSettings, nearest, settle, sinkhorn, suffix
from tests.dig_models.tokenizers.kinds import CODES, LEVELS, fit

HASHES = np.array([np.iinfo(np.int64).min, 50, 10, 30, 20, 40])
CODE_NL = np.array([[-1, -1], [1, 2], [1, 2], [0, 2], [1, 2], [3, 0]])


@pytest.fixture(scope="module")
def tokenizer(spec: FeatureSpec, items: ItemTable) -> Tokenizer:
    return fit("rkmeans", items, spec)


def test_a_suffix_is_the_rank_by_hash_among_those_that_share_the_sid() -> None:
    assert suffix(CODE_NL, HASHES, codes=4).tolist() == [[-1] * 3, [1, 2, 2], [1, 2, 0], [0, 2, 0], [1, 2, 1], [3, 0, 0]]


def test_a_suffix_does_not_depend_on_the_order_of_the_rows(tokenizer: Tokenizer, items: ItemTable) -> None:
    code_NL = tokenizer.encode(items)
    made = suffix(code_NL, items.hash_N, codes=CODES)
    order = np.r_[0, 1 + np.random.default_rng(0).permutation(len(items) - 1)]
    assert np.array_equal(suffix(code_NL[order], items.hash_N[order], codes=CODES), made[order])
    assert measure(made[1:], CODES).collision_rate == 0.0 and np.array_equal(made[:, :-1], code_NL)


def test_more_items_on_one_sid_than_a_suffix_has_codes_are_refused() -> None:
    assert suffix(CODE_NL, HASHES, codes=3)[1:, 2].max() == 2
    with pytest.raises(ValueError, match=r"SID \[1, 2\]: 3 items share it, a suffix tells 2 apart"):
        suffix(CODE_NL, HASHES, codes=2)


@pytest.mark.parametrize("way", [lambda c, e, k: suffix(c, HASHES, codes=4), sinkhorn, lambda c, e, k: nearest(c, e, k, HASHES)])
def test_an_item_without_codes_is_refused(way) -> None:  # type: ignore[no-untyped-def]
    code_NL = CODE_NL.copy()
    code_NL[3] = -1
    with pytest.raises(ValueError, match="1 items have no codes, the first in row 3"):
        way(code_NL, np.zeros((6, 2), np.float32), np.zeros((2, 4, 2), np.float32))


def world(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes with collisions, embeddings and code vectors of 40 items, 2 levels of 8 codes."""
    rng = np.random.default_rng(seed)
    code_LKD = np.stack([4.0 * rng.normal(size=(8, 3)), rng.normal(size=(8, 3))]).astype(np.float32)
    embedding_ND = (code_LKD[0][rng.integers(0, 8, 41)] + rng.normal(size=(41, 3))).astype(np.float32)
    code_NL = nearest_codes(embedding_ND, code_LKD)
    code_NL[0] = -1
    return code_NL, embedding_ND, code_LKD


def test_transport_parts_all_items_of_a_prefix_that_has_codes_enough_and_moves_no_other() -> None:
    code_NL, embedding_ND, code_LKD = world()
    made = sinkhorn(code_NL, embedding_ND, code_LKD)
    assert measure(code_NL[1:], 8).collision_rate > 0.1
    size = np.bincount(code_NL[1:, 0], minlength=8)
    assert size.max() > 3
    for prefix in np.flatnonzero((size > 0) & (size <= 8)):
        last = made[1:][code_NL[1:, 0] == prefix, 1]
        assert len(np.unique(last)) == len(last)
    _, of, count = np.unique(code_NL, axis=0, return_inverse=True, return_counts=True)
    alone = count[of.reshape(-1)] == 1
    assert np.array_equal(made[alone], code_NL[alone]) and np.array_equal(made[:, 0], code_NL[:, 0])
    assert np.array_equal(sinkhorn(code_NL, embedding_ND, code_LKD), made)


def test_transport_takes_near_codes() -> None:
    """Two items at one code, each with a second choice of its own: both go to, or stay at, codes that lie next to them."""
    code_LKD = np.array([[[0.0], [100.0], [200.0], [300.0]], [[0.0], [1.0], [-1.0], [30.0]]], dtype=np.float32)
    code_NL = np.array([[-1, -1], [0, 0], [0, 0], [1, 0]])
    embedding_ND = np.array([[0.0], [0.4], [-0.4], [100.0]], dtype=np.float32)
    made = sinkhorn(code_NL, embedding_ND, code_LKD)
    assert sorted(made[1:3, 1].tolist()) in ([0, 1], [0, 2], [1, 2]) and made[3].tolist() == [1, 0]
    assert made[1, 1] != 2 and made[2, 1] != 1, "none goes to the other's side"


def test_items_with_equal_vectors_part_too_and_what_codes_cannot_hold_still_collides() -> None:
    code_LKD = np.zeros((2, 4, 2), np.float32)
    code_LKD[1] = np.random.default_rng(0).normal(size=(4, 2))
    code_NL = np.vstack([[-1, -1], np.zeros((6, 2))]).astype(np.int64)
    made = sinkhorn(code_NL[:5], np.ones((5, 2), np.float32), code_LKD)
    assert sorted(made[1:, 1].tolist()) == [0, 1, 2, 3]
    full = sinkhorn(code_NL, np.ones((7, 2), np.float32), code_LKD)
    assert len(np.unique(full[1:, 1])) == 4 and full[1:].min() >= 0


def test_transport_refuses_what_does_not_fit() -> None:
    code_NL, embedding_ND, code_LKD = world()
    with pytest.raises(ValueError, match=r"codes \(41, 2\), embeddings \(40, 3\) and code vectors \(2, 8, 3\) do not fit"):
        sinkhorn(code_NL, embedding_ND[1:], code_LKD)
    with pytest.raises(ValueError, match="epsilon"):
        SinkhornSettings(epsilon=0)


def test_the_nearest_free_code_leaves_the_first_by_hash_where_it_was() -> None:
    code_NL, embedding_ND, code_LKD = world()
    hash_N = np.arange(41) - 20
    made = nearest(code_NL, embedding_ND, code_LKD, hash_N)
    _, first = np.unique(code_NL, axis=0, return_index=True)
    assert np.array_equal(made[first], code_NL[first]) and len(np.unique(made, axis=0)) > len(first)


def test_each_way_reports_what_it_found_and_what_it_leaves(tokenizer: Tokenizer, items: ItemTable) -> None:
    was = tokenizer.report(items)
    _, size = np.unique(tokenizer.encode(items)[1:, :-1], axis=0, return_counts=True)
    room = int(np.minimum(size, CODES).sum())  # no prefix holds more SIDs than the last level has codes
    assert was.sids < room
    for method in ("none", "suffix", "sinkhorn", "nearest"):
        found = settle(tokenizer, items, method)  # type: ignore[arg-type]
        assert found.before == was and found.after == measure(found.code_NL[1:], CODES)
        assert found.levels == LEVELS + (method == "suffix") and (found.code_NL[0] == -1).all()
        most = {"none": was.sids, "suffix": len(items) - 1}.get(method, room)
        assert found.after.sids == most and (found.moved > 0) == (method != "none")
    with pytest.raises(ValueError, match="method 'random' found, expected none, suffix, sinkhorn or nearest"):
        settle(tokenizer, items, "random")  # type: ignore[arg-type]
