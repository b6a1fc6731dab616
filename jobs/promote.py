"""Move the alias champion to the challenger if it passes the gate; otherwise say why, and move nothing.

The old champion becomes ``previous``. Whatever the outcome, ``promote.json`` keeps every rule with figure and limit.
"""

from __future__ import annotations

import argparse
import logging
import sys
from datetime import date
from typing import Any

from jobs import gate, registry, runs
from jobs.config import Config
from jobs.entry import Invocation, JobError, run
from jobs.progress import emit
from jobs.registry import ModelRef

log = logging.getLogger("jobs.promote")


def promote(config: Config, day: date, *, allow_older: bool = False) -> dict[str, Any]:
    """Judge the challenger of ``day`` and move the aliases.

    Args:
        config: settings in force; ``config.gate`` holds the limits.
        day: logical date of the run.
        allow_older: let a model of an earlier date replace a later champion (a deliberate step back).

    Returns:
        What ``promote.json`` holds.

    Raises:
        JobError: a rule failed, the champion is of a later date, or the evaluation belongs to another model; no alias was moved.
    """
    challenger = registry.get(config, runs.read(config, day, "register")["version"])
    evaluation = runs.read(config, day, "evaluate")
    champion = registry.find(config, registry.CHAMPION)
    rules = gate.judge(config.gate, evaluation)
    record: dict[str, Any] = {
        "date": day.isoformat(),
        "name": challenger.name,
        "version": challenger.version,
        "champion_before": champion.version if champion else None,
        "compared": gate.comparable(evaluation),
        "rules": [rule.as_dict() for rule in rules],
    }
    if champion and champion.version == challenger.version:
        _tag(config, challenger, day)
        return _keep(config, day, record, "champion", f"version {challenger.version} is champion already")
    refusal = _refusal(challenger, champion, evaluation, rules, allow_older)
    if refusal:
        _keep(config, day, record, "refused", refusal)
        raise JobError(refusal)
    if champion and champion.date > day:
        _withdraw_after(config, day)  # before the alias moves: a retry that finds it moved would not come here again
    if champion:
        registry.set_alias(config, registry.PREVIOUS, champion.version)
    registry.set_alias(config, registry.CHAMPION, challenger.version)
    _tag(config, challenger, day)
    said = f"version {challenger.version} is champion, {f'version {champion.version} is previous' if champion else 'the first one'}"
    return _keep(config, day, record, "promoted", said)


def _tag(config: Config, ref: ModelRef, day: date) -> None:
    """Date of promotion, and no longer withdrawn; also after a retry that finds the alias moved but the tags not."""
    if ref.tags.get(registry.PROMOTED_ON) is None:
        registry.tag(config, ref.version, registry.PROMOTED_ON, day.isoformat())
    if registry.WITHDRAWN in ref.tags:
        registry.untag(config, ref.version, registry.WITHDRAWN)


def _withdraw_after(config: Config, day: date) -> None:
    """Tag all versions promoted for later dates, so that no training starts from what was stepped back from."""
    for ref in registry.versions(config):
        if registry.PROMOTED_ON in ref.tags and date.fromisoformat(ref.tags[registry.PROMOTED_ON]) > day:
            registry.tag(config, ref.version, registry.WITHDRAWN, day.isoformat())


def _refusal(
    challenger: ModelRef, champion: ModelRef | None, evaluation: gate.Evaluation, rules: list[gate.Rule], allow_older: bool
) -> str:
    """Why nothing may move; empty if it may."""
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


def _keep(config: Config, day: date, record: dict[str, Any], outcome: str, message: str) -> dict[str, Any]:
    record |= {"outcome": outcome, "promoted": outcome != "refused", "message": message}
    runs.save(config, day, "promote", record)
    log.info("%s", message)
    return record


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--allow-older", action="store_true", help="let a model of an earlier date replace a later champion")


def main(call: Invocation) -> None:
    """``python -m jobs.promote --date D [--allow-older]``."""
    emit("promote", 0, 1)
    promote(call.config, call.date, allow_older=call.options.allow_older)
    emit("promote", 1, 1)


if __name__ == "__main__":
    sys.exit(run("promote", main, options=_options))
