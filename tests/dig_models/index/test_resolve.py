"""Collision resolution: who keeps a SID, what the others get, and that it stays so from day to day."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import synthetic
from hypothesis import given, settings
from hypothesis import strategies as st

from dig_models.features import FeatureSpec
from dig_models.index.reader import IndexReader
from dig_models.index.refresh import Fresh, refresh
from dig_models.index.resolve import ARRIVED, KNOWN, STAYS, publish, resolve
from dig_models.index.verify import verify
from dig_models.index.writer import Release, locked, switch
from dig_models.quantize.known import KnownSids

Publish = Callable[[Path, Release], str]
LEVELS, CODES, DIM = 3, 4, 3


def world(items: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nearest SIDs of random embeddings, crowded into few prefixes."""
    rng = np.random.default_rng(seed)
    code_LKD = rng.normal(size=(LEVELS, CODES, DIM)).astype(np.float32)
    e_ND = (0.7 * rng.normal(size=(items + 1, DIM))).astype(np.float32)
    residual, sid = e_ND, []
    for center in code_LKD:
        s = np.square(residual[:, None] - center).sum(2).argmin(1)
        residual = residual - center[s]
        sid.append(s)
    sid_NL = np.stack(sid, axis=1).astype(np.int32)
    sid_NL[0] = -1
    return sid_NL, e_ND, code_LKD


@settings(max_examples=30, deadline=None)
@given(items=st.integers(1, 90), seed=st.integers(0, 10_000))
def test_afterwards_a_prefix_has_collisions_only_if_it_has_more_items_than_codes(items: int, seed: int) -> None:
    own_NL, e_ND, code_LKD = world(items, seed)
    sid_NL = own_NL.copy()
    found = resolve(sid_NL, e_ND, code_LKD, rank_N=np.full(items + 1, KNOWN))
    assert np.array_equal(sid_NL[:, :-1], own_NL[:, :-1]) and np.array_equal(sid_NL[0], own_NL[0])
    by_prefix = Counter(map(tuple, sid_NL[1:, :-1].tolist()))
    by_sid = Counter(map(tuple, sid_NL[1:].tolist()))
    shared = sum(n - 1 for n in by_sid.values())
    assert shared == found.left == sum(max(n - CODES, 0) for n in by_prefix.values())
    assert found.moved == int((sid_NL != own_NL).any(1).sum())
    again = sid_NL.copy()
    assert found.left or resolve(again, e_ND, code_LKD, rank_N=np.full(items + 1, KNOWN)).moved == 0
    for sid in {tuple(s) for s in own_NL[1:].tolist()}:
        first = 1 + int(np.flatnonzero((own_NL[1:] == sid).all(1))[0])
        assert tuple(sid_NL[first]) == sid, "the first item keeps it"


def test_an_item_that_steps_aside_takes_the_nearest_free_code_of_its_prefix() -> None:
    code_LKD = np.zeros((2, 4, 1), dtype=np.float32)
    code_LKD[1, :, 0] = [0.0, 1.0, 2.0, 3.0]
    sid_NL = np.array([[-1, -1], [0, 1], [0, 1], [0, 2], [1, 1]], dtype=np.int32)
    e_ND = np.array([[0.0], [1.0], [1.4], [2.0], [1.0]], dtype=np.float32)
    found = resolve(sid_NL, e_ND, code_LKD, rank_N=np.full(5, KNOWN))
    assert sid_NL[1:].tolist() == [[0, 1], [0, 0], [0, 2], [1, 1]], "2 is nearer, but taken by its own item"
    assert (found.moved, found.left) == (1, 0)


def test_ranks_decide_who_keeps_a_sid_and_rows_what_they_leave_open() -> None:
    code_LKD = np.arange(8, dtype=np.float32).reshape(2, 4, 1)
    own = np.array([[-1, -1], [0, 1], [0, 1], [0, 1]], dtype=np.int32)
    e_ND = np.ones((4, 1), dtype=np.float32)
    for rank, keeper in (([0, ARRIVED, KNOWN, KNOWN], 2), ([0, ARRIVED, ARRIVED, KNOWN], 3), ([0, ARRIVED, KNOWN, STAYS], 3)):
        sid_NL = own.copy()
        resolve(sid_NL, e_ND, code_LKD, rank_N=np.array(rank))
        assert sid_NL[keeper].tolist() == [0, 1]
        assert len({tuple(s) for s in sid_NL[1:].tolist()}) == 3
    sid_NL = own.copy()
    resolve(sid_NL, e_ND, code_LKD, rank_N=np.array([0, STAYS, STAYS, ARRIVED]), taken_XL=np.array([[0, 0], [0, 2]]))
    assert sid_NL[1:].tolist() == [[0, 1], [0, 1], [0, 3]], "what must not move does not, and nobody gets what is kept for others"


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), gone=st.floats(0.0, 0.6), days=st.integers(2, 4))
def test_published_items_keep_their_sids_from_day_to_day(seed: int, gone: float, days: int) -> None:
    """Whoever comes and goes, as long as the model gives an item the same SID; only one that still shared its SID may yet move."""
    own_NL, e_ND, code_LKD = world(60, seed)
    rng = np.random.default_rng(seed)
    hash_N = np.concatenate([[np.iinfo(np.int64).min], np.sort(rng.choice(10**6, 60, replace=False))])
    before: KnownSids | None = None
    for _ in range(days):
        keep = np.concatenate([[True], rng.random(60) >= gone])
        sid_NL = own_NL[keep].copy()
        publish(sid_NL, e_ND[keep], code_LKD, hash_N[keep], known_N=rng.random(keep.sum()) < 0.5, before=before)
        now = KnownSids(hash_N[keep][1:], sid_NL[1:])
        if before is not None:
            was = before.find(now.hash_X)
            alone = {sid for sid, n in Counter(map(tuple, before.code_XL.tolist())).items() if n == 1}
            there = np.array([tuple(sid) in alone for sid in was.tolist()], dtype=bool)
            assert np.array_equal(now.code_XL[there], was[there])
        before = now


