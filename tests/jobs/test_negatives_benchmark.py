"""The pieces of the benchmark of zero crosses, against slow readings."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks import negatives
from dig_models.features import FeatureSpec, FieldSpec
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


def test_the_plot_shows_every_teacher() -> None:
    levels = {"exact": [0.5, 0.6], **{name: [0.6, 0.7] for name in negatives.TEACHERS}}
    of = {"retrieval_path": levels, "ranking_path": {"open": 0.8}}
    figure = negatives.plot({"keys": {"item": of, negatives.ANY: of}})
    assert [len(axes.lines) for axes in figure.axes] == [len(levels) + 1] * 2


def test_what_could_not_be_measured_is_null() -> None:
    assert finite({"a": float("nan"), "b": (1.0, math.inf), "c": {"d": [2, "x"]}}) == {"a": None, "b": [1.0, None], "c": {"d": [2, "x"]}}
