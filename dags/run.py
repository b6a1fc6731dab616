"""The embedded run: the DAGs for one date in this process, on SQLite, with no server.

``python -m dags.run --date D`` runs ``dig_features`` and then follows the asset links, as a scheduler would: a DAG runs only if the
assets it waits for were emitted for D by tasks of this very run. What Airflow and the jobs print goes to ``<runs>/<D>/logs/``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from dags.recorder import AIRFLOW, Output, Recorder
from jobs.config import CONF_DIR, Config, ConfigError, load
from jobs.entry import JobError
from jobs.files import exclusive
from jobs.layers import SETS, inherited
from jobs.processes import PeakMemory, stop, tree
from jobs.progress import emit
from jobs.runs import run_dir

DAGS = Path(__file__).resolve().parent
FIRST = "dig_features"
INTERRUPTED = 130


class RunFailed(Exception):
    """A task or a DAG failed; the message names it, the reason and the log."""


def set_environment(config: Config, day: date, place: Path, sets: Sequence[str]) -> None:
    """Lay out Airflow, and hand the settings to the jobs; only before Airflow is imported does this have an effect.

    Args:
        config: settings in force.
        day: logical date of the run.
        place: the settings file.
        sets: ``key=value`` overrides, handed on in ``$DIG_SET``.
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
        "AIRFLOW__LOGGING__LOG_FORMAT": "%(asctime)s %(levelname)s %(message)s",
        "AIRFLOW__LOGGING__CALLSITE_PARAMETERS": "",
        "DIG_CONFIG": str(place.resolve()),
    }
    os.environ.setdefault("DIG_PROGRESS", str(run_dir(config, day) / "progress.jsonl"))
    Path(os.environ["DIG_PROGRESS"]).write_text("")
    spark = {"conn_type": "spark", "host": config.spark.master}
    os.environ.setdefault(f"AIRFLOW_CONN_{config.spark.connection_id.upper()}", json.dumps(spark))
    if sets:
        os.environ[SETS] = json.dumps([*inherited(os.environ), *sets])
    # spark-submit is found by name, and starts the first python3 that it finds.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    os.environ["PYTHONPATH"] = os.pathsep.join([str(DAGS.parent), *filter(None, [os.environ.get("PYTHONPATH")])])


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
    """The first DAG of a day, and after it each one whose assets have been emitted by those before.

    What runs by the clock or by hand beside them (promotion, backfill, watch) is no part of a day.
    """
    left = {dag_id: dag for dag_id, dag in dags.items() if dag_id == FIRST or awaited(dag)}
    order: list[Any] = []
    made: set[str] = set()
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
    run = dag.test(logical_date=datetime(day.year, day.month, day.day, tzinfo=UTC), run_conf=conf)
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


def _take_signals() -> None:
    # Airflow takes SIGTERM for itself when it starts a task, and would then only fail that task.
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)


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
        if config.airflow.approval:
            raise ConfigError(
                "airflow.approval is on: a run without a server has nobody to ask; start the servers (make up), or pass "
                "--set airflow.approval=false to promote what passes the gate"
            )
    except ConfigError as error:
        told.write(f"{error}\n")
        return 2
    try:
        with exclusive(Path(config.paths.home).resolve() / "airflow" / "run.lock", wait=False):
            set_environment(config, day, place, args.set)
            return _recorded(config, day, told)
    except JobError as error:
        told.write(f"{error}\n")
        return 2


def _recorded(config: Config, day: date, told: TextIO) -> int:
    _take_signals()
    folder = run_dir(config, day)
    output = Output(folder / "logs")
    output.to(AIRFLOW)
    with PeakMemory(os.getpid()) as memory:
        recorder = Recorder(folder, output, memory, at_start=_take_signals)
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
