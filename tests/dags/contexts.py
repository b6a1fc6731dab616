"""What a task is told of its run, as far as the DAGs look at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any


@dataclass
class Run:
    """A DAG run."""

    partition_key: str | None = None
    conf: Mapping[str, Any] = field(default_factory=dict)
    run_id: str = "manual__1"
    triggering_user_name: str | None = None
    run_after: Any = None
    start_date: Any = None


class TaskInstance:
    """Keeps what a task pushes."""

    dag_id, task_id, run_id, try_number, log_url = "dig_x", "some", "manual__1", 2, "http://log"

    def __init__(self, **pulled: Any) -> None:
        self.pushed: dict[str, Any] = {}
        self.pulled = pulled

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value

    def xcom_pull(self, task_ids: str) -> Any:
        return self.pulled.get(task_ids)


class Outlets(dict[Any, Any]):
    """Asset events that a task announces."""

    def __missing__(self, asset: Any) -> Any:
        self[asset] = SimpleNamespace(keys=[], extra={})
        self[asset].add_partitions = self[asset].keys.append
        return self[asset]


def context(run: Run | None = None, **more: Any) -> dict[str, Any]:
    """A task's context."""
    return {"dag_run": run or Run(), "params": {}, "ti": TaskInstance(), "outlet_events": Outlets(), **more}
