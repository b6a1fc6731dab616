"""``dig_publish``: a new champion becomes a SID index generation, and the run its report."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, PartitionedAssetTimetable

from dags.common import CHAMPION, DATE_PARAM, DEFAULT_ARGS, INDEX, JobOperator

DOC = """
### A champion goes out

`publish → report`, set off by the asset `dig://champion`. `publish` builds a generation of the SID index from the promoted version,
verifies it and switches `CURRENT` by one atomic replace; a generation that fails its check is never switched to.
`report` writes `summary.json` and `report.html` of the run.
"""

with DAG(
    dag_id="dig_publish",
    description="Build, verify and switch the SID index; write the report",
    doc_md=DOC,
    schedule=PartitionedAssetTimetable(assets=CHAMPION),
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULT_ARGS,
    params={"date": DATE_PARAM},
    tags=["dig", "index"],
) as dag:
    publish = JobOperator(
        task_id="publish",
        job="publish",
        outlets=[INDEX],
        execution_timeout=timedelta(hours=2),
        doc_md="SID index generation: build, verify, switch `CURRENT`; emits `dig://index`.",
    )
    summary = JobOperator(
        task_id="summary", job="summary", execution_timeout=timedelta(minutes=30), doc_md="The figures of the run: `summary.json`."
    )
    report = JobOperator(
        task_id="report", job="report", execution_timeout=timedelta(minutes=30), doc_md="The same figures to look at: `report.html`."
    )
    publish >> summary >> report
