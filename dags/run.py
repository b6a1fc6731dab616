"""The embedded run: the DAGs for one date in this process, on SQLite, with no server.

``python -m dags.run --date D`` runs ``dig_features`` and then follows the asset links, as a scheduler would: a DAG runs only if the
assets it waits for were emitted for D by tasks of this very run. What Airflow and the jobs print goes to ``<runs>/<D>/logs/``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from datetime import date, datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any

from jobs.config import CONF_DIR, Config, ConfigError, load
from jobs.processes import PeakMemory, stop, tree
from jobs.progress import emit
from jobs.runs import run_dir, write_json

DAGS = Path(__file__).resolve().parent
AIRFLOW = "airflow"  # stage and log of what is spent in Airflow itself
INTERRUPTED = 130


class RunFailed(Exception):
    """A task or a DAG failed; the message names it, the reason and the log."""


def set_environment(config: Config, day: date, place: Path, sets: Sequence[str]) -> None:
    """Lay out Airflow, and hand the settings to the jobs; only before Airflow is imported does this have an effect.

    Args:
        place: the settings file.
        sets: ``key=value`` overrides, which become ``DIG_…`` variables.
    """
    home = Path(config.paths.home).resolve() / "airflow"
    home.mkdir(parents=True, exist_ok=True)
    logs = run_dir(config, day) / "logs"
    logs.mkdir(exist_ok=True)
    os.environ |= {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(logs / AIRFLOW),
        "DIG_CONFIG": str(place.resolve()),
    }
    os.environ.setdefault("DIG_PROGRESS", str(run_dir(config, day) / "progress.jsonl"))
    spark = {"conn_type": "spark", "host": config.spark.master}
    os.environ.setdefault(f"AIRFLOW_CONN_{config.spark.connection_id.upper()}", json.dumps(spark))
    for item in sets:
        key, _, value = item.partition("=")
        os.environ[f"DIG_{key.strip().replace('.', '__').upper()}"] = value
    # spark-submit is found by name, and starts the first python3 that it finds.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    os.environ["PYTHONPATH"] = os.pathsep.join([str(DAGS.parent), *filter(None, [os.environ.get("PYTHONPATH")])])


class Output:
    """Sends what this process and its children print to one log file at a time."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self._opened: set[Path] = set()

    def path(self, name: str) -> Path:
        """Log file of a task."""
        return self.logs / f"{name}.log"

    def to(self, name: str) -> None:
        """From now on stdout and stderr are ``<logs>/<name>.log``, begun anew in each run."""
        path = self.path(name)
        sys.stdout.flush()
        sys.stderr.flush()
        fresh = 0 if path in self._opened else os.O_TRUNC
        self._opened.add(path)
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | fresh, 0o644)
        os.dup2(target, 1)
        os.dup2(target, 2)
        os.close(target)


class Recorder:
    """Airflow listener: what ran, how long, why it failed; keeps ``stages.json`` and the progress events up to date."""

    def __init__(self, folder: Path, output: Output, memory: PeakMemory) -> None:
        self.folder = folder
        self.output = output
        self.memory = memory
        self.seconds: dict[str, float] = {}
        self.failed: dict[str, str] = {}
        self._begun = self._since = time.monotonic()

    def start(self, task_id: str) -> None:
        """A task starts."""
        emit(task_id, 0, 1, event="start")
        self.output.to(task_id)
        self._since = time.monotonic()

    def end(self, task_id: str, event: str, **figures: str) -> None:
        """A task has ended; ``event`` is ``finish``, ``skip`` or ``fail``."""
        self.output.to(AIRFLOW)
        self.seconds[task_id] = round(time.monotonic() - self._since, 3)
        self.save()
        emit(task_id, 1, 1, event=event, seconds=self.seconds[task_id], **figures)

    def save(self) -> None:
        """Write ``stages.json``: seconds of each stage, of Airflow itself, and the memory peak of the process tree."""
        spent = sum(self.seconds.values())
        seconds = {**self.seconds, AIRFLOW: round(time.monotonic() - self._begun - spent, 3)}
        write_json(self.folder / "stages.json", {"seconds": seconds, "peak_rss_bytes": self.memory.bytes})

    def listener(self) -> Any:
        """The object that Airflow calls."""
        from airflow.listeners import hookimpl

        recorder = self

        class Listener:
            @hookimpl
            def on_task_instance_running(self, task_instance: Any) -> None:
                recorder.start(task_instance.task_id)

            @hookimpl
            def on_task_instance_success(self, task_instance: Any) -> None:
                recorder.end(task_instance.task_id, "finish")

            @hookimpl
            def on_task_instance_skipped(self, task_instance: Any) -> None:
                recorder.end(task_instance.task_id, "skip")

            @hookimpl
            def on_task_instance_failed(self, task_instance: Any, error: Any) -> None:
                task_id = task_instance.task_id
                log = recorder.output.path(task_id)
                sys.stdout.flush()
                sys.stderr.flush()
                recorder.failed[task_id] = reason_of(log) or str(error)
                recorder.end(task_id, "fail", reason=recorder.failed[task_id], log=str(log))

        return Listener()


