"""Invariants of the prefix trie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dig_models.retrieve.prefix_means import PrefixMeans
from dig_models.retrieve.trie import CorruptTrie, Trie

CODES = st.integers(1, 4).flatmap(
    lambda levels: st.lists(st.lists(st.integers(0, 5), min_size=levels, max_size=levels), min_size=1, max_size=60)
).map(lambda rows: np.array([[-1] * len(rows[0]), *rows], dtype=np.int64))  # fmt: skip


def slow_prefixes(codes_NL: np.ndarray, level: int) -> dict[tuple[int, ...], list[int]]:
    """Item rows under each prefix, by looking at every item."""
    out: dict[tuple[int, ...], list[int]] = {}
    for row in range(1, len(codes_NL)):
        out.setdefault(tuple(codes_NL[row, : level + 1].tolist()), []).append(row)
    return dict(sorted(out.items()))


@given(CODES)
@settings(max_examples=60, deadline=None)
def test_every_prefix_is_one_range_of_the_sorted_items(codes_NL: np.ndarray) -> None:
    trie = Trie.build(codes_NL)
    trie.check(len(codes_NL) - 1)
    for level in range(trie.levels):
        slow = slow_prefixes(codes_NL, level)
        assert [tuple(c) for c in trie.codes(level).tolist()] == list(slow)
        start = trie.start[level]
        found = [sorted(trie.order_M[start[p] : start[p + 1]].tolist()) for p in range(trie.nodes(level))]
        assert found == list(slow.values())


@given(CODES)
@settings(max_examples=50, deadline=None)
def test_children_extend_their_parent_by_one_code(codes_NL: np.ndarray) -> None:
    trie = Trie.build(codes_NL)
    for level in range(trie.levels - 1):
        nodes = np.arange(trie.nodes(level), dtype=np.int64)
        child, owner = trie.children(level, nodes)
        assert child.tolist() == list(range(trie.nodes(level + 1)))
        assert np.array_equal(trie.codes(level + 1)[child][:, :-1], trie.codes(level)[owner])


@given(CODES)
@settings(max_examples=50, deadline=None)
def test_item_codes_are_those_the_trie_was_built_from(codes_NL: np.ndarray) -> None:
    assert np.array_equal(Trie.build(codes_NL).item_codes(), codes_NL)


@given(CODES, st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_a_prefix_is_alive_just_if_an_allowed_item_lies_under_it(codes_NL: np.ndarray, seed: int) -> None:
    allowed_N = np.random.default_rng(seed).random(len(codes_NL)) < 0.3
    trie = Trie.build(codes_NL)
    for level, alive in enumerate(trie.alive(allowed_N)):
        assert alive.tolist() == [any(allowed_N[rows]) for rows in slow_prefixes(codes_NL, level).values()]


@given(CODES, st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_prefix_means_are_the_mean_over_the_items_of_each_prefix(codes_NL: np.ndarray, seed: int) -> None:
    cross_NC = np.random.default_rng(seed).gamma(0.5, 2.0, (len(codes_NL), 4)).astype(np.float32)
    cross_NC[0] = 1e6  # the unknown item must not count
    trie = Trie.build(codes_NL)
    for level, mean_PC in enumerate(PrefixMeans(trie)(cross_NC)):
        slow = np.array([cross_NC[rows].mean(axis=0) for rows in slow_prefixes(codes_NL, level).values()])
        np.testing.assert_allclose(mean_PC, slow, rtol=2e-5, atol=1e-6)
        assert mean_PC.dtype == np.float32


def test_prefix_means_refuse_crosses_of_another_catalogue() -> None:
    with pytest.raises(ValueError, match="crosses of 5 catalogue rows, the trie was built on 4"):
        PrefixMeans(Trie.build(np.array([[-1], [0], [1], [1]])))(np.zeros((5, 2), dtype=np.float32))


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((1, 3), np.int64), "shape"),
        (np.zeros((4, 0), np.int64), "shape"),
        (np.array([[-1], [2], [-1]]), "row 2 has the negative code -1"),
    ],
)
def test_codes_that_cannot_be_indexed_are_refused(codes: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trie.build(codes)


def saved(tmp_path: Path) -> tuple[Trie, Path]:
    codes = np.random.default_rng(0).integers(0, 4, (50, 3))
    trie = Trie.build(codes)
    trie.save(tmp_path)
    return trie, tmp_path


def test_a_saved_trie_is_read_back_memory_mapped(tmp_path: Path) -> None:
    trie, folder = saved(tmp_path)
    back = Trie.load(folder, 3)
    assert not back.order_M.flags.owndata and not back.order_M.flags.writeable
    assert {k: v.tolist() for k, v in back.arrays().items()} == {k: v.tolist() for k, v in trie.arrays().items()}


def test_a_truncated_array_is_named(tmp_path: Path) -> None:
    _, folder = saved(tmp_path)
    whole = (folder / "start2.npy").read_bytes()
    (folder / "start2.npy").write_bytes(whole[:-8])
    with pytest.raises(CorruptTrie, match=r"start2\.npy: expected \d+ bytes"):
        Trie.load(folder, 3)


def test_a_missing_array_is_named(tmp_path: Path) -> None:
    _, folder = saved(tmp_path)
    (folder / "child1.npy").unlink()
    with pytest.raises(CorruptTrie, match=r"child1\.npy"):
        Trie.load(folder, 3)


def test_an_array_of_another_type_is_named(tmp_path: Path) -> None:
    trie, folder = saved(tmp_path)
    np.save(folder / "order.npy", trie.order_M.astype(np.float32))
    with pytest.raises(CorruptTrie, match=r"order\.npy: expected int64 \(any\), found float32"):
        Trie.load(folder, 3)


@pytest.mark.parametrize("name", ["order", "token0", "token2", "start0", "start2", "child0", "child1"])
def test_a_changed_number_is_found(tmp_path: Path, name: str) -> None:
    _, folder = saved(tmp_path)
    array = np.load(folder / f"{name}.npy")
    array[1] = array[0]
    np.save(folder / f"{name}.npy", array)
    trie = Trie.load(folder, 3)  # reads no values
    with pytest.raises(CorruptTrie, match=name):
        trie.check()
