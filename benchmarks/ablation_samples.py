"""Figures over seeds, with intervals over users and seeds, from bootstrap samples: of the ablation's runs, and of ``intervals``.

Replicate ``s`` of every run has the same draw of users. On top of it each replicate draws as many seeds as there are, with replacement, and
takes the mean over them: the same seeds for every row and figure, so differences and ratios are paired by user and by seed. An interval so
says how far other users and another training would move a figure; one over users alone would call the luck of the seeds a finding. Three
seeds give ten different draws, which is still too sure of itself: hence ``by_seed`` beside it, and no star where the seeds disagree.

Shape suffixes: ``S`` bootstrap replicates, ``N`` seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dig_models.evaluate import bootstrap

Floats = NDArray[np.float64]
Runs = Sequence[dict[str, Any]]
"""Records of a row, or of a baseline in a row's records: one a seed, the same seeds in the same order for all."""

SEEDS_DRAWN_BY = (2017, 18)
"""Entropy of the draws of seeds: another stream than that of any draw of users."""


@dataclass(frozen=True)
class Series:
    """A figure of every seed ``(N,)`` and its bootstrap samples ``(N, S)``."""

    value_N: Floats
    sample_NS: Floats

    @classmethod
    def of(cls, runs: Runs, figure: str) -> Series:
        """A figure of some runs that all have it; a sample that is null is NaN."""
        values = np.array([run["figures"][figure] for run in runs], dtype=np.float64)
        return cls(values, np.array([run["samples"][figure] for run in runs], dtype=np.float64))

    def __sub__(self, other: Series) -> Series:
        """Differences, paired by seed and user; a method without chance is one seed, and the same beside every seed of the other."""
        return Series(self.value_N - other.value_N, self.sample_NS - other.sample_NS)

    def told(self, confidence: float) -> dict[str, Any]:
        """``mean`` over seeds, its ``ci``, ``by_seed`` and their standard deviation ``spread`` (null for one seed)."""
        return {
            "mean": float(self.value_N.mean()),
            "ci": limits(resampled(self.sample_NS), confidence),
            "spread": float(np.std(self.value_N, ddof=1)) if len(self.value_N) > 1 else None,
            "by_seed": self.value_N.tolist(),
        }


def ratio(one: Series, other: Series, confidence: float) -> dict[str, Any]:
    """Mean of one over mean of another (null if that is 0), its ``ci``, and the ratio of each seed."""
    top_S, bottom_S = resampled(one.sample_NS), resampled(other.sample_NS)
    ratio_S = np.divide(top_S, bottom_S, out=np.full(len(top_S), np.nan), where=bottom_S > 0)
    each = [float(a / b) if b > 0 else None for a, b in zip(one.value_N, other.value_N, strict=True)]
    bottom = float(other.value_N.mean())
    return {"mean": float(one.value_N.mean()) / bottom if bottom > 0 else None, "ci": limits(ratio_S, confidence), "by_seed": each}


def resampled(sample_NS: Floats) -> Floats:
    """Mean over seeds drawn with replacement in each replicate, ``(N, S) -> (S,)``; the draws depend on the shape alone."""
    seeds, samples = sample_NS.shape
    drawn_SN = np.random.default_rng(SEEDS_DRAWN_BY).integers(seeds, size=(samples, seeds))
    mean_S: Floats = sample_NS[drawn_SN, np.arange(samples)[:, None]].mean(axis=1)
    return mean_S


def limits(sample_S: Floats, confidence: float) -> list[float | None]:
    """Percentile interval; null where there is none."""
    return [value if np.isfinite(value) else None for value in bootstrap.interval(sample_S, confidence)]


def stands_out(difference: dict[str, Any]) -> bool:
    """Whether a difference deserves a star: its interval excludes 0, and at least two seeds, all of them, have it with one sign."""
    low, high = difference["ci"]
    signs = {np.sign(value) for value in difference["by_seed"]}
    return low is not None and (low > 0 or high < 0) and len(difference["by_seed"]) > 1 and len(signs) == 1
