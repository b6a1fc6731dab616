"""Rankers and lists of several seeds beside each other: means over seeds, with intervals over users and seeds as the ablation has them.

``ablation_samples`` says what an interval covers and how it is drawn. With the same draws of users, which ``Judged.draws`` and
``Draws.over`` give for the same requests, a difference has here the interval that the ablation gives it.

Shape suffixes: ``R`` exposed rows, ``Q`` requests, ``S`` bootstrap replicates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.ablation_samples import Series
from benchmarks.judging import Floats, Judged
from dig_models.evaluate import bootstrap, ranking
from dig_models.evaluate.scoring import Rows
from jobs.evaluate import Draws


@dataclass(frozen=True)
class Judge:
    """What scores of some rows are worth.

    Attributes:
        rows: the exposed rows.
        draws: over the users of their requests; one set for all methods, so that differences are paired.
    """

    rows: Rows
    draws: Draws

    def auc(self, scores: Sequence[Floats]) -> Series:
        """AUC of the scores ``(R,)`` of each seed."""
        rows, user_R = self.rows, self.draws.of(self.rows.user_R)
        values = [ranking.auc(score_R, rows.label_R, rows.weight_R) for score_R in scores]
        samples = [bootstrap.auc_samples(score_R, rows.label_R, rows.weight_R, user_R, self.draws.draw_SU) for score_R in scores]
        return Series(np.array(values), np.array(samples))

    def gauc(self, scores: Sequence[Floats]) -> dict[str, Any]:
        """GAUC: its mean over seeds, and each seed's."""
        rows = self.rows
        values = [ranking.gauc(score_R, rows.label_R, rows.user_R, rows.weight_R) for score_R in scores]
        return {"gauc": float(np.mean(values)), "gauc_by_seed": values}


def listed(judged: Judged, values: Sequence[Floats]) -> Series:
    """The mean over requests of each seed's values ``(Q,)``, as ``Judged.values`` has them."""
    return Series(np.array([judged.mean(value_Q) for value_Q in values]), np.array([judged.samples(value_Q) for value_Q in values]))


def auc_told(series: Series, confidence: float) -> dict[str, Any]:
    """``Series.told`` of an AUC or a difference of AUCs, beside other figures: ``auc``, ``auc_ci``, ``auc_spread`` and ``auc_by_seed``."""
    told = series.told(confidence)
    return {"auc": told.pop("mean"), **{f"auc_{name}": value for name, value in told.items()}}


def between(ci: Sequence[float | None]) -> str:
    """An interval for people, with signs; ``-`` where there is no end."""
    return "[" + ", ".join("-" if end is None else f"{end:+.4f}" for end in ci) + "]"
