"""Progress events: one JSON line each, appended to the file that ``$DIG_PROGRESS`` names."""

from __future__ import annotations

import json
import os


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
        line = json.dumps({"stage": stage, "done": done, "total": total, **figures})
        with open(path, "a", encoding="utf-8") as out:  # one short append is atomic enough for a reader of lines
            out.write(line + "\n")
