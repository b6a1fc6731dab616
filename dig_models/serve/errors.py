"""Errors of the server and what may be said of them in a log; free of torch and of the web framework."""

from __future__ import annotations

import traceback
from pathlib import Path


class CannotServe(ValueError):
    """The server cannot start for a reason its user can act on; the message says what was found and what to do."""


def where(error: BaseException) -> str:
    """Type and frames of an error without its message and values, which may hold what a user asked or did."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} at " + " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(frames))