def test_an_item_that_the_model_moved_to_another_prefix_goes_there() -> None:
    own_NL, e_ND, code_LKD = world(30)
    hash_N = np.concatenate([[np.iinfo(np.int64).min], np.arange(30)])
    before = own_NL[1:].copy()
    before[:, 0] = (before[:, 0] + 1) % CODES
    sid_NL = own_NL.copy()
    publish(sid_NL, e_ND, code_LKD, hash_N, known_N=np.ones(31, bool), before=KnownSids(hash_N[1:], before))
    assert np.array_equal(sid_NL[:, :-1], own_NL[:, :-1])


def crowded(release: Release) -> Release:
    """The release with fields that leave many items no SID of their own, and codes enough for all items of a prefix."""
    items = release.items
    fields = {name: value.copy() for name, value in items.fields.items()}
    for row in range(2, len(items)):
        if row % 3:
            for value in fields.values():
                value[row] = value[row - row % 3]
    same = replace(items, fields=fields, numbers={name: np.zeros_like(value) for name, value in items.numbers.items()})
    bundle = synthetic.make_bundle(release.bundle.spec, same, codes=16)
    bundle.model.settled = True  # as every bundle that was loaded
    return replace(release, bundle=bundle, items=same, resolve_collisions=True)


def sids(root: Path) -> dict[str, tuple[int, ...]]:
    reader = IndexReader.open(root)
    return {str(item): reader.sid(row) for row, item in enumerate(reader.bundle.items.id_N) if row}


def test_what_is_published_has_no_collision_and_is_the_same_again(tmp_path: Path, release: Release, publish: Publish) -> None:
    crowd = crowded(release)
    publish(tmp_path / "plain", replace(crowd, resolve_collisions=False))
    plain = sids(tmp_path / "plain")
    assert len(set(plain.values())) < 0.6 * len(plain)
    one = publish(tmp_path / "one", crowd)
    found = sids(tmp_path / "one")
    assert len(set(found.values())) == len(found)
    assert all(found[item][:-1] == plain[item][:-1] for item in plain)
    assert publish(tmp_path / "one", crowd) == one == publish(tmp_path / "other", crowd)


def later(release: Release, days: int, folder: Path) -> Release:
    """The same release some days later, with the state of that day."""
    day, spec, users = release.day + timedelta(days=days), release.bundle.spec, ["u0", "u1", "u2"]
    return replace(
        release,
        day=day,
        user_state=synthetic.user_state(spec, release.items, users, day),
        cross_arrays=synthetic.write_crosses(folder / f"crosses-{day}", spec, release.items, users, day),
    )


def test_the_next_day_keeps_what_was_published_though_the_item_that_had_the_sid_is_gone(
    tmp_path: Path, release: Release, publish: Publish
) -> None:
    crowd = crowded(release)
    publish(tmp_path, crowd)
    first = sids(tmp_path)
    keep = np.array([row for row in range(len(crowd.items)) if row == 0 or row % 3], dtype=np.int64)
    items = crowd.items
    fewer = replace(
        items,
        hash_N=items.hash_N[keep],
        id_N=items.id_N[keep],
        name_N=items.name_N[keep],
        fields={n: v[keep] for n, v in items.fields.items()},
        numbers={n: v[keep] for n, v in items.numbers.items()},
        key_KN=items.key_KN[:, keep],
    )
    publish(tmp_path, later(replace(crowd, items=fewer), 1, tmp_path))
    second = sids(tmp_path)
    assert second.keys() < first.keys()
    assert second == {item: first[item] for item in second}
    publish(tmp_path, later(crowd, 2, tmp_path))
    assert sids(tmp_path) == first, "whoever comes back has what was kept for him"


def test_a_refresh_lets_new_items_step_aside_and_nothing_else_move(
    tmp_path: Path, release: Release, publish: Publish, spec: FeatureSpec
) -> None:
    crowd = crowded(release)
    publish(tmp_path, crowd)
    before = sids(tmp_path)
    new = synthetic.make_items(spec, ["fresh-1", "fresh-2"])
    twins = replace(
        new,
        fields={
            name: np.concatenate([value[:1], np.repeat(crowd.items.fields[name][3:4], 2, axis=0)]) for name, value in new.fields.items()
        },
        numbers={name: np.zeros_like(value) for name, value in new.numbers.items()},
    )
    gone = crowd.items.hash_N[3:4]
    for resolving in (False, True):
        with locked(tmp_path):
            made = refresh(tmp_path, Fresh(arrived=twins, withdrawn=gone), spec, resolve_collisions=resolving)
            verify(tmp_path, made)
            if resolving:
                switch(tmp_path, made)
    after = sids(tmp_path)
    assert all(after[item] == before[item] for item in after.keys() & before.keys())
    assert len({after["fresh-1"], after["fresh-2"]}) == 2
    taken = set(before.values())
    assert not {after["fresh-1"], after["fresh-2"]} & taken, "also not the SID of the item that was withdrawn: it may come back"


def test_sids_that_do_not_fit_a_number_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit a 64-bit number"):
        resolve(np.zeros((3, 9), np.int32), np.zeros((3, 2), np.float32), np.zeros((9, 256, 2), np.float32), rank_N=np.zeros(3, np.int64))
