"""The promotion gate: every rule of ``config.gate`` as one row, judged on the figures of ``evaluate.json``.

A first model, and one that cannot be compared with the champion because their feature specs differ, is held to absolute
limits only. A figure that could not be measured fails its rule. ``python -m jobs.gate --date D`` judges the challenger of D and moves
nothing: the verdict is a tag of the version and ``gate.json``; index and promotion follow it.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

from jobs import registry, runs
from jobs.config import Config, GateConfig
from jobs.entry import Invocation, JobError, run
from jobs.progress import emit
from jobs.registry import ModelRef

log = logging.getLogger("jobs.gate")

Evaluation = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One judged rule.

    Attributes:
        key: setting that holds the limit, under ``gate``.
        figure: what was measured, in words.
        value: None if it could not be measured.
        low: smallest value that passes, None for no bound; ``high`` alike.
        detail: more numbers, in words, for whoever reads a refusal.
    """

    key: str
    figure: str
    value: float | None
    low: float | None = None
    high: float | None = None
    detail: str = ""

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
        more = f": {self.detail}" if self.detail else ""
        return f"{self.figure} {found}, expected {self.limit} (gate.{self.key}){more}"


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
    yield Rule(
        key="max_churn",
        figure="SID churn against the champion",
        value=churn["rate"] if churn else None,
        high=limits.max_churn,
        detail=_moved(churn) if churn else "no item is known to both, or their SIDs differ in length",
    )


def _moved(churn: Mapping[str, Any]) -> str:
    """Churn in numbers of items."""
    items = churn["items"]
    levels = ", ".join(f"{round(share * items):,} first at level {level}" for level, share in enumerate(churn["first"], start=1))
    return f"{round(churn['rate'] * items):,} of {items:,} items have another SID, {levels}"


def difference(value: float | None, base: float | None) -> float | None:
    """``value - base``, None if either is unknown."""
    return None if value is None or base is None else value - base


def ratio(value: float | None, base: float | None) -> float | None:
    """``value / base``; None if either is unknown or both are 0, a very large number if only ``base`` is 0."""
    if value is None or base is None or (value == 0 and base == 0):
        return None
    return value / max(base, 1e-12)


def verdict(config: Config, day: date, *, allow_older: bool = False) -> dict[str, Any]:
    """Judge the challenger of ``day``; no alias moves.

    Args:
        config: settings in force; ``config.gate`` holds the limits.
        day: logical date of the run.
        allow_older: judge although the champion is of a later date (a deliberate step back).

    Returns:
        What ``gate.json`` holds.

    Raises:
        JobError: a rule failed, the champion is of a later date, or the evaluation belongs to another model.
    """
    challenger = registry.get(config, runs.read(config, day, "register")["version"])
    evaluation = runs.read(config, day, "evaluate")
    champion = registry.find(config, registry.CHAMPION)
    rules = judge(config.gate, evaluation)
    record: dict[str, Any] = {
        "date": day.isoformat(),
        "name": challenger.name,
        "version": challenger.version,
        "champion": champion.version if champion else None,
        "compared": comparable(evaluation),
        "rules": [rule.as_dict() for rule in rules],
    }
    if champion and champion.version == challenger.version:
        return _keep(config, day, record, challenger, "champion", f"version {challenger.version} is champion already")
    refusal = _refusal(challenger, champion, evaluation, rules, allow_older)
    if refusal:
        _keep(config, day, record, challenger, registry.REFUSED, refusal)
        raise JobError(refusal)
    against = f"against champion version {champion.version}" if champion else "there is no champion to compare with"
    return _keep(config, day, record, challenger, registry.PASSED, f"version {challenger.version} passes the gate, {against}")


def _refusal(challenger: ModelRef, champion: ModelRef | None, evaluation: Evaluation, rules: list[Rule], allow_older: bool) -> str:
    """Why the challenger must not follow the champion; empty if it may."""
    day = challenger.date
    if evaluation["lineage"] != challenger.lineage:
        return (
            f"evaluate.json of {day} judges lineage {evaluation['lineage'][:12]}, version {challenger.version} has "
            f"{challenger.lineage[:12]}: run python -m jobs.evaluate --date {day} and python -m jobs.register --date {day} again"
        )
    judged = (evaluation.get("champion") or {}).get("version")
    if champion and judged != champion.version:
        return (
            f"the champion is version {champion.version}, evaluate.json of {day} compares with "
            f"{f'version {judged}' if judged else 'none'}: run python -m jobs.evaluate --date {day} again"
        )
    if champion and champion.date > day and not allow_older:
        return (
            f"version {challenger.version} is of {day}, the champion (version {champion.version}) of {champion.date}: "
            "a run of an earlier date does not replace a later champion; pass --allow-older to step back on purpose"
        )
    failed = [str(rule) for rule in rules if not rule.passed]
    if failed:
        kept = f"version {champion.version} stays champion" if champion else "there is still no champion"
        return f"version {challenger.version} does not pass the gate, {kept}: " + "; ".join(failed)
    return ""


def _keep(config: Config, day: date, record: dict[str, Any], challenger: ModelRef, outcome: str, message: str) -> dict[str, Any]:
    record |= {"outcome": outcome, "passed": outcome != registry.REFUSED, "message": message}
    tag = registry.PASSED if record["passed"] else registry.REFUSED
    if challenger.tags.get(registry.GATE) != tag:
        registry.tag(config, challenger.version, registry.GATE, tag)
    runs.save(config, day, "gate", record)
    log.info("%s", message)
    return record


def main(call: Invocation) -> None:
    """``python -m jobs.gate --date D [--allow-older]``."""
    emit("gate", 0, 1)
    verdict(call.config, call.date, allow_older=call.options.allow_older)
    emit("gate", 1, 1)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--allow-older", action="store_true", help="let a model of an earlier date follow a later champion")


if __name__ == "__main__":
    sys.exit(run("gate", main, options=_options))
