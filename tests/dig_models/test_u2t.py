"""The u2t teachers against slow readings, and the leak of the published one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dig_models import u2t
from dig_models.batch import Batch

CODES = 4


def _rows(rows: int = 40, levels: int = 3, width: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(5)
    return torch.from_numpy(rng.integers(0, CODES, (rows, levels))), torch.from_numpy(rng.normal(size=(rows, width))).float()


def _same_bucket(code: torch.Tensor, r: int, level: int, key: str) -> list[int]:
    if key == "token":
        return [i for i in range(len(code)) if code[i, level] == code[r, level]]
    return [i for i in range(len(code)) if bool((code[i, : level + 1] == code[r, : level + 1]).all())]


@pytest.mark.parametrize("key", ["prefix", "token"])
def test_batch_mean_is_the_mean_over_the_rows_of_the_bucket(key: u2t.BucketKey) -> None:
    code, cross = _rows()
    found = u2t.batch_mean(u2t.bucket_keys(code, CODES, key), cross)
    for r in range(len(code)):
        for level in range(3):
            expected = cross[_same_bucket(code, r, level, key)].mean(0)
            assert torch.allclose(found[r, level], expected, atol=1e-6)


def test_batch_mean_of_a_bucket_of_one_is_the_row_itself_and_so_leaks_its_label() -> None:
    code = torch.tensor([[0, 0], [0, 1], [1, 2]])
    cross = torch.tensor([[1.0, 5.0], [3.0, 7.0], [-2.0, 0.0]])
    found = u2t.batch_mean(u2t.bucket_keys(code, CODES, "prefix"), cross)
    assert torch.equal(found[:, 1], cross)
    assert torch.equal(found[2, 0], cross[2])


@pytest.mark.parametrize("key", ["prefix", "token"])
@pytest.mark.parametrize("smallest", [2, 4])
def test_leave_one_out_never_uses_the_row_and_backs_off_to_shorter_prefixes(key: u2t.BucketKey, smallest: int) -> None:
    code, cross = _rows()
    found = u2t.leave_one_out(u2t.bucket_keys(code, CODES, key), cross, smallest)
    for r in range(len(code)):
        above = [i for i in range(len(code)) if i != r]
        for level in range(3):
            bucket = _same_bucket(code, r, level, key)
            above = [i for i in bucket if i != r] if len(bucket) >= smallest else above
            assert torch.allclose(found[r, level], cross[above].mean(0), atol=1e-5)


def test_leave_one_out_does_not_change_with_the_row_s_own_crosses() -> None:
    code, cross = _rows()
    key = u2t.bucket_keys(code, CODES, "prefix")
    changed = cross.clone()
    changed[7] += 100.0
    assert torch.allclose(u2t.leave_one_out(key, cross, 2)[7], u2t.leave_one_out(key, changed, 2)[7], atol=1e-4)


def test_the_only_row_of_a_batch_gets_zeros() -> None:
    found = u2t.leave_one_out(torch.zeros((1, 3), dtype=torch.int64), torch.ones(1, 5), 2)
    assert torch.equal(found, torch.zeros(1, 3, 5))


def test_drawn_items_lie_in_the_row_s_prefix_and_reach_all_of_it() -> None:
    rng = np.random.default_rng(0)
    catalogue = torch.from_numpy(rng.integers(0, CODES, (61, 3)))
    buckets = u2t.CatalogueBuckets.of(catalogue, CODES, "prefix")
    own = torch.from_numpy(rng.integers(1, 61, 30))
    code = catalogue[own]
    drawn = buckets.draw(u2t.bucket_keys(code, CODES, "prefix"), 200, torch.Generator().manual_seed(1))
    for r in range(30):
        for level in range(3):
            bucket = {i for i in range(1, 61) if bool((catalogue[i, : level + 1] == code[r, : level + 1]).all())}
            seen = set(drawn[r, level].tolist())
            assert seen <= bucket
            assert len(seen) > 0.8 * len(bucket)


@pytest.mark.parametrize("key", ["prefix", "token"])
def test_a_row_whose_prefix_no_item_has_draws_from_the_nearest_level_above_that_has_items(key: u2t.BucketKey) -> None:
    rng = np.random.default_rng(3)
    catalogue = torch.from_numpy(rng.integers(0, CODES - 1, (61, 3)))  # no item has the last code
    code = torch.from_numpy(rng.integers(0, CODES, (300, 3)))
    drawn = u2t.CatalogueBuckets.of(catalogue, CODES, key).draw(u2t.bucket_keys(code, CODES, key), 200, torch.Generator().manual_seed(1))
    fell_back: set[tuple[int, bool]] = set()
    for r in range(len(code)):
        pool = set(range(1, 61))
        for level in range(3):
            first = 0 if key == "prefix" else level
            same = {i for i in range(1, 61) if bool((catalogue[i, first : level + 1] == code[r, first : level + 1]).all())}
            fell_back |= set() if same else {(level, len(pool) == 60)}
            pool = same or pool
            seen = set(drawn[r, level].tolist())
            assert seen <= pool and len(seen) > 0.8 * len(pool)
    assert {(0, True), (1, False), (2, False)} <= fell_back


def test_catalogue_sample_is_the_mean_of_the_drawn_pairs_crosses_and_never_looks_a_pair_up_twice(
    batch: Batch, lookup: u2t.PairLookup
) -> None:
    rng = np.random.default_rng(0)
    drawn = torch.from_numpy(rng.integers(1, 9, (batch.rows, 3, 4)))
    drawn[:, 2] = batch.item_R[:, None]
    asked: list[tuple[int, ...]] = []

    def counting(user: NDArray[np.int64], ts: NDArray[np.int64], offer: NDArray[np.int64], item: NDArray[np.int64]) -> NDArray[np.float32]:
        asked.extend(zip(user.tolist(), ts.tolist(), offer.tolist(), item.tolist(), strict=True))
        return lookup(user, ts, offer, item)

    found = u2t.catalogue_sample(drawn, batch, counting)
    assert len(asked) == len(set(asked))
    for r in range(batch.rows):
        b = int(batch.request_R[r])
        for level in range(3):
            crosses = []
            for item in drawn[r, level].tolist():
                keys = [np.array([int(x[b])]) for x in (batch.user_hash_B, batch.ts_B, batch.offer_B)]
                crosses.append(batch.cross_RC[r].numpy() if item == int(batch.item_R[r]) else lookup(*keys, np.array([item]))[0])
            assert np.allclose(found[r, level].numpy(), np.mean(crosses, axis=0), atol=1e-5)


def test_catalogue_sample_with_only_own_items_needs_no_look_up(batch: Batch) -> None:
    def refuse(*keys: NDArray[np.int64]) -> NDArray[np.float32]:
        raise AssertionError("looked up")

    found = u2t.catalogue_sample(batch.item_R[:, None, None].expand(-1, 2, 1), batch, refuse)
    assert torch.equal(found, batch.cross_RC[:, None].expand(-1, 2, -1))


def test_catalogue_sample_is_unbiased_for_the_exact_prefix_mean(batch: Batch, lookup: u2t.PairLookup) -> None:
    catalogue = torch.from_numpy(np.random.default_rng(0).integers(0, CODES, (121, 2)))
    code = catalogue[batch.item_R]
    key = u2t.bucket_keys(code, CODES, "prefix")
    buckets = u2t.CatalogueBuckets.of(catalogue, CODES, "prefix")
    found = u2t.catalogue_sample(buckets.draw(key, 4000, torch.Generator().manual_seed(0)), batch, lookup)
    r, b = 0, int(batch.request_R[0])
    rows = np.flatnonzero((catalogue[1:, 0] == code[r, 0]).numpy()) + 1
    keys = [np.full(len(rows), int(x[b])) for x in (batch.user_hash_B, batch.ts_B, batch.offer_B)]
    crosses = lookup(*keys, rows)
    crosses[rows == int(batch.item_R[r])] = batch.cross_RC[r].numpy()
    assert np.allclose(found[r, 0].numpy(), crosses.mean(0), atol=0.05)
