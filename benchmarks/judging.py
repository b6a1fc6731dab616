"""What the comparisons of models share: trainings in homes of their own, the date to judge on, and figures from one set of draws."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dig_models.bundle import Bundle, load_bundle
from dig_models.evaluate import bootstrap, ranking
from dig_models.evaluate.scoring import Rows
from jobs.config import Config, ConfigError

RESULTS = Path(__file__).parent / "results"
Floats = NDArray[np.float64]


def judged_date(config: Config, asked: date | None, *, acceptance: bool) -> date:
    """The date to compare on: the one asked for, else the data set's default.

    Raises:
        ConfigError: it is judged on days of the acceptance period, and that was not asked for.
    """
    day = asked or config.dataset.default_date
    if config.in_acceptance(day) and not acceptance:
        raise ConfigError(
            f"date {day}: its evaluation days reach into the acceptance period, which starts on {config.dataset.acceptance_from} and is "
            "reported, never tuned on; take an earlier date, or add --acceptance for the final report"
        )
    return day


def changes_of(config: Config, home: Path, seed: int, changes: Mapping[str, object]) -> list[str]:
    """Settings of a training in a home of its own on the common lake, as ``KEY=VALUE``; none starts from an older model."""
    own = {"paths.home": home, "paths.lake": config.paths.at("lake"), "train.seed": seed, "train.warm_start": "false", **changes}
    return [f"{key}={value}" for key, value in own.items()]


def trained(day: date, home: Path, settings: Path | None, sets: Sequence[str], log: Path | None = None) -> Bundle:
    """Bundle of a training under torchrun (done at once if it is there with the same lineage).

    Args:
        day: its date.
        home: ``paths.home`` as in ``sets``.
        settings: settings file to hand on.
        sets: all overrides.
        log: file for what the training says; None leaves it on the terminal.

    Raises:
        CalledProcessError: the training failed.
    """
    command = [sys.executable, "-m", "jobs.launch", "--date", day.isoformat()]
    command += ["--config", str(settings)] if settings else []
    command += [part for one in sets for part in ("--set", one)]
    environment = {k: v for k, v in os.environ.items() if k != "DIG_PROGRESS"}
    if log is None:
        subprocess.run(command, check=True, env=environment)
    else:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w", encoding="utf-8") as out:
            subprocess.run(command, check=True, env=environment, stdout=out, stderr=subprocess.STDOUT)
    return load_bundle(home / "checkpoints" / day.isoformat() / "bundle")


class Judge:
    """AUC with intervals on one set of rows, from one set of bootstrap draws."""

    def __init__(self, config: Config, rows: Rows) -> None:
        self.rows, self.confidence = rows, config.evaluate.confidence
        users, self.user_R = np.unique(rows.user_R, return_inverse=True)
        self.draw_SU = bootstrap.draws(len(users), config.evaluate.bootstrap, config.train.seed)

    def samples(self, score_R: Floats) -> Floats:
        """AUC of every replicate."""
        return bootstrap.auc_samples(score_R, self.rows.label_R, self.rows.weight_R, self.user_R.astype(np.int64), self.draw_SU)

    def auc(self, score_R: Floats) -> float:
        """AUC of all rows."""
        return ranking.auc(score_R, self.rows.label_R, self.rows.weight_R)

    def method(self, scores: Sequence[Floats]) -> dict[str, Any]:
        """Figures of a method, averaged over seeds."""
        rows, values = self.rows, [self.auc(score) for score in scores]
        return {
            "auc": float(np.mean(values)),
            "auc_by_seed": values,
            "auc_ci": bootstrap.interval(np.mean([self.samples(s) for s in scores], axis=0), self.confidence),
            "gauc": float(np.mean([ranking.gauc(s, rows.label_R, rows.user_R, rows.weight_R) for s in scores])),
        }

    def difference(self, one: Sequence[Floats], other: Sequence[Floats]) -> dict[str, Any]:
        """AUC of one method less another's, paired over users, averaged over seeds."""
        gaps = [float(np.mean([self.auc(s) for s in scores])) for scores in (one, other)]
        samples = [np.mean([self.samples(s) for s in scores], axis=0) for scores in (one, other)]
        return {"auc": gaps[0] - gaps[1], "auc_ci": bootstrap.interval(samples[0] - samples[1], self.confidence)}
