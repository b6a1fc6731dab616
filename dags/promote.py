"""``dig_promote``: a person promotes a version, or rolls back."""

from __future__ import annotations

import logging
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG, Param
from airflow.sdk.exceptions import AirflowFailException

from dags.approval import Approval, approver
from dags.common import PROMOTION_POOL, asked, asked_at, asked_by, default_args, settings
from dags.lineage import UNDATED
from dags.operators import JobOperator, followers

log = logging.getLogger("airflow.task")
ROLLBACK = "rollback"
CURRENT = "CURRENT"
DOC = """
### Promote a version, or roll back

| to do | trigger with conf |
|---|---|
| go back to the version and index that were in force before; takes seconds, builds nothing | `{"version": "rollback", "reason": "…"}` |
| promote a registered version with its newest generation (built first if there is none) | `{"version": "7", "reason": "…"}` |

The alias `champion` and `CURRENT` move together or not at all. If something else was promoted between the moment of asking and the
move, the run is refused and says so. A version that did not pass the gate needs `"past_gate": true`. Every move and refusal is a
line of `promotions.jsonl` beside the index. With `airflow.approval: true` a person approves first; a rollback never waits.
"""


def named(context: Any) -> tuple[str, str]:
    """Version (or ``rollback``) and reason that a run was asked for.

    Raises:
        AirflowFailException: one of them is missing.
    """
    wanted = asked(context)
    version, reason = (str(wanted.get(name) or "").strip() for name in ("version", "reason"))
    if not version or not reason:
        raise AirflowFailException('say what to promote and why: --conf \'{"version": "7" or "rollback", "reason": "…"}\'')
    return version, reason


def is_rollback(context: Any) -> bool:
    """Whether a run was asked to roll back."""
    return named(context)[0] == ROLLBACK


def options(context: Any) -> list[str]:
    """Options of the job, from the run's conf.

    Raises:
        AirflowFailException: version or reason are missing.
    """
    wanted, (version, reason) = asked(context), named(context)
    by = "" if version == ROLLBACK else approver(context)
    asked_for, triggered = str(wanted.get("who") or "").strip(), asked_by(context)
    who = f"{asked_for} (triggered by {triggered})" if asked_for and asked_for != triggered else triggered
    seen = context["ti"].xcom_pull(task_ids="request")
    return [
        *(["--rollback"] if version == ROLLBACK else ["--version", version]),
        *(["--past-gate"] if wanted.get("past_gate") else []),
        *("--expect", str(seen)),
        *("--who", who, "--at", asked_at(context)),
        *("--reason", reason + (f" (approved by {by})" if by else "")),
    ]


def seen(**context: Any) -> str:
    """Check the params, and read ``CURRENT``."""
    for line in UNDATED["request"].lines():
        log.info("%s", line)
    named(context)
    current = Path(settings().paths.at("index")) / CURRENT
    return current.read_text().strip() if current.is_file() else "none"


with DAG(
    dag_id="dig_promote",
    description="Promote a version or roll back: champion and index together",
    doc_md=DOC,
    schedule=None,
    is_paused_upon_creation=False,  # nothing sets it off but a person, who must not have to unpause it first
    catchup=False,
    max_active_runs=4,
    default_args=default_args(),
    params={
        "version": Param("", type="string", title="Version", description="Number of a registered version, or: rollback"),
        "reason": Param("", type="string", title="Reason", description="Why; stands in the promotion log."),
        "who": Param("", type="string", title="Who", description="Who asks; default: the user that triggers the run."),
        "past_gate": Param(False, type="boolean", title="Past the gate", description="Also a version that did not pass the gate."),
    },
    tags=["dig", "mlflow", "index"],
) as dag:
    request = PythonOperator(
        task_id="request",
        python_callable=seen,
        execution_timeout=timedelta(minutes=5),
        doc_md="What is current at the moment of asking: the move is refused if that has changed by then.",
    )
    promote = JobOperator(
        task_id="promote",
        job="promote",
        arguments=options,
        pool=PROMOTION_POOL,
        execution_timeout=timedelta(minutes=30),
        doc_md="Alias `champion` and `CURRENT` move together or not at all.",
    )
    if settings().airflow.approval:
        request >> Approval(subject="Promote {{ params.version }}? {{ params.reason }}", waived=is_rollback) >> promote
    else:
        request >> promote
    promote >> followers()
