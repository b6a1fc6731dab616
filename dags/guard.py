"""The guard that keeps backfills from retraining: Airflow sets consumers of an asset off for backfilled partitions too.

Each event of ``dig://examples`` says whether its run wants a new model. A scheduled or triggered run does; a backfill does only
if it was asked to (``{"retrain": true}`` in its conf).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow.sdk.exceptions import AirflowSkipException

from dags.common import asked

RETRAIN = "retrain"
BACKFILL = "backfill__"  # how Airflow begins the ids of runs that a backfill made
KEPT = "the champion and the index stay as they are"


def wants_retrain(context: Mapping[str, Any]) -> bool:
    """Whether a run of the feature DAG is to be followed by a training: what its conf says, else yes unless it is a backfill."""
    return _wanted(asked(context), context["dag_run"].run_id)


def _wanted(told: Mapping[str, Any], run_id: Any) -> bool:
    said = told.get(RETRAIN)
    return bool(said) if said is not None else not str(run_id or "").startswith(BACKFILL)


def unwanted(context: Mapping[str, Any]) -> str:
    """Why the run that events set off must not go on; empty if it may.

    It goes on if any of the events wants it to, and if no event set it off (it was triggered by hand).
    """
    events = [event for of_asset in (context.get("triggering_asset_events") or {}).values() for event in of_asset]
    sources = [event for event in events if not _wanted(event.extra or {}, event.source_run_id)]
    if not events or len(sources) < len(events):
        return ""
    runs = ", ".join(sorted({str(event.source_run_id) for event in sources}))
    kind = "a backfill" if BACKFILL in runs else "a run that asks for no training"
    return f'set off by {kind} ({runs}) without {{"retrain": true}} in its conf: {KEPT}'


def skip_unwanted(context: Any) -> None:
    """Skip the task, and keep the reason where the UI shows it (XCom ``skipped``).

    Raises:
        AirflowSkipException: see ``unwanted``.
    """
    if reason := unwanted(context):
        skip(context, reason)


def skip(context: Any, reason: str) -> None:
    """Skip the task for a reason, which the UI shows as XCom ``skipped``.

    Raises:
        AirflowSkipException: always.
    """
    context["ti"].xcom_push(key="skipped", value=reason)
    raise AirflowSkipException(reason)
