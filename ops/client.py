"""A client of a running stack: Airflow's REST API with a login, its command line, and waiting for runs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.config import Config, load
from ops.airflow_servers import ADMIN
from ops.http import HttpError, request
from ops.service import LOOPBACK, StackError
from ops.state import State, load_state

API = "/api/v2"
POLL = 1.0
LOG_LINES = 40
FINISHED = ("success", "failed")


class RunFailed(RuntimeError):
    """A run did not end as it should; the message holds the end of the failed tasks' logs."""


@dataclass
class StackClient:
    """A running stack, seen by its user.

    Attributes:
        home: ``paths.home`` of the stack.
        state: its ports, secrets and environment.
    """

    home: Path
    state: State
    _token: str = field(default="", repr=False)

    @classmethod
    def at(cls, home: Path) -> StackClient:
        """The stack that was started with ``paths.home``.

        Raises:
            StackError: none was.
        """
        state = load_state(home.resolve() / "stack")
        if state is None:
            raise StackError(f"no stack under {home.resolve()}: start one (make up)")
        return cls(home.resolve(), state)

    @property
    def env(self) -> dict[str, str]:
        """Environment of a process that talks to the stack; settings in the caller's own are not the stack's."""
        mine = {name: value for name, value in os.environ.items() if not name.startswith(("DIG_", "AIRFLOW"))}
        return {**mine, **self.state.environment}

    @property
    def config(self) -> Config:
        """Settings in force for its tasks."""
        return load(self.state.config, environ=self.state.environment)

    @property
    def url(self) -> str:
        """Address of Airflow."""
        return f"http://{LOOPBACK}:{self.state.ports['airflow']}"

    @property
    def mlflow_url(self) -> str:
        """Address of MLflow."""
        return f"http://{LOOPBACK}:{self.state.ports['mlflow']}"

    def api(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """Ask Airflow's REST API as the administrator.

        Args:
            method: HTTP method.
            path: below ``/api/v2``.
            body: becomes JSON.
            query: parameters of the address; a list gives one for each item.

        Raises:
            HttpError: Airflow refuses.
            OSError: Airflow does not answer.
        """
        parameters = f"?{urllib.parse.urlencode(query, doseq=True)}" if query else ""
        for attempt in (1, 2):
            if not self._token:
                login = {"username": ADMIN, "password": self.state.secrets["admin"]}
                self._token = request("POST", f"{self.url}/auth/token", login)["access_token"]
            try:
                return request(method, f"{self.url}{API}{path}{parameters}", body, token=self._token)
            except HttpError as error:
                if error.status != 401 or attempt == 2:
                    raise
                self._token = ""  # it expires after a day
        raise AssertionError("unreachable")

    def cli(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run ``airflow <arguments>`` against the stack.

        Raises:
            StackError: it failed and ``check`` is on.
        """
        command = [sys.executable, "-m", "airflow", *arguments]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, check=False)
        if check and done.returncode:
            said = (done.stderr or done.stdout)[-2000:]
            raise StackError(f"airflow {' '.join(arguments)} ended with exit status {done.returncode}: {said}")
        return done

    def dags(self) -> dict[str, bool]:
        """Known DAGs and whether they are paused."""
        return {dag["dag_id"]: dag["is_paused"] for dag in self.api("GET", "/dags", limit=100)["dags"]}

    def import_errors(self) -> list[str]:
        """Why files of DAGs cannot be loaded: one text a file."""
        return [f"{e['filename']}: {e['stack_trace'].strip()}" for e in self.api("GET", "/importErrors")["import_errors"]]

    def await_dags(self, dag_ids: Iterable[str], deadline: float = 120.0) -> None:
        """Wait until the DAG processor has loaded DAGs.

        Raises:
            StackError: one cannot be loaded, or is not there in time.
        """
        wanted = set(dag_ids)

        def loaded() -> bool:
            if errors := self.import_errors():
                raise StackError("DAGs cannot be loaded: " + "\n".join(errors))
            return wanted <= set(self.dags())

        if not poll(loaded, deadline):
            raise StackError(f"DAGs {sorted(wanted - set(self.dags()))} were not loaded within {deadline:.0f} s")

    def unpause(self, *dag_ids: str) -> None:
        """Let DAGs run, by clock and by asset."""
        self.await_dags(dag_ids)
        for dag_id in dag_ids:
            self.api("PATCH", f"/dags/{dag_id}", {"is_paused": False})

    def pause(self, *dag_ids: str) -> None:
        """Stop DAGs from starting further runs."""
        for dag_id in dag_ids:
            self.api("PATCH", f"/dags/{dag_id}", {"is_paused": True})

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None, **more: Any) -> str:
        """Start a run by hand.

        Args:
            dag_id: of what.
            conf: for the run.
            more: further fields of the request, such as ``partition_key``.

        Returns:
            Id of the run.
        """
        body = {"logical_date": None, "conf": dict(conf or {}), **more}
        return str(self.api("POST", f"/dags/{dag_id}/dagRuns", body)["dag_run_id"])

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        """Runs of a DAG, the newest first, at most a hundred."""
        return list(self.api("GET", f"/dags/{dag_id}/dagRuns", limit=100, order_by="-run_after")["dag_runs"])

    def await_run(self, dag_id: str, day: str, *, known: Collection[str] = (), deadline: float = 120.0) -> str:
        """Wait for a run that an asset sets off.

        Args:
            dag_id: of what.
            day: its partition key, YYYY-MM-DD.
            known: ids of runs that do not count, such as those of an earlier trigger.
            deadline: seconds to wait.

        Returns:
            Id of the run.

        Raises:
            RunFailed: there is none in time.
        """
        found: list[str] = []

        def there() -> bool:
            found[:] = [r["dag_run_id"] for r in self.runs(dag_id) if r["partition_key"] == day and r["dag_run_id"] not in known]
            return bool(found)

        if not poll(there, deadline):
            there_are = [run["dag_run_id"] for run in self.runs(dag_id)]
            raise RunFailed(f"{dag_id}: nothing set off a run for {day} within {deadline:.0f} s; runs: {there_are}")
        return found[0]

    def wait(self, dag_id: str, run_id: str, deadline: float = 600.0, *, expect: str = "success") -> dict[str, Any]:
        """Wait until a run has ended.

        Args:
            dag_id: of what.
            run_id: id of the run.
            deadline: seconds to wait.
            expect: state that it should end in; for ``success`` the wait ends with the first task that has failed for good.

        Returns:
            The run, as the API tells it.

        Raises:
            RunFailed: it ended otherwise, or not in time; with the end of the failed tasks' logs.
        """
        run: dict[str, Any] = {}

        def over() -> bool:
            run.update(self.run(dag_id, run_id))
            return run["state"] in FINISHED or (expect == "success" and "failed" in self.task_states(dag_id, run_id).values())

        ended = poll(over, deadline)
        if run["state"] == expect:
            return run
        said = "" if ended else f" after {deadline:.0f} s"
        raise RunFailed(f"{dag_id} {run_id} is {run['state']}{said}, {expect} expected\n{self._why(dag_id, run_id)}")

    def run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        """One run, as the API tells it."""
        return dict(self.api("GET", f"/dags/{dag_id}/dagRuns/{_quoted(run_id)}"))

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str) -> Any:
        """What a task of a run left for others under a name."""
        return self.api("GET", f"/dags/{dag_id}/dagRuns/{_quoted(run_id)}/taskInstances/{task_id}/xcomEntries/{key}")["value"]

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Task instances of a run."""
        return list(self.api("GET", f"/dags/{dag_id}/dagRuns/{_quoted(run_id)}/taskInstances", limit=100)["task_instances"])

    def task_states(self, dag_id: str, run_id: str) -> dict[str, str | None]:
        """State of each task of a run; None if it has none yet."""
        return {task["task_id"]: task["state"] for task in self.tasks(dag_id, run_id)}

    def logs(self, dag_id: str, run_id: str, task_id: str, attempt: int | None = None) -> list[str]:
        """Lines of a task's log.

        Args:
            dag_id: of what.
            run_id: id of the run.
            task_id: which task.
            attempt: which attempt, from 1; default: the newest.
        """
        place = f"/dags/{dag_id}/dagRuns/{_quoted(run_id)}/taskInstances/{task_id}"
        number = attempt or max(1, self.api("GET", place)["try_number"])
        content = self.api("GET", f"{place}/logs/{number}", full_content="true")["content"]
        return [str(line["event"]) if isinstance(line, dict) else str(line) for line in content]

    def _why(self, dag_id: str, run_id: str) -> str:
        tasks = self.tasks(dag_id, run_id)
        told = ["tasks: " + ", ".join(f"{task['task_id']} {task['state']}" for task in tasks)]
        for task in tasks:
            if task["state"] in ("failed", "up_for_retry", "running"):
                lines = self.logs(dag_id, run_id, task["task_id"])
                told += [f"the end of the log of {task['task_id']}, attempt {task['try_number']}:", *lines[-LOG_LINES:]]
        return "\n".join(told)


def _quoted(run_id: str) -> str:
    return urllib.parse.quote(run_id, safe="")


def poll(done: Callable[[], bool], deadline: float) -> bool:
    """Whether ``done`` came true within ``deadline`` seconds; a server that is away for a moment is asked again."""
    until = time.monotonic() + deadline
    while True:
        try:
            if done():
                return True
        except (HttpError, OSError) as error:
            if isinstance(error, HttpError) and error.status < 500:
                raise
            if time.monotonic() > until:
                raise
        if time.monotonic() > until:
            return False
        time.sleep(POLL)
