"""The one progress display of a run: drawn from the events that Airflow's run and the jobs append to one file.

On a terminal every stage has a bar, its elapsed time, an estimate of what is left and live figures; elsewhere a line a stage.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.text import Text

RUN = "airflow"  # events of the run itself, and of the time between tasks
_OWN = frozenset(
    {"stage", "done", "total", "event", "seconds", "reason", "log", "stages", "eta_s"}
)  # the display estimates itself what is left


@dataclass(frozen=True, kw_only=True)
class Event:
    """One line of the progress file.

    Attributes:
        stage: a task or ``airflow``.
        event: ``plan``, ``start``, ``finish``, ``skip``, ``fail``, ``interrupt``; empty for progress within a stage.
        figures: live figures such as ``examples_per_s``.
        fields: everything in the line.
    """

    stage: str
    event: str
    done: float
    total: float
    figures: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, line: str) -> Event:
        """Read one line."""
        fields = json.loads(line)
        figures = {key: value for key, value in fields.items() if key not in _OWN}
        return cls(
            stage=fields["stage"],
            event=fields.get("event", ""),
            done=float(fields["done"]),
            total=float(fields["total"]),
            figures=figures,
            fields=fields,
        )


class Tail:
    """Reads a growing file of events, whole lines only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0

    def read(self) -> Iterator[Event]:
        """Events appended since the last call."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as lines:
            lines.seek(self._at)
            for line in lines:
                if not line.endswith(b"\n"):
                    return
                self._at += len(line)
                yield Event.parse(line.decode())


def figures_text(figures: Mapping[str, Any]) -> str:
    """Live figures as text: ``examples_per_s=1234.5`` becomes ``1,234 examples/s``."""
    parts = []
    for name, value in figures.items():
        shown = str(value)
        if isinstance(value, int | float):
            shown = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"
        unit = name.removesuffix("_per_s")
        parts.append(f"{shown} {unit.replace('_', ' ')}/s" if unit != name else f"{name.replace('_', ' ')} {shown}")
    return "  ".join(parts)


class Display(Protocol):
    """What is told of a run while it goes on."""

    def show(self, event: Event) -> None:
        """Take in one event."""

    def __enter__(self) -> Display: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


def display_for(console: Console) -> Display:
    """Bars on a terminal, lines elsewhere."""
    return Bars(console) if console.is_terminal else Lines(console)


class Lines:
    """One line a stage, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._figures: dict[str, str] = {}
        self._current = ""

    def show(self, event: Event) -> None:
        """Print a line when a stage starts and when it ends."""
        if not event.event and event.figures:
            self._figures[self._current] = figures_text(event.figures)
        if event.stage == RUN:
            return
        if event.event == "start":
            self._current = event.stage
            self._console.print(f"{event.stage}: started", highlight=False)
        elif event.event in ("finish", "skip", "fail"):
            said = {"finish": "done", "skip": "skipped", "fail": "FAILED"}[event.event]
            figures = self._figures.get(event.stage, "")
            self._console.print(f"{event.stage}: {said} in {event.fields['seconds']:.1f} s  {figures}".rstrip(), highlight=False)

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None


class _Bar(BarColumn):
    """Bar of a stage; nothing for one that waits."""

    def render(self, task: Task) -> ProgressBar:
        bar = super().render(task)
        bar.pulse = bar.pulse and bool(task.started)
        return bar


class _Elapsed(TimeElapsedColumn):
    """Time that a stage took so far; nothing for one that waits."""

    def render(self, task: Task) -> Text:
        return super().render(task) if task.started else Text("       ")


class _Remaining(TimeRemainingColumn):
    """Estimate of what is left of a stage that runs and says how far it is; nothing otherwise."""

    def render(self, task: Task) -> Text:
        if task.finished or not task.started or not task.completed:
            return Text("       ")
        return super().render(task)


_GLYPHS = {"waiting": ("·", "dim"), "running": ("▶", "cyan"), "finish": ("✓", "green"), "skip": ("–", "yellow"), "fail": ("✗", "red")}


class _Mark(ProgressColumn):
    """State of a stage in one glyph."""

    def render(self, task: Task) -> Text:
        glyph, style = _GLYPHS[task.fields["state"]]
        return Text(glyph, style=style)


class Bars:
    """One display with a bar for each stage, for terminals."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            _Mark(),
            TextColumn("{task.description:14}"),
            _Bar(bar_width=28),
            _Elapsed(),
            _Remaining(compact=True, elapsed_when_finished=False),
            TextColumn("[dim]{task.fields[figures]}", markup=True),
            console=console,
            refresh_per_second=4,
        )
        self._tasks: dict[str, TaskID] = {}
        self._current = RUN
        self._add(RUN, "starting")
        self._begin(RUN)

    def _add(self, stage: str, description: str) -> None:
        self._tasks[stage] = self._progress.add_task(description, start=False, total=1, state="waiting", figures="")

    def _begin(self, stage: str) -> None:
        self._progress.start_task(self._tasks[stage])
        self._progress.tasks[self._tasks[stage]].total = None  # unknown until the stage says how far it is
        self._progress.update(self._tasks[stage], state="running")
        self._current = stage

    def _end(self, stage: str, state: str) -> None:
        self._progress.update(self._tasks[stage], state=state, total=1, completed=1 if state == "finish" else 0)
        self._progress.stop_task(self._tasks[stage])

    def show(self, event: Event) -> None:
        """Move the bars."""
        if event.event == "plan":
            self._end(RUN, "finish")
            for stage in str(event.fields["stages"]).split(","):
                self._add(stage, stage)
        elif event.stage == RUN:
            return
        elif event.event == "start":
            self._begin(event.stage)
        elif event.event:
            self._end(event.stage, event.event)
        else:
            # A job may name its stage otherwise than its task is called: it is the task that runs.
            at = self._tasks.get(event.stage, self._tasks[self._current])
            self._progress.update(at, total=event.total or None, completed=event.done, figures=figures_text(event.figures))

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()
