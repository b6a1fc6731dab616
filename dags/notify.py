"""Who hears of trouble: the task's log always, and a webhook if the settings name one."""

from __future__ import annotations

from typing import Any

from airflow.sdk import BaseNotifier


class Notifier(BaseNotifier):  # type: ignore[misc]  # Airflow's classes are Any to mypy here
    """Says that a task failed, or that it waits for a person.

    Args:
        webhook: URL that gets the message as a JSON POST; empty for none.
        timeout_seconds: how long it may take to answer.
        event: what happened: ``failed`` or ``waiting``.
    """

    def __init__(self, *, webhook: str = "", timeout_seconds: int = 10, event: str = "failed") -> None:
        super().__init__()
        self.webhook, self.timeout_seconds, self.event = webhook, timeout_seconds, event

    def notify(self, context: Any) -> None:
        """Send the message; a webhook that does not answer must not hide the failure that it is about, so it is only logged."""
        message = self.message(context)
        said = "{dag}.{task} {event} in run {run} (attempt {attempt}): {reason}".format_map(message)
        self.log.warning(said)
        if not self.webhook:
            return
        import httpx

        try:
            httpx.post(self.webhook, json=message, timeout=self.timeout_seconds).raise_for_status()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            # Neither the URL nor the error's own text, which repeats it: it may hold a secret.
            self.log.error("the webhook of airflow.notify.webhook did not take the message: %s", type(error).__name__)

    def message(self, context: Any) -> dict[str, Any]:
        """What happened, as JSON values: dag, task, run, date (partition key), attempt, reason, log."""
        ti, dag_run = context["ti"], context["dag_run"]
        return {
            "event": self.event,
            "dag": ti.dag_id,
            "task": ti.task_id,
            "run": ti.run_id,
            "date": getattr(dag_run, "partition_key", None) or (dag_run.conf or {}).get("date"),
            "attempt": ti.try_number,
            "reason": str(context.get("exception") or ""),
            "log": getattr(ti, "log_url", None),
        }
