"""Ranking metrics with sampling weights, exact and vectorised.

Shape suffixes: ``R`` rows (request x item), ``G`` groups (users). A weight is 1 / the keep rate of a row, so that sums
estimate those of the unsampled data. A figure that the data cannot give (one class only, no row) is NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]

CLIP = 1e-7


@dataclass(frozen=True, kw_only=True)
class GroupedAuc:
    """AUC of each group.

    Attributes:
        group_G: the groups, ascending.
        auc_G: NaN for a group with one class only.
        weight_G: summed row weights (impressions) of the group.
    """

    group_G: NDArray[np.int64]
    auc_G: NDArray[np.float64]
    weight_G: NDArray[np.float64]


def auc(score_R: Floats, label_R: Floats | Ints, weight_R: Floats | None = None) -> float:
    """Area under the ROC curve: the weighted share of (positive, negative) pairs in the right order, ties counting half.

    Args:
        score_R: any monotone score.
        label_R: 1 = positive, 0 = negative.
        weight_R: non-negative weights; 1 if missing.

    Returns:
        Value in [0, 1]; NaN if one of the classes has no weight.
    """
    group_R = np.zeros(len(score_R), dtype=np.int64)
    found = auc_by_group(score_R, label_R, group_R, weight_R)
    return float(found.auc_G[0]) if len(found.auc_G) else float("nan")


def auc_by_group(score_R: Floats, label_R: Floats | Ints, group_R: NDArray[np.int64], weight_R: Floats | None = None) -> GroupedAuc:
    """AUC inside each group; see ``auc``."""
    if not len(score_R):
        return GroupedAuc(group_G=np.zeros(0, np.int64), auc_G=np.zeros(0), weight_G=np.zeros(0))
    order = np.lexsort((score_R, group_R))
    score_R, group_R = score_R[order], group_R[order]
    y_R = np.asarray(label_R, dtype=np.float64)[order]
    w_R = np.ones(len(score_R)) if weight_R is None else np.asarray(weight_R, dtype=np.float64)[order]
    new_group = np.concatenate([[True], group_R[1:] != group_R[:-1]])
    tie = np.flatnonzero(new_group | np.concatenate([[True], score_R[1:] != score_R[:-1]]))
    pos_T = np.add.reduceat(w_R * y_R, tie)
    neg_T = np.add.reduceat(w_R * (1 - y_R), tie)
    first = np.flatnonzero(new_group[tie])
    # Negatives below a tie inside its own group: the running sum less what stood there when the group began.
    running_T = np.cumsum(neg_T) - neg_T
    below_T = running_T - np.repeat(running_T[first], np.diff(np.append(first, len(tie))))
    right_G = np.add.reduceat(pos_T * (below_T + neg_T / 2), first)
    pos_G, neg_G = np.add.reduceat(pos_T, first), np.add.reduceat(neg_T, first)
    pairs_G = pos_G * neg_G
    auc_G = np.divide(right_G, pairs_G, out=np.full(len(first), np.nan), where=pairs_G > 0)
    return GroupedAuc(group_G=group_R[new_group].astype(np.int64), auc_G=auc_G, weight_G=pos_G + neg_G)


def gauc(score_R: Floats, label_R: Floats | Ints, user_R: NDArray[np.int64], weight_R: Floats | None = None) -> float:
    """Mean of the users' AUCs, weighted by impressions, over users with both labels (DIN, arXiv 1706.06978, eq. 8).

    Returns:
        Value in [0, 1]; NaN if no user has both labels.
    """
    users = auc_by_group(score_R, label_R, user_R, weight_R)
    both = np.isfinite(users.auc_G)
    if not both.any():
        return float("nan")
    return float(np.average(users.auc_G[both], weights=users.weight_G[both]))


def log_loss(probability_R: Floats, label_R: Floats | Ints, weight_R: Floats | None = None) -> float:
    """Weighted mean of the binary cross-entropy in nats; probabilities are cut to [1e-7, 1 - 1e-7]."""
    if not len(probability_R):
        return float("nan")
    p_R = np.clip(np.asarray(probability_R, dtype=np.float64), CLIP, 1 - CLIP)
    loss_R = -np.where(np.asarray(label_R) > 0, np.log(p_R), np.log1p(-p_R))
    return float(np.average(loss_R, weights=weight_R))


def calibration(probability_R: Floats, label_R: Floats | Ints, weight_R: Floats | None = None) -> float:
    """Predicted over actual positives, both weighted; 1 is calibrated, above 1 is too confident. NaN without positives."""
    weight_R = np.ones(len(probability_R)) if weight_R is None else np.asarray(weight_R, dtype=np.float64)
    actual = float(np.dot(weight_R, np.asarray(label_R, dtype=np.float64)))
    return float(np.dot(weight_R, np.asarray(probability_R, dtype=np.float64))) / actual if actual > 0 else float("nan")


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Calibration curve: bins of equal weight, by rising prediction.

    Attributes:
        predicted_B: weighted mean prediction of each bin.
        actual_B: weighted share of positives.
        weight_B: summed weight.
    """

    predicted_B: NDArray[np.float64]
    actual_B: NDArray[np.float64]
    weight_B: NDArray[np.float64]


def reliability(probability_R: Floats, label_R: Floats | Ints, weight_R: Floats | None = None, bins: int = 10) -> Reliability:
    """Calibration curve over ``bins`` bins of equal weight; bins that a single heavy row swallows are left out."""
    order = np.argsort(probability_R, kind="stable")
    p_R = np.asarray(probability_R, dtype=np.float64)[order]
    y_R = np.asarray(label_R, dtype=np.float64)[order]
    w_R = np.ones(len(p_R)) if weight_R is None else np.asarray(weight_R, dtype=np.float64)[order]
    middle_R = np.cumsum(w_R) - w_R / 2
    total = w_R.sum()
    bin_R = np.minimum((middle_R / total * bins).astype(np.int64), bins - 1) if total > 0 else np.zeros(len(p_R), np.int64)
    weight_B = np.bincount(bin_R, w_R, bins).astype(np.float64)
    there = weight_B > 0
    return Reliability(
        predicted_B=np.bincount(bin_R, w_R * p_R, bins)[there] / weight_B[there],
        actual_B=np.bincount(bin_R, w_R * y_R, bins)[there] / weight_B[there],
        weight_B=weight_B[there],
    )
