"""``dig_publish``: what passed the gate goes out, model and index together, and the run gets its report."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, PartitionedAssetTimetable

from dags.approval import Approval, approver
from dags.common import CANDIDATE, CHAMPION, DATE_PARAM, INDEX, PROMOTION_POOL, asked_at, asked_by, default_args, settings
from dags.operators import JobOperator, followers, recommendations

DOC = """
### A candidate goes out

`index → promote → summary → report`, set off by the asset `dig://candidate`; a champion that was promoted or rolled back meanwhile
refuses it, since the gate compared with another one. `index` builds a generation of the SID index with the
version that passed the gate and verifies it; nothing serves it yet. `promote` moves the alias `champion` and `CURRENT` together or not
at all, one promotion at a time. With `airflow.approval: true` a person approves in between.

Emits `dig://champion` and `dig://index` for the date. Copies follow the promotion where the settings name them (`index.mirrors`,
`serve.redis`), and with `serve.batch.enabled` the lists of all users.
"""


def signed(context: Any) -> list[str]:
    """Who promotes, when and why, for the promotion log."""
    by = approver(context)
    reason = "passed the gate" + (f", approved by {by}" if by else "")
    return ["--who", by or asked_by(context), "--at", asked_at(context), "--reason", reason]


with DAG(
    dag_id="dig_publish",
    description="Build and verify the SID index, move champion and CURRENT together, write the report",
    doc_md=DOC,
    schedule=PartitionedAssetTimetable(assets=CANDIDATE),
    catchup=False,
    max_active_runs=1,
    default_args=default_args(),
    params={"date": DATE_PARAM},
    tags=["dig", "index"],
) as dag:
    index = JobOperator(
        task_id="index",
        job="index",
        execution_timeout=timedelta(hours=2),
        doc_md="SID index generation of the date: built, every checksum read again, a beam search tried. It does not serve yet.",
    )
    promote = JobOperator(
        task_id="promote",
        job="promote",
        more=signed,
        outlets=[CHAMPION, INDEX],
        pool=PROMOTION_POOL,
        execution_timeout=timedelta(minutes=30),
        doc_md="Alias `champion` and `CURRENT` move together or not at all; emits `dig://champion` and `dig://index`.",
    )
    summary = JobOperator(
        task_id="summary", job="summary", execution_timeout=timedelta(minutes=30), doc_md="The figures of the run: `summary.json`."
    )
    report = JobOperator(
        task_id="report", job="report", execution_timeout=timedelta(minutes=30), doc_md="The same figures to look at: `report.html`."
    )
    if settings().airflow.approval:
        index >> Approval(subject="Promote what passed the gate?") >> promote
    else:
        index >> promote
    promote >> summary >> report
    promote >> followers()
    if settings().serve.batch.enabled:
        promote >> recommendations()
