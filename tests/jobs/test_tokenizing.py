"""What a tokenizer may see of a lake: purchases of the days that move weights, in order of time."""

from __future__ import annotations

import json
import shutil
from itertools import islice
from pathlib import Path

import numpy as np

from dig_models.items import ItemTable
from jobs import sids_inputs, tokenizing
from jobs.lake import MARKER, Lake
from jobs.train_inputs import TrainInputs, lake_inputs
from tests.jobs import train_world as tw
from tests.jobs.sids_world import RKMEANS, built, home

__all__ = ["built", "home"]  # fixtures


def bought(home: Path) -> tuple[TrainInputs, ItemTable, tokenizing.Purchases]:
    inputs = lake_inputs(tw.settings(home), tw.DAY)
    items = ItemTable.from_arrow(inputs.items_shown(), inputs.config.dataset.spec())
    return inputs, items, tokenizing.Purchases.of(inputs, items)


def test_sequences_are_what_users_bought_on_the_days_that_move_weights_in_order_of_time(home: Path) -> None:
    inputs, items, purchases = bought(home)
    days = [tw.before(back) for back in range(9, 3, -1)]
    assert (days[0], days[-1]) == (inputs.window.train_first, inputs.window.fit_last)
    expected: dict[int, list[tuple[int, list[int]]]] = {}
    for day in days:
        for row in inputs.lake.read_arrow("examples", [day]).to_pylist():
            basket = sorted(item for item, label in zip(row["item"], row["label"], strict=True) if label)
            expected.setdefault(row["user_hash"], []).append((row["ts"], basket))
    found, same, other = (purchases.sequences(seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(found.item_P, same.item_P)
    assert not np.array_equal(found.item_P, other.item_P)
    assert len(found) == len(expected) > 10
    for user, hashed in enumerate(sorted(expected)):
        there = iter(items.hash_N[found.one(user)].tolist())
        for _, basket in sorted(expected[hashed]):
            assert sorted(islice(there, len(basket))) == basket
        assert not list(there)


def test_within_a_request_the_next_item_is_as_often_the_one_of_the_smaller_hash(home: Path) -> None:
    _, items, purchases = bought(home)
    by_user = np.argsort(purchases.user_P, kind="stable")
    user_P, ts_P = purchases.user_P[by_user], purchases.ts_P[by_user]
    within = (np.diff(user_P) == 0) & (np.diff(ts_P) == 0)
    read_P, drawn_P = items.hash_N[purchases.item_P[by_user]], items.hash_N[purchases.sequences(1).item_P]
    assert within.sum() > 100 and (read_P[1:] > read_P[:-1])[within].mean() > 0.7, "rows of a request are kept by hash"
    assert 0.4 < (drawn_P[1:] > drawn_P[:-1])[within].mean() < 0.6


def test_validation_and_evaluation_days_are_not_seen(home: Path) -> None:
    _, items, before = bought(home)
    window = tw.settings(home).run_window(tw.DAY)
    lake = Lake(str(home / "lake"))
    for day in lake.days("examples"):
        if day > window.fit_last:
            shutil.copytree(lake.folder("examples", window.train_first), lake.folder("examples", day), dirs_exist_ok=True)
    _, _, after = bought(home)
    for name in ("user_P", "day_P", "ts_P", "item_P"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    assert before.co_occurrence(items, tw.settings(home).dataset.spec(), 1).vector_XD.size


def test_a_change_of_a_validation_day_does_not_make_them_anew_and_one_of_a_fit_day_does(home: Path) -> None:
    config = tw.settings(home, *RKMEANS)
    window = config.run_window(tw.DAY)

    def want() -> str:
        return sids_inputs.wanted(config, tw.DAY, window, lake_inputs(config, tw.DAY).inputs)

    def stamped(day: object) -> None:
        marker = Lake(str(home / "lake")).day_dir("examples", day) / MARKER  # type: ignore[arg-type]
        marker.write_text(json.dumps(json.loads(marker.read_text()) | {"content": "other"}))

    first = want()
    stamped(window.validation_first)
    assert want() == first
    stamped(window.fit_last)
    assert want() != first
