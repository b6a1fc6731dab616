"""The promotion gate: every rule of ``config.gate`` as one row, judged on the figures of ``evaluate.json``.

A first model, and one that cannot be compared with the champion because their feature specs differ, is held to absolute
limits only. A figure that could not be measured fails its rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from jobs.config import GateConfig

Evaluation = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One judged rule.

    Attributes:
        key: setting that holds the limit, under ``gate``.
        figure: what was measured, in words.
        value: None if it could not be measured.
        low: smallest value that passes, None for no bound; ``high`` alike.
    """

    key: str
    figure: str
    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the value was measured and lies inside the limits (bounds included)."""
        if self.value is None:
            return False
        return (self.low is None or self.value >= self.low) and (self.high is None or self.value <= self.high)

    @property
    def limit(self) -> str:
        """The limit in words, such as ``at least 0.7``."""
        if self.low is not None and self.high is not None:
            return f"{self.low:g} to {self.high:g}"
        return f"at least {self.low:g}" if self.low is not None else f"at most {self.high:g}"

    def as_dict(self) -> dict[str, Any]:
        """Row of the gate table."""
        return asdict(self) | {"limit": self.limit, "passed": self.passed}

    def __str__(self) -> str:
        found = "could not be measured" if self.value is None else f"is {self.value:.4g}"
        return f"{self.figure} {found}, expected {self.limit} (gate.{self.key})"


def judge(limits: GateConfig, evaluation: Evaluation) -> list[Rule]:
    """All rules that apply, in a fixed order.

    Args:
        limits: ``config.gate``.
        evaluation: what ``jobs.evaluate`` kept; with a comparable ``champion`` the comparisons apply too.
    """
    rules = list(_absolute(limits, evaluation))
    if comparable(evaluation):
        rules += _against_champion(limits, evaluation)
    return rules


def comparable(evaluation: Evaluation) -> bool:
    """Whether the champion was scored on the same rows."""
    champion = evaluation.get("champion")
    return champion is not None and "ranking" in champion


def _absolute(limits: GateConfig, evaluation: Evaluation) -> Iterable[Rule]:
    ranking, sid = evaluation["ranking"], evaluation["sid"]
    everything, new = evaluation["retrieval"]["all"], evaluation["retrieval"]["new"]
    yield Rule(key="min_auc", figure="ranking AUC", value=ranking["auc"], low=limits.min_auc)
    low, high = limits.calibration
    yield Rule(key="calibration", figure="calibration (predicted / actual)", value=ranking["calibration"], low=low, high=high)
    yield Rule(
        key="min_recall_over_popularity",
        figure="recall@10 over popularity's",
        value=ratio(everything["dig"]["recall@10"], everything["popularity"]["recall@10"]),
        low=limits.min_recall_over_popularity,
    )
    if new["requests"]:  # nobody bought anything new: there is nothing that either could find
        yield Rule(
            key="min_new_recall_over_popularity",
            figure="recall@10 over popularity's, items new to the user",
            value=ratio(new["dig"]["recall@10"], new["popularity"]["recall@10"]),
            low=limits.min_new_recall_over_popularity,
        )
    yield Rule(key="max_collision_rate", figure="SID collision rate", value=sid["collision_rate"], high=limits.max_collision_rate)
    for number, level in enumerate(sid["levels"], start=1):
        used = level["used"] / level["codes"]
        yield Rule(key="min_codes_used", figure=f"share of codes used, level {number}", value=used, low=limits.min_codes_used)
    yield Rule(key="min_items", figure="items in the catalogue", value=sid["items"], low=limits.min_items)


def _against_champion(limits: GateConfig, evaluation: Evaluation) -> Iterable[Rule]:
    champion, churn = evaluation["champion"], evaluation["churn"]
    yield Rule(
        key="max_auc_loss",
        figure="ranking AUC less the champion's",
        value=difference(evaluation["ranking"]["auc"], champion["ranking"]["auc"]),
        low=-limits.max_auc_loss,
    )
    yield Rule(
        key="max_recall_loss",
        figure="recall@10 over the champion's",
        value=ratio(evaluation["retrieval"]["all"]["dig"]["recall@10"], champion["retrieval"]["all"]["dig"]["recall@10"]),
        low=1 - limits.max_recall_loss,
    )
    if champion["date"] == evaluation["date"]:
        return  # another model of the same date, from other data, settings or code: neither started from the other
    yield Rule(key="max_churn", figure="SID churn against the champion", value=churn["rate"] if churn else None, high=limits.max_churn)


def difference(value: float | None, base: float | None) -> float | None:
    """``value - base``, None if either is unknown."""
    return None if value is None or base is None else value - base


def ratio(value: float | None, base: float | None) -> float | None:
    """``value / base``; None if either is unknown or both are 0, a very large number if only ``base`` is 0."""
    if value is None or base is None or (value == 0 and base == 0):
        return None
    return value / max(base, 1e-12)
