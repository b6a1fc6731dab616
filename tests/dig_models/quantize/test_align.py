"""Renaming codes: any renaming is undone, what cannot be undone stays as close as each level allows."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dig_models.quantize.align import inverse, labels_for, renamed
from dig_models.quantize.known import KnownSids


def sids(code_ML: np.ndarray, first: int = 0) -> KnownSids:
    return KnownSids.of(np.arange(first, first + len(code_ML)) * 7 - 50, code_ML)


def shuffled(rng: np.random.Generator, levels: int, codes: int) -> np.ndarray:
    return np.stack([rng.permutation(codes) for _ in range(levels)])


def kept(old: KnownSids, new: KnownSids, label_LK: np.ndarray, level: int) -> int:
    """Items whose renamed prefix down to a level is their old one, counted one by one."""
    was = {int(h): c for h, c in zip(old.hash_X, old.code_XL.tolist(), strict=True)}
    count = 0
    for item, code in zip(new.hash_X.tolist(), new.code_XL.tolist(), strict=True):
        now = [int(label_LK[at, k]) for at, k in enumerate(code)]
        count += item in was and was[item][: level + 1] == now[: level + 1]
    return count


worlds = st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(2, 9), st.integers(1, 80))


@settings(max_examples=150, deadline=None)
@given(worlds)
def test_any_renaming_of_the_same_items_is_undone(world: tuple[int, int, int, int]) -> None:
    seed, levels, codes, items = world
    rng = np.random.default_rng(seed)
    old = sids(rng.integers(0, codes, (items, levels)))
    new = KnownSids(old.hash_X, renamed(old.code_XL, shuffled(rng, levels, codes)))
    label_LK = labels_for(old, new, codes)
    assert np.array_equal(renamed(new.code_XL, label_LK), old.code_XL)


@settings(max_examples=150, deadline=None)
@given(worlds)
def test_labels_are_permutations_and_aligning_twice_changes_nothing_more(world: tuple[int, int, int, int]) -> None:
    seed, levels, codes, items = world
    rng = np.random.default_rng(seed)
    old, new = sids(rng.integers(0, codes, (items, levels))), sids(rng.integers(0, codes, (items, levels)), first=items // 3)
    label_LK = labels_for(old, new, codes)
    assert np.array_equal(np.sort(label_LK, axis=1), np.tile(np.arange(codes), (levels, 1)))
    again = KnownSids(new.hash_X, renamed(new.code_XL, label_LK))
    assert np.array_equal(labels_for(old, again, codes), np.tile(np.arange(codes), (levels, 1)))
    assert np.array_equal(renamed(again.code_XL, inverse(label_LK)), new.code_XL)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 4), st.integers(1, 30))
def test_no_other_renaming_of_a_level_keeps_more_items_below_the_levels_above(seed: int, codes: int, items: int) -> None:
    rng = np.random.default_rng(seed)
    old, new = sids(rng.integers(0, codes, (items, 2))), sids(rng.integers(0, codes, (items, 2)))
    label_LK = labels_for(old, new, codes)
    for level in range(2):
        best = 0
        for other_K in permutations(range(codes)):
            tried_LK = label_LK.copy()
            tried_LK[level] = other_K
            best = max(best, kept(old, new, tried_LK, level))
        assert kept(old, new, label_LK, level) == best


def test_a_deeper_level_counts_the_items_that_kept_their_prefix_first() -> None:
    # Three of the five with code 0 at level 2 moved away at level 1; of the two that stayed both had code 1.
    old = sids(np.array([[0, 1], [0, 1], [1, 2], [1, 2], [1, 2], [2, 0], [2, 0]]))
    new = sids(np.array([[0, 0], [0, 0], [2, 0], [2, 0], [2, 0], [2, 1], [2, 1]]))
    label_LK = labels_for(old, new, 3)
    assert label_LK[0, 0] == 0 and label_LK[0, 2] == 1
    assert label_LK[1, 0] == 2, "three items kept level 1 under its new name, and with it code 2"


def test_where_no_prefix_is_kept_the_overlap_of_the_level_alone_decides() -> None:
    # Item 2 is the only one of its level-1 code; below it nothing is kept, but its level-2 group is.
    old = sids(np.array([[0, 0], [0, 0], [1, 1]]))
    new = sids(np.array([[0, 2], [0, 2], [0, 0]]))
    assert labels_for(old, new, 3)[1].tolist() == [1, 2, 0]


def test_codes_that_share_nothing_keep_their_names_as_far_as_these_are_free() -> None:
    old, new = sids(np.array([[0], [1]])), sids(np.array([[1], [0]]))
    assert labels_for(old, new, 6).tolist() == [[1, 0, 2, 3, 4, 5]]


def test_items_of_one_side_only_and_codes_outside_the_codebook_do_not_count() -> None:
    old, new = sids(np.array([[7], [1], [1]])), sids(np.array([[0], [2], [2]]))
    assert labels_for(old, new, 4).tolist() == [[0, 2, 1, 3]]
    assert labels_for(sids(np.array([[1]]), first=90), new, 4).tolist() == [[0, 1, 2, 3]]
    assert labels_for(KnownSids.none(1), new, 4).tolist() == [[0, 1, 2, 3]]


def test_sids_of_another_length_and_codes_outside_the_codebook_are_refused() -> None:
    with pytest.raises(ValueError, match=r"2 levels cannot be aligned with SIDs of 1"):
        labels_for(sids(np.array([[0]])), sids(np.array([[0, 1]])), 4)
    with pytest.raises(ValueError, match=r"run up to 9.*0\.\.3"):
        labels_for(sids(np.array([[0]])), sids(np.array([[9]])), 4)


def test_known_sids_are_found_by_item_and_twice_the_same_item_is_refused() -> None:
    known = KnownSids.of(np.array([30, 10, 20]), np.array([[3, 3], [1, 1], [-1, -1]]))
    assert known.hash_X.tolist() == [10, 30]
    assert known.find(np.array([30, 20, 99, 10])).tolist() == [[3, 3], [-1, -1], [-1, -1], [1, 1]]
    assert KnownSids.none(2).find(np.array([5])).tolist() == [[-1, -1]]
    both = known.over(KnownSids.of(np.array([10, 40]), np.array([[8, 8], [4, 4]])))
    assert both.find(np.array([10, 40])).tolist() == [[1, 1], [4, 4]]
    with pytest.raises(ValueError, match="item hash 10 has two"):
        KnownSids.of(np.array([10, 10]), np.array([[1], [2]]))
