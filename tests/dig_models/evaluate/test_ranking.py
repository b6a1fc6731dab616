from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score

from dig_models.evaluate import ranking


def slow_auc(score, label, weight):
    """Every (positive, negative) pair by hand."""
    right = total = 0.0
    for i, j in product(np.flatnonzero(label == 1), np.flatnonzero(label == 0)):
        pair = weight[i] * weight[j]
        total += pair
        right += pair * (1.0 if score[i] > score[j] else 0.5 if score[i] == score[j] else 0.0)
    return right / total if total else float("nan")


def rows(seed, n=60, users=6):
    rng = np.random.default_rng(seed)
    return (
        rng.integers(0, 7, n) / 7,  # few distinct scores: many ties
        rng.integers(0, 2, n),
        rng.choice([1.0, 14.3], n),
        rng.integers(0, users, n),
    )


@given(st.integers(0, 10_000))
def test_auc_agrees_with_every_pair_counted_by_hand(seed):
    score, label, weight, _ = rows(seed)
    np.testing.assert_allclose(ranking.auc(score, label, weight), slow_auc(score, label, weight), atol=1e-12)


def test_auc_agrees_with_scikit_learn_with_weights_and_ties():
    score, label, weight, _ = rows(1, n=5000)
    assert ranking.auc(score, label, weight) == pytest.approx(roc_auc_score(label, score, sample_weight=weight), abs=1e-12)


def test_a_weight_of_two_is_the_row_twice():
    score, label, _, _ = rows(2)
    twice = np.arange(len(score)) % 3 == 0
    again = np.concatenate([score, score[twice]]), np.concatenate([label, label[twice]])
    assert ranking.auc(score, label, 1.0 + twice) == pytest.approx(ranking.auc(*again), abs=1e-12)


def test_known_values():
    assert ranking.auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1])) == pytest.approx(0.75)
    assert ranking.auc(np.array([0.5, 0.5]), np.array([0, 1])) == 0.5
    assert ranking.log_loss(np.array([0.9, 0.1]), np.array([1, 0])) == pytest.approx(-np.log(0.9))
    assert ranking.calibration(np.array([0.5, 0.5]), np.array([1, 0])) == 1.0


def test_one_class_only_gives_nan_not_an_error():
    assert np.isnan(ranking.auc(np.array([0.1, 0.2]), np.array([0, 0])))
    assert np.isnan(ranking.auc(np.zeros(0), np.zeros(0)))
    assert np.isnan(ranking.gauc(np.array([0.1, 0.2]), np.array([0, 0]), np.array([1, 1])))
    assert np.isnan(ranking.calibration(np.array([0.1, 0.2]), np.array([0, 0])))
    assert np.isnan(ranking.log_loss(np.zeros(0), np.zeros(0)))


@given(st.integers(0, 10_000))
def test_gauc_is_the_impression_weighted_mean_over_users_with_both_labels(seed):
    score, label, weight, user = rows(seed)
    aucs, impressions = [], []
    for u in np.unique(user):
        of = user == u
        value = slow_auc(score[of], label[of], weight[of])
        if not np.isnan(value):
            aucs.append(value)
            impressions.append(weight[of].sum())
    np.testing.assert_allclose(ranking.gauc(score, label, user, weight), np.average(aucs, weights=impressions), atol=1e-12)


def test_log_loss_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    p, y, w = rng.random(500), rng.integers(0, 2, 500), rng.choice([1.0, 14.3], 500)
    assert ranking.log_loss(p, y, w) == pytest.approx(sklearn_log_loss(y, p, sample_weight=w), abs=1e-12)
    assert np.isfinite(ranking.log_loss(np.array([0.0, 1.0]), np.array([1, 0])))


def test_calibration_undoes_negative_sampling():
    rng = np.random.default_rng(3)
    p = rng.random(200_000) * 0.2
    y = (rng.random(len(p)) < p).astype(int)
    kept = (y == 1) | (rng.random(len(p)) < 0.1)
    weight = np.where(y == 1, 1.0, 10.0)[kept]
    assert ranking.calibration(p[kept], y[kept], weight) == pytest.approx(1.0, abs=0.03)
    assert ranking.calibration(p[kept], y[kept]) < 0.5  # without the weights it is far off


def test_reliability_bins_hold_equal_weight_and_follow_a_calibrated_model():
    rng = np.random.default_rng(4)
    p = rng.random(100_000)
    y = rng.random(len(p)) < p
    curve = ranking.reliability(p, y, np.ones(len(p)), bins=10)
    np.testing.assert_allclose(curve.weight_B, 10_000)
    np.testing.assert_allclose(curve.actual_B, curve.predicted_B, atol=0.02)
    assert np.all(np.diff(curve.predicted_B) > 0)