# Airflow's own prefix, 2026-11-22T02:29:19.284872Z [info     ], and suffix, [logger] loc=file.py:12
_PREFIX = re.compile(r"^\d{4}-\d\d-\d\dT\S+ \[(\w+)\s*\] ")
_SUFFIX = re.compile(r"\s+(\[[\w.]+\])?( loc=\S+:\d+)?\s*$")
_REPORTED = re.compile(r"^\d{4}-\d\d-\d\d [\d:,]+ ERROR \S+: (.*)")
_RAISED = re.compile(r"^(?:\[rank\d+\]: ?)?[\w.]*(?:Error|Exception|Interrupt|Mismatch|Partition)\b.*")


def reason_of(log: Path) -> str:
    """Why a task failed: the last error a job reported, else the last exception in its log; empty if there is neither."""
    reported = raised = ""
    for line in log.read_text(errors="replace").splitlines() if log.is_file() else []:
        prefix = _PREFIX.match(line)
        if not prefix or prefix[1] != "info":
            continue
        said = _SUFFIX.sub("", line[prefix.end() :]).strip()
        if found := _REPORTED.match(said):
            reported = found[1]
        elif _RAISED.match(said):
            raised = said
    return reported or raised


def load_dags() -> dict[str, Any]:
    """The DAGs of this folder by id.

    Raises:
        RunFailed: one of them cannot be imported.
    """
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(DAGS)
    if bag.import_errors:
        raise RunFailed("; ".join(f"{file}: {error.strip().splitlines()[-1]}" for file, error in bag.import_errors.items()))
    return dict(bag.dags)


def awaited(dag: Any) -> set[str]:
    """URIs of the assets that set a DAG off; empty for one that runs by the clock."""
    condition = getattr(dag.timetable, "asset_condition", None)
    if condition is None:
        return set()
    return {asset.uri for asset in getattr(condition, "objects", [condition])}


def in_order(dags: dict[str, Any]) -> list[Any]:
    """The DAGs so that each comes after those whose assets it waits for, starting with those that run by the clock."""
    left, order, made = dict(dags), [], set()
    while ready := [dag for dag in left.values() if awaited(dag) <= made]:
        for dag in sorted(ready, key=lambda d: str(d.dag_id)):
            order.append(left.pop(dag.dag_id))
            made |= {asset.uri for task in dag.tasks for asset in task.outlets}
    return order


