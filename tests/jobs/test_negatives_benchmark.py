"""The pieces of the benchmark of zero crosses, against slow readings."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from benchmarks import negatives
from dig_models.features import FeatureSpec, FieldSpec
from jobs.config import load
from jobs.evaluate import finite

SPEC = FeatureSpec(
    item_fields=(FieldSpec(name="item_id"),), user_fields=(), context_fields=(), u2i_keys=("item", "kind"), windows=(7,), half_life_days=1.0
)


def test_the_mean_of_a_prefix_is_over_its_items_and_row_zero_is_none() -> None:
    rng = np.random.default_rng(0)
    cross_NC, prefix_N = rng.random((9, 5)).astype(np.float32), np.array([-1, 4, 4, 0, 7, 0, 4, 7, 9])
    found = negatives.prefix_means(cross_NC, prefix_N)
    for row in range(1, 9):
        np.testing.assert_allclose(found[row], cross_NC[prefix_N == prefix_N[row]].mean(axis=0), rtol=1e-6)


def test_the_one_feature_looks_at_what_the_user_did_and_not_at_popularity() -> None:
    assert SPEC.cross_names[negatives.u2i_columns(SPEC, negatives.ANY)] == (
        "u2i_item_n_7",
        "u2i_item_days",
        "u2i_kind_n_7",
        "u2i_kind_days",
    )
    assert SPEC.cross_names[negatives.u2i_columns(SPEC, "kind")] == ("u2i_kind_n_7", "u2i_kind_days")
    popular_RC = np.array([[0, 0, 0, 0, 9], [0, 0, 1, 0, 0], [0, 0, 0, 0, 5], [0, 0, 0, 0, 1]], dtype=np.float32)
    assert negatives.told_apart(popular_RC, np.array([1.0, 1.0, 0.0, 0.0]), SPEC) == pytest.approx(0.75)
    assert negatives.told_apart(popular_RC, np.array([1.0, 1.0, 0.0, 0.0]), SPEC, "item") == 0.5
    assert negatives.told_apart(popular_RC[[0, 2]], np.array([1.0, 0.0]), SPEC) == 0.5
    assert math.isnan(negatives.told_apart(popular_RC, np.ones(4), SPEC))


def measured(open_auc: float, **drawn: int) -> dict[str, Any]:
    levels = {"exact": [0.5, 0.6], **{name: [0.6, 0.7] for name in negatives.TEACHERS}}
    of = {
        "never_met": {"open_positives": 0.25, "negatives": 0.75},
        "ranking_path": {"open": open_auc, "exposed": 0.55},
        "retrieval_path": levels,
    }
    return {"drawn": drawn, "own_crosses": {"exact": [0.125, 1.0]}, "keys": {"item": of, negatives.ANY: of}}


FOUND = {
    negatives.UNIFORM: measured(0.8, random_negatives=30, history_negatives=0, popular_negatives=0),
    negatives.AS_TRAINED: measured(0.65, random_negatives=30, history_negatives=10, popular_negatives=0),
}


def test_the_plot_shows_every_teacher_by_either_draw_and_says_what_was_drawn() -> None:
    figure = negatives.plot(FOUND)
    assert [len(axes.lines) for axes in figure.axes] == [len(negatives.TEACHERS) + 2] * 4
    drawn = ("uniform (30 random)", "as_trained (30 random, 10 history)")
    titles = [f"{which}, {key} key" for which in drawn for key in ("item", "any")]
    assert [axes.get_title() for axes in figure.axes] == titles
    own = [next(line for line in axes.lines if "own crosses" in str(line.get_label())) for axes in figure.axes]
    assert [line.get_ydata()[0] for line in own] == [0.8, 0.8, 0.65, 0.65]  # type: ignore[index]


def test_what_is_printed_tells_the_draws_apart() -> None:
    told = "\n".join(negatives.lines(FOUND))
    uniform, as_trained = told.split("as_trained: negatives a request 30 random, 10 history\n")
    assert uniform.startswith("uniform: negatives a request 30 random\n")
    assert "item: own crosses 0.800, exposed rows 0.550, never met 0.750 of negatives, 0.250 of positives" in uniform
    assert "item: own crosses 0.650" in as_trained and "is the row's own crosses in 0.125 1.000" in as_trained


def test_uniform_draws_are_alone_whatever_training_draws_beside_them() -> None:
    config = load(sets=["train.random_negatives=7", "train.history_negatives=4", "train.popular_negatives=2"], environ={})
    assert negatives.drawn_by(config, negatives.UNIFORM) == {"random_negatives": 7, "history_negatives": 0, "popular_negatives": 0}
    assert negatives.drawn_by(config, negatives.AS_TRAINED) == {"random_negatives": 7, "history_negatives": 4, "popular_negatives": 2}


def test_what_could_not_be_measured_is_null() -> None:
    assert finite({"a": float("nan"), "b": (1.0, math.inf), "c": {"d": [2, "x"]}}) == {"a": None, "b": [1.0, None], "c": {"d": [2, "x"]}}
