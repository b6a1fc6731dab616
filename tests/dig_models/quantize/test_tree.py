"""The balanced k-means tree."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dig_models.quantize.tree import balanced_assignment, balanced_tree


def _items(items: int, dim: int = 6, groups: int = 9, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(groups, dim)) * 3
    return (centers[rng.integers(0, groups, items)] + rng.normal(size=(items, dim))).astype(np.float32)


@pytest.mark.parametrize(("items", "levels", "codes"), [(300, 3, 8), (512, 3, 8), (64, 2, 8), (5, 3, 8), (1, 2, 4)])
def test_no_two_items_share_a_leaf_when_there_is_room(items: int, levels: int, codes: int) -> None:
    tree = balanced_tree(_items(items), levels, codes, seed=1)
    assert len(np.unique(tree.sid_NL, axis=0)) == items
    assert tree.collision_rate == 0.0


def test_no_two_identical_items_share_a_leaf_either() -> None:
    tree = balanced_tree(np.ones((60, 4), dtype=np.float32), 2, 8, seed=1)
    assert tree.collision_rate == 0.0
    assert tree.nearest_collision_rate > 0.9


def test_every_node_spreads_its_items_evenly() -> None:
    tree = balanced_tree(_items(300), 3, 8, seed=1)
    for level in range(3):
        for prefix in {tuple(s) for s in tree.sid_NL[:, :level]}:
            inside = tree.sid_NL[(tree.sid_NL[:, :level] == prefix).all(1)]
            assert np.bincount(inside[:, level]).max() <= -(-len(inside) // 8)


def test_a_full_catalogue_overflows_evenly_and_says_so() -> None:
    tree = balanced_tree(_items(100), 2, 5, seed=1)
    assert len(np.unique(tree.sid_NL, axis=0)) == 25
    assert np.isclose(tree.collision_rate, 0.75)


def test_codes_are_mean_residuals_of_their_items() -> None:
    e = _items(200)
    tree = balanced_tree(e, 3, 8, seed=1)
    residual = e.astype(np.float64)
    for level in range(3):
        for k in range(8):
            own = tree.sid_NL[:, level] == k
            if own.any():
                assert np.allclose(tree.code_LKD[level, k], residual[own].mean(0), atol=1e-4)
        residual = residual - tree.code_LKD[level][tree.sid_NL[:, level]]


def test_deeper_levels_describe_items_better() -> None:
    e = _items(400)
    tree = balanced_tree(e, 3, 8, seed=1)
    residual, errors = e, []
    for level in range(3):
        residual = residual - tree.code_LKD[level][tree.sid_NL[:, level]]
        errors.append(np.square(residual).sum(1).mean())
    assert errors[0] > errors[1] > errors[2]


def test_the_same_seed_gives_the_same_tree() -> None:
    first, second, other = (balanced_tree(_items(200), 3, 8, seed=s) for s in (1, 1, 2))
    assert np.array_equal(first.sid_NL, second.sid_NL)
    assert np.array_equal(first.code_LKD, second.code_LKD)
    assert not np.array_equal(first.sid_NL, other.sid_NL)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(2, 6), st.integers(1, 4), st.integers(0, 10**6))
def test_assignment_respects_capacity_and_is_stable(items: int, codes: int, nodes: int, seed: int) -> None:
    """Nobody could move to a nearer token that has room, or that holds somebody farther away."""
    rng = np.random.default_rng(seed)
    x, center = rng.normal(size=(items, 3)).astype(np.float32), rng.normal(size=(codes, 3)).astype(np.float32)
    node = np.unique(rng.integers(0, nodes, items), return_inverse=True)[1]
    capacity = (-(-np.bincount(node) // codes))[node]
    token = balanced_assignment(x, center, node, capacity)
    distance = np.square(x[:, None].astype(np.float64) - center[None]).sum(2)
    for n, k in itertools.product(range(items), range(codes)):
        held = np.flatnonzero((node == node[n]) & (token == k))
        assert len(held) <= capacity[n]
        if distance[n, k] < distance[n, token[n]] - 1e-4:
            assert len(held) == capacity[n]
            assert distance[held, k].max() <= distance[n, k] + 1e-4


def test_an_empty_catalogue_is_refused() -> None:
    with pytest.raises(ValueError, match="catalogue is empty"):
        balanced_tree(np.zeros((0, 4), dtype=np.float32), 2, 4, seed=0)


def test_a_diverged_encoder_is_named() -> None:
    e = _items(10)
    e[3, 0] = np.nan
    with pytest.raises(ValueError, match="1 item embeddings are not finite"):
        balanced_tree(e, 2, 4, seed=0)
