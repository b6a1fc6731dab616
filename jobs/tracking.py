"""MLflow run of a training: found again by its lineage, so that a resumed training goes on in the same run."""

from __future__ import annotations

import time
from datetime import date
from typing import TYPE_CHECKING, Any

from jobs import registry
from jobs.config import Config

if TYPE_CHECKING:
    from mlflow import MlflowClient

FLUSH_SECONDS = 20.0
AT_ONCE = 900  # the store takes at most 1000 metrics a call
DATE, LINEAGE = "dig.date", "dig.lineage"


def run_of(config: Config, lineage: str) -> str | None:
    """Id of the run of a lineage, ``None`` if it was never begun."""
    where = f"tags.`{LINEAGE}` = '{lineage}'"
    found = registry.client(config).search_runs([registry.experiment_id(config)], filter_string=where, max_results=1)
    return str(found[0].info.run_id) if found else None


def new_run(config: Config, day: date, lineage: str, name: str) -> str:
    """Begin the run of a lineage; returns its id."""
    tags = {DATE: day.isoformat(), LINEAGE: lineage}
    return str(registry.client(config).create_run(registry.experiment_id(config), tags=tags, run_name=name).info.run_id)


def churn_figures(alignment: dict[str, Any] | None) -> dict[str, float]:
    """Share of the items of the version aligned with whose SID changed, by first changed level too, and without the alignment."""
    figures = {}
    for name, churn in (("churn", "churn"), ("churn_unaligned", "unaligned")):
        if alignment and alignment[churn]:
            figures[f"train_{name}"] = float(alignment[churn]["rate"])
            shares = enumerate(alignment[churn]["first"], start=1)
            figures |= {f"train_{name}_first_at_level_{level}": float(share) for level, share in shares}
    return figures


class Tracker:
    """Writes metrics in batches.

    Attributes:
        run_id: MLflow run.
    """

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client, self.run_id = client, run_id
        self._waiting: list[tuple[str, float, int]] = []
        self._since = time.monotonic()

    @classmethod
    def open(cls, config: Config, day: date, lineage: str) -> Tracker:
        """The run of this lineage, or a new one.

        Raises:
            JobError: the tracking server cannot be reached.
        """
        client, run_id = registry.client(config), run_of(config, lineage)
        if run_id:
            client.update_run(run_id, status="RUNNING")
        else:
            run_id = new_run(config, day, lineage, f"train-{day}")
        there = client.get_run(run_id).data.params  # not all of them, if the process that began the run was killed
        if "tokenizer" not in there:
            client.log_param(run_id, "tokenizer", config.tokenizer)
        for section in ("model", "train"):
            for key, value in getattr(config, section).model_dump(mode="json").items():
                if f"{section}.{key}" not in there:
                    client.log_param(run_id, f"{section}.{key}", value)
        return cls(client, run_id)

    def log(self, figures: dict[str, float]) -> None:
        """Take in figures of a step (key ``step``); they are sent now and then."""
        step = int(figures["step"])
        self._waiting += [(name, float(value), step) for name, value in figures.items() if name != "step"]
        if time.monotonic() - self._since > FLUSH_SECONDS or len(self._waiting) > AT_ONCE:
            self._flush()

    def close(self, report: dict[str, Any]) -> None:
        """Send what waits and the totals; the run is finished."""
        totals = ("examples", "examples_per_s", "seconds", "wait_share", "peak_rss_bytes")
        self._waiting += [(f"train_{name}", float(report[name]), int(report["steps"])) for name in totals]
        self._waiting += [(name, value, int(report["steps"])) for name, value in churn_figures(report["alignment"]).items()]
        self._flush()
        self._client.set_terminated(self.run_id, status="FINISHED")

    def _flush(self) -> None:
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        for begin in range(0, len(self._waiting), AT_ONCE):
            part = self._waiting[begin : begin + AT_ONCE]
            self._client.log_batch(self.run_id, metrics=[Metric(name, value, now, step) for name, value, step in part])
        self._waiting, self._since = [], time.monotonic()
