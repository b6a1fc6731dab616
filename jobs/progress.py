"""Progress events: one JSON line each, appended to the file that ``$DIG_PROGRESS`` names."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class _Part:
    stage: str
    before: float
    share: float
    total: float


_PART: ContextVar[_Part | None] = ContextVar("part", default=None)


def emit(stage: str, done: float, total: float, **figures: float | str) -> None:
    """Tell whoever watches how far a stage has come; does nothing when nobody watches.

    Args:
        stage: name of the stage (a job's name).
        done: units finished.
        total: units in all.
        figures: what to show beside the bar, such as ``examples_per_s``.
    """
    path = os.environ.get("DIG_PROGRESS")
    if path:
        event = _event(stage, done, total)
        line = json.dumps({**event, **figures})
        with open(path, "a", encoding="utf-8") as out:  # one short append is atomic enough for a reader of lines
            out.write(line + "\n")


def _event(stage: str, done: float, total: float) -> dict[str, float | str]:
    part = _PART.get()
    if part is None:
        return {"stage": stage, "done": done, "total": total}
    moved = part.before + part.share * (done / total if total else 1.0)
    return {"stage": part.stage, "done": round(moved, 3), "total": part.total, "step": stage}


@contextmanager
def part_of(stage: str, *, before: float, share: float, total: float) -> Iterator[None]:
    """What is emitted inside counts as a part of a longer stage: from 0 to all of it moves that one from ``before`` by ``share``."""
    token = _PART.set(_Part(stage=stage, before=before, share=share, total=total))
    try:
        yield
    finally:
        _PART.reset(token)
