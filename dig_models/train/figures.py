"""Ranking figures of a pass over many examples in fixed memory: weighted AUC, log loss, calibration."""

from __future__ import annotations

import torch
from torch import Tensor

from dig_models.train.distributed import World

BINS = 1 << 14
RANGE = 16.0


class ScoreFigures:
    """Sums over scored rows; ranks add theirs up, so the figures are those of all rows.

    Logits fall into ``BINS`` bins over ``[-RANGE, RANGE]``; rows of one bin count as ties, which moves AUC by less than 1e-4
    unless nearly all scores are equal. Log loss and calibration are exact.
    """

    def __init__(self) -> None:
        self._weight = torch.zeros(2, BINS, dtype=torch.float64)  # negatives, positives
        self._sums = torch.zeros(3, dtype=torch.float64)  # weighted loss, weighted prediction, weighted label

    def add(self, logit_R: Tensor, label_R: Tensor, weight_R: Tensor) -> None:
        """Take in rows: logits of the true probability, labels 0 or 1, weights (1 / keep rate)."""
        logit = logit_R.detach().double().cpu()
        label, weight = label_R.double().cpu(), weight_R.double().cpu()
        at = ((logit + RANGE) * (BINS / (2 * RANGE))).long().clamp_(0, BINS - 1)
        for side, own in enumerate((weight * (1 - label), weight * label)):
            self._weight[side] += torch.bincount(at, weights=own, minlength=BINS)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logit, label, weight, reduction="sum")
        self._sums += torch.stack([loss, (weight * logit.sigmoid()).sum(), (weight * label).sum()])

    def result(self, world: World) -> dict[str, float]:
        """``auc``, ``logloss``, ``calibration`` (predicted over actual) over the rows of all ranks; what is undefined is left out."""
        negative, positive = world.total(self._weight)
        loss, predicted, actual = world.total(self._sums).tolist()
        found = {}
        total = float(negative.sum() + positive.sum())
        if total > 0:
            found["logloss"] = loss / total
        if actual > 0:
            found["calibration"] = predicted / actual
        if negative.sum() > 0 and positive.sum() > 0:
            below = negative.cumsum(0) - negative
            found["auc"] = float((positive * (below + negative / 2)).sum() / (positive.sum() * negative.sum()))
        return found
