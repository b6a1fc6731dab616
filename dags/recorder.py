"""What an embedded run keeps of itself: a log a task, the seconds of each stage, progress events, why a task failed."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.processes import PeakMemory
from jobs.progress import emit
from jobs.runs import write_json

AIRFLOW = "airflow"  # stage and log of what is spent in Airflow itself


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
    """Airflow listener: what ran, how long, why it failed; keeps ``stages.json`` and the progress events up to date.

    Args:
        folder: folder of the run.
        output: where the tasks' output goes.
        memory: watches the process tree.
        at_start: called whenever a task starts.
    """

    def __init__(self, folder: Path, output: Output, memory: PeakMemory, at_start: Callable[[], None] = lambda: None) -> None:
        self.folder = folder
        self.output = output
        self.memory = memory
        self.at_start = at_start
        self.seconds: dict[str, float] = {}
        self.failed: dict[str, str] = {}
        self._begun = self._since = time.monotonic()

    def start(self, task_id: str) -> None:
        """A task starts."""
        self.at_start()
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
            @hookimpl  # type: ignore[untyped-decorator]
            def on_task_instance_running(self, task_instance: Any) -> None:
                recorder.start(task_instance.task_id)

            @hookimpl  # type: ignore[untyped-decorator]
            def on_task_instance_success(self, task_instance: Any) -> None:
                recorder.end(task_instance.task_id, "finish")

            @hookimpl  # type: ignore[untyped-decorator]
            def on_task_instance_skipped(self, task_instance: Any) -> None:
                recorder.end(task_instance.task_id, "skip")

            @hookimpl  # type: ignore[untyped-decorator]
            def on_task_instance_failed(self, task_instance: Any, error: Any) -> None:
                task_id = task_instance.task_id
                log = recorder.output.path(task_id)
                sys.stdout.flush()
                sys.stderr.flush()
                recorder.failed[task_id] = reason_of(log) or str(error)
                recorder.end(task_id, "fail", reason=recorder.failed[task_id], log=str(log))

        return Listener()


# What a job prints stands in the log behind Airflow's time and level; Airflow's own tracebacks stand there bare.
_LINE = re.compile(r"^\d{4}-\d\d-\d\dT\S+ INFO (.*)")
_RECORD = re.compile(r"^(?:\[\w+\]: ?)?\d{4}-\d\d-\d\d [\d:,]+ ([A-Z]+) \S+: (.*)")
_RAISED = re.compile(r"^(?:\[\w+\]: ?)?[\w.]*(?:Error|Exception|Mismatch|MissingPartition)(?::|$)")
_SHOWN = 12


def reason_of(log: Path) -> str:
    """Why a task failed: the last error that its job reported, else the last exception; empty if the log holds neither."""
    reported: list[str] = []
    raised = ""
    open_record = False
    for line in log.read_text(errors="replace").splitlines() if log.is_file() else []:
        if not (found := _LINE.match(line)):
            continue
        said = found[1].rstrip()
        if record := _RECORD.match(said):
            open_record = record[1] == "ERROR"
            if open_record:
                reported = [record[2]]
        elif open_record and not said.startswith(("Command exited", "::")) and "correlation_id=" not in said:  # Airflow's own
            reported.append(said)
        if _RAISED.match(said) and "ChildFailedError" not in said:
            raised = said
    return "\n".join(reported[:_SHOWN]) or raised
