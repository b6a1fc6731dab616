"""Approval by a person before a promotion, if ``airflow.approval`` asks for it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator

from dags.common import notifier, settings
from dags.lineage import UNDATED

TASK = "approve"
BODY = """
Run `{{ dag_run.run_id }}`. Look first: `dig index show`, `dig index diff <current> <new>`, the version's model card in MLflow.

- *Approve*: the alias champion and the index move together.
- *Reject*, or no answer in time: nothing moves.
"""


class Approval(ApprovalOperator):  # type: ignore[misc]  # Airflow's classes are Any to mypy here
    """Waits for a person, without holding a worker or a slot; no answer in time counts as a refusal.

    Args:
        waived: whether a run needs no approval.
    """

    def __init__(self, *, waived: Callable[[Any], bool] = lambda context: False, **kwargs: Any) -> None:
        super().__init__(
            task_id=TASK,
            body=BODY,
            fail_on_reject=True,  # what was asked for does not happen: the run must not look as if it had
            response_timeout=timedelta(hours=settings().airflow.approval_hours),
            notifiers=[notifier("waiting")],
            retries=0,
            doc_md="A person approves or rejects under *Required Actions*; the answer stands in the promotion log.",
            **kwargs,
        )
        self.waived = waived

    def execute(self, context: Any) -> Any:
        """Ask, unless no approval is needed."""
        for line in UNDATED[TASK].lines():
            self.log.info("%s", line)
        return None if self.waived(context) else super().execute(context)


def approver(context: Any) -> str:
    """Name of the person who approved; empty if nobody was asked."""
    if not settings().airflow.approval:
        return ""
    answer = context["ti"].xcom_pull(task_ids=TASK) or {}
    user = answer.get("responded_by_user") or {}
    return str(user.get("name") or user.get("id") or "")
