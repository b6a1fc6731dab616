"""Bootstrap over users: every replicate draws users with replacement, and all of a user's rows come along.

One set of draws serves every figure, so that differences are paired. Shape suffixes: ``S`` replicates, ``U`` users,
``R`` rows, ``Q`` requests.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Index = NDArray[np.int64]


def draws(users: int, samples: int, seed: int) -> NDArray[np.float64]:
    """How often each replicate draws each user, ``(S, U)``; every row sums to ``users``."""
    if users < 1:
        raise ValueError(f"bootstrap over {users} users: at least one is needed")
    rng = np.random.default_rng(seed)
    return rng.multinomial(users, np.full(users, 1 / users), size=samples).astype(np.float64)


def auc_samples(
    score_R: NDArray[np.floating], label_R: NDArray[np.floating], weight_R: NDArray[np.floating], user_R: Index, draw_SU: Floats
) -> Floats:
    """Weighted AUC of each replicate, ``(S,)``; NaN where a replicate holds one class only.

    Args:
        score_R: scores, as for ``ranking.auc``.
        label_R: 1 = positive.
        weight_R: sampling weights.
        user_R: index of the row's user into ``draw_SU``.
        draw_SU: from ``draws``.
    """
    order = np.argsort(score_R, kind="stable")
    score_R, user_R = score_R[order], user_R[order]
    label_R = np.asarray(label_R, dtype=np.float64)[order]
    pos_R, neg_R = np.asarray(weight_R, np.float64)[order] * label_R, np.asarray(weight_R, np.float64)[order] * (1 - label_R)
    tie = np.flatnonzero(np.concatenate([[True], score_R[1:] != score_R[:-1]]))
    out_S = np.full(len(draw_SU), np.nan)
    for s, draw_U in enumerate(draw_SU):
        times_R = draw_U[user_R]
        pos_T, neg_T = np.add.reduceat(pos_R * times_R, tie), np.add.reduceat(neg_R * times_R, tie)
        pairs = pos_T.sum() * neg_T.sum()
        if pairs > 0:
            out_S[s] = np.dot(pos_T, np.cumsum(neg_T) - neg_T / 2) / pairs
    return out_S


def mean_samples(value_Q: NDArray[np.floating], user_Q: Index, draw_SU: Floats) -> Floats:
    """Mean over requests of each replicate, ``(S,)``; requests with NaN are left out, as in the figure itself."""
    there = np.isfinite(value_Q)
    users = draw_SU.shape[1]
    sum_U = np.bincount(user_Q[there], value_Q[there], users)
    count_U = np.bincount(user_Q[there], minlength=users).astype(np.float64)
    requests_S = draw_SU @ count_U
    out_S = np.full(len(draw_SU), np.nan)
    return np.asarray(np.divide(draw_SU @ sum_U, requests_S, out=out_S, where=requests_S > 0))


def interval(sample_S: Floats, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the finite replicates; (NaN, NaN) if there is none."""
    finite = sample_S[np.isfinite(sample_S)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