def run_dag(dag: Any, day: date, conf: dict[str, Any]) -> set[str]:
    """Run one DAG for a date.

    Returns:
        URIs of the assets that its tasks emitted for that date.

    Raises:
        RunFailed: it did not succeed.
    """
    from airflow.models.asset import AssetEvent, AssetModel
    from airflow.utils.session import create_session
    from sqlalchemy import func, select

    for task in dag.tasks:
        task.retries = 0  # whoever watches a run wants to hear of a failure now
    with create_session() as session:
        last = session.scalar(select(func.max(AssetEvent.id))) or 0
    run = dag.test(logical_date=datetime(day.year, day.month, day.day, tzinfo=timezone.utc), run_conf=conf)
    if str(getattr(run.state, "value", run.state)) != "success":
        raise RunFailed(f"{dag.dag_id} ended as {run.state}")
    with create_session() as session:
        emitted = (
            select(AssetModel.uri)
            .join(AssetEvent, AssetEvent.asset_id == AssetModel.id)
            .where(AssetEvent.id > last, AssetEvent.source_run_id == run.run_id, AssetEvent.partition_key == day.isoformat())
        )
        return set(session.scalars(emitted))


def follow(day: date, recorder: Recorder) -> None:
    """Run the DAGs for a date, each one when its assets have been emitted.

    Raises:
        RunFailed: a task failed, or a DAG waits for an asset that was not emitted.
    """
    from airflow.sdk.listener import get_listener_manager
    from airflow.utils.db import upgradedb

    upgradedb()
    order = in_order(load_dags())
    emit(AIRFLOW, 0, 1, event="plan", stages=",".join(task.task_id for dag in order for task in dag.topological_sort()))
    get_listener_manager().add_listener(recorder.listener())
    emitted: set[str] = set()
    for dag in order:
        if not awaited(dag) <= emitted:
            missing = ", ".join(sorted(awaited(dag) - emitted))
            raise RunFailed(f"{dag.dag_id} did not run: nothing emitted {missing} for {day}")
        try:
            emitted |= run_dag(dag, day, {"date": day.isoformat(), "fill": True})
        except RunFailed as error:
            for task_id, reason in recorder.failed.items():
                raise RunFailed(f"task {task_id} of {dag.dag_id} failed: {reason}\nlog: {recorder.output.path(task_id)}") from None
            raise RunFailed(f"{error}\nlog: {recorder.output.path(AIRFLOW)}") from None


def _interrupt(number: int, frame: FrameType | None) -> None:
    emit(AIRFLOW, 0, 1, event="interrupt")
    stop(tree(os.getpid())[1:])
    os._exit(INTERRUPTED)  # Airflow would take an exception for a failed task, and go on


def main(argv: Sequence[str] | None = None) -> int:
    """Run the DAGs for a date.

    Returns:
        Exit status: 0; 1 if a task failed; 2 for settings or a date that cannot be used; 130 if interrupted.
    """
    parser = argparse.ArgumentParser(prog="python -m dags.run", description="Run the DAGs for one date in this process, without a server.")
    parser.add_argument("--date", type=date.fromisoformat, default=None, help="logical date, YYYY-MM-DD; default: dataset.default_date")
    parser.add_argument("--config", type=Path, default=None, help="settings file; default $DIG_CONFIG, then conf/local.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one setting; may be repeated")
    args = parser.parse_args(argv)
    place = args.config or Path(os.environ.get("DIG_CONFIG") or CONF_DIR / "local.yaml")
    told = os.fdopen(os.dup(2), "w", buffering=1)  # the real stderr, before it becomes a log
    try:
        config = load(place, args.set)
        day = args.date or config.dataset.default_date
        config.run_window(day)
    except ConfigError as error:
        told.write(f"{error}\n")
        return 2
    set_environment(config, day, place, args.set)
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    folder = run_dir(config, day)
    output = Output(folder / "logs")
    output.to(AIRFLOW)
    with PeakMemory(os.getpid()) as memory:
        recorder = Recorder(folder, output, memory)
        try:
            follow(day, recorder)
        except Exception as error:
            # Whatever Airflow may raise, the user gets one line and the log the traceback.
            traceback.print_exc()
            said = str(error) if isinstance(error, RunFailed) else f"{type(error).__name__}: {error}\nlog: {output.path(AIRFLOW)}"
            told.write(f"{said}\n")
            emit(AIRFLOW, 1, 1, event="fail", reason=said)
            return 1
        finally:
            recorder.save()
    emit(AIRFLOW, 1, 1, event="finish")
    return 0


if __name__ == "__main__":
    sys.exit(main())
