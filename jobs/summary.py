"""The figures of a run in one file: ``<runs>/<date>/summary.json``, and a copy in ``<runs>/latest``."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from jobs import registry, runs
from jobs.config import Config
from jobs.entry import Invocation, run
from jobs.files import replace_text
from jobs.progress import emit

log = logging.getLogger("jobs.summary")
RETRIEVAL = ("recall@10", "recall@50", "ndcg@10")
BASELINES = ("popularity", "own_frequency")
RANKING = ("auc", "auc_ci", "gauc", "logloss", "calibration")
LEVEL = ("codes", "used", "perplexity")
LATEST = "latest"


def summarise(config: Config, day: date) -> dict[str, Any]:
    """What ``summary.json`` holds; figures that could not be measured are null.

    Raises:
        JobError: a job of the run did not finish: its name is in the message.
    """
    evaluation, train = runs.read(config, day, "evaluate"), runs.read(config, day, "train")
    registered, promoted, index = (runs.read(config, day, name) for name in ("register", "promote", "index"))
    stages = _stages(config, day, train)
    sid, churn = evaluation["sid"], evaluation["churn"]
    return {
        "date": day.isoformat(),
        "dataset": evaluation["dataset"],
        "examples": train["examples"],
        "ranking": {name: evaluation["ranking"][name] for name in RANKING},
        "retrieval": {variant: _retrieval(evaluation["retrieval"][variant]) for variant in ("all", "new")},
        "sid": {
            "collision_rate": sid["collision_rate"],
            "levels": [{name: level[name] for name in LEVEL} for level in sid["levels"]],
            "churn": churn["rate"] if churn else None,
            "churn_first": churn["first"] if churn else None,
            "churn_unaligned": churn["unaligned"]["rate"] if churn and churn["unaligned"] else None,
        },
        "model": {
            "name": registered["name"],
            "version": str(registered["version"]),
            "alias": registry.CHAMPION if promoted["promoted"] else registry.CHALLENGER,
        },
        "index": {name: index["index"][name] for name in ("generation", "items", "path")},
        "seconds": stages["seconds"],
        "peak_rss_bytes": stages["peak_rss_bytes"],
    }


def _retrieval(found: Mapping[str, Any]) -> dict[str, Any]:
    own = {name: found["dig"][name] for name in RETRIEVAL}
    return own | {method: {name: found[method][name] for name in RETRIEVAL} for method in BASELINES}


def _stages(config: Config, day: date, train: Mapping[str, Any]) -> dict[str, Any]:
    """Times and memory that the run recorded; jobs started one by one leave only what training measured of itself."""
    path = runs.run_dir(config, day) / "stages.json"
    if path.is_file():
        recorded: dict[str, Any] = json.loads(path.read_text())
        return recorded
    return {"seconds": {"train": train["seconds"]}, "peak_rss_bytes": train["peak_rss_bytes"]}


def keep_latest(config: Config, day: date, *names: str) -> Path:
    """Copy files of the run to ``<runs>/latest``, each whole or not at all.

    A run of an earlier date than the one that lies there (a backfill) leaves it alone.
    """
    source, target = runs.run_dir(config, day), Path(config.paths.at("runs")) / LATEST
    target.mkdir(parents=True, exist_ok=True)
    there = target / "summary.json"
    if there.is_file():
        last = json.loads(there.read_text())
        if last["dataset"] == config.dataset.name and last["date"] > day.isoformat():
            log.info("%s is of %s, a later date, and stays", target, last["date"])
            return target
    for name in names:
        replace_text(target / name, (source / name).read_text(encoding="utf-8"))
    return target


def main(call: Invocation) -> None:
    """``python -m jobs.summary --date D``."""
    emit("summary", 0, 1)
    path = runs.save(call.config, call.date, "summary", summarise(call.config, call.date))
    keep_latest(call.config, call.date, "summary.json")
    log.info("%s", path)
    emit("summary", 1, 1)


if __name__ == "__main__":
    sys.exit(run("summary", main))
