"""Exact u2t of a few prefixes against means over the whole catalogue."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest
import synthetic
from hypothesis import given, settings
from hypothesis import strategies as st

from dig_models.crosses import CrossStore
from dig_models.features import SECONDS_PER_DAY, FeatureSpec, hash_id
from dig_models.items import ItemTable
from dig_models.retrieve import prefix_u2t
from dig_models.retrieve.prefix_means import PrefixMeans
from dig_models.retrieve.prefix_u2t import ExactU2t, ShareTable
from dig_models.retrieve.trie import Trie

USERS = [f"u{i}" for i in range(5)]
OFFERS = ("offer-a", "offer-b", "", "no such offer")


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory, spec: FeatureSpec) -> tuple[ItemTable, CrossStore]:
    """Eighty items; some have no brand. The store knows items that the table does not hold, and the other way round."""
    known = synthetic.make_items(spec, [f"i{n}" for n in range(80)])
    path = synthetic.write_crosses(tmp_path_factory.mktemp("u2t"), spec, known, USERS)
    items = synthetic.make_items(spec, [f"i{n}" for n in range(10, 90)])
    items.key_KN[1, ::7] = 0
    return items, CrossStore.open(path, spec, items)


def when(days: int, seconds: int = 0) -> int:
    return (synthetic.day_number(synthetic.DAY + timedelta(days=1)) - days) * SECONDS_PER_DAY + seconds


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_exact_u2t_is_the_mean_over_the_catalogue(spec: FeatureSpec, catalogue: tuple[ItemTable, CrossStore], data: st.DataObject) -> None:
    items, store = catalogue
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    levels, codes = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6))
    trie = Trie.build(np.r_[np.full((1, levels), -1), rng.integers(0, codes, (len(items) - 1, levels))])
    asked = [
        (
            hash_id(data.draw(st.sampled_from([*USERS, "stranger"]))),
            when(int(rng.integers(0, 9)), int(rng.integers(0, 80_000))),
            hash_id(offer),
        )
        for offer in rng.choice(OFFERS, data.draw(st.integers(1, 4)))
    ]
    exact = ExactU2t(trie, items.key_KN, spec, store)
    u2t = exact.of(*(np.array(column, dtype=np.int64) for column in zip(*asked, strict=True)))
    want = [PrefixMeans(trie)(spec.transform(store.catalogue(*one))) for one in asked]
    for level in range(trie.levels):
        kept = [np.sort(rng.choice(trie.nodes(level), rng.integers(0, trie.nodes(level) + 1), replace=False)) for _ in asked]
        request_R = np.repeat(np.arange(len(asked)), [len(k) for k in kept])
        got_RC = u2t(level, request_R, np.concatenate(kept))
        for g, node in enumerate(kept):
            np.testing.assert_allclose(got_RC[request_R == g], want[g][level][node], rtol=1e-5, atol=1e-5)
        assert got_RC.dtype == np.float32


@pytest.mark.parametrize("values", [0, 10**6])
def test_shares_may_be_kept_by_prefix_or_by_value(
    spec: FeatureSpec, catalogue: tuple[ItemTable, CrossStore], monkeypatch: pytest.MonkeyPatch, values: int
) -> None:
    """Whichever touches less; both ways give the same means."""
    monkeypatch.setattr(prefix_u2t, "TYPICAL_VALUES", values)
    monkeypatch.setattr(prefix_u2t, "TYPICAL_ROWS", 10**6 - values)
    items, store = catalogue
    trie = Trie.build(np.random.default_rng(3).integers(0, 3, (len(items), 2)))
    exact = ExactU2t(trie, items.key_KN, spec, store)
    by_value, by_node = exact.shares.level(1)
    assert (len(by_value.other_T) == 0) == bool(values)
    assert (len(by_node.other_T) == 0) != bool(values)
    one = (hash_id("u2"), when(0, 5), hash_id("offer-b"))
    got_RC = exact.of(*(np.array([c]) for c in one))(1, np.zeros(trie.nodes(1), dtype=np.int64), np.arange(trie.nodes(1)))
    np.testing.assert_allclose(got_RC, PrefixMeans(trie)(spec.transform(store.catalogue(*one)))[1], rtol=1e-5, atol=1e-5)


def test_a_day_out_of_reach_is_refused_with_the_days_that_can_be_asked(spec: FeatureSpec, catalogue: tuple[ItemTable, CrossStore]) -> None:
    items, store = catalogue
    exact = ExactU2t(Trie.build(np.zeros((len(items), 1), dtype=np.int64)), items.key_KN, spec, store)
    late = (synthetic.day_number(date(2031, 1, 1))) * SECONDS_PER_DAY
    with pytest.raises(ValueError, match="crosses of a request on 2031-01-01 asked"):
        exact.of(np.array([1]), np.array([late]), np.array([0]))(0, np.array([0]), np.array([0]))


def test_key_values_of_another_catalogue_are_refused() -> None:
    with pytest.raises(ValueError, match="key values of 9 catalogue rows, the trie was built on 4"):
        ShareTable(Trie.build(np.zeros((4, 1), dtype=np.int64)), np.zeros((2, 9), dtype=np.int64))


def test_the_work_follows_the_user_and_not_the_catalogue(spec: FeatureSpec, tmp_path: Path) -> None:
    """Shares that a request touches, on catalogues of which one is four times the other."""
    touched = {}
    for size in (200, 800):
        items = synthetic.make_items(spec, [f"i{n}" for n in range(size)])
        few = synthetic.make_items(spec, [f"i{n}" for n in range(50)])
        store = CrossStore.open(synthetic.write_crosses(tmp_path / str(size), spec, few, USERS), spec, items)
        trie = Trie.build(np.random.default_rng(0).integers(0, 4, (size + 1, 2)))
        exact = ExactU2t(trie, items.key_KN, spec, store)
        profile = exact._profile(hash_id("u1"), when(0))
        items_only = exact._profile(hash_id("u1"), when(0)).key_S == 0
        by_value, _ = exact.shares.level(1)
        touched[size] = len(by_value.of(profile.value_S[items_only])[0])
    assert touched[200] == touched[800] > 0
