"""Fault points: the places between two steps of a protocol where a crash must do no harm, each with a name.

A protocol calls ``reached(name)`` between its steps. Nothing happens unless ``$DIG_FAULT`` names the point: ``<name>=kill`` ends the
process at once as ``kill -9`` does, ``<name>=full`` raises the error of a full disk, ``<name>=pause:<folder>`` leaves the file
``<folder>/<name>`` and waits until it is gone. ``<name>@3=kill`` acts the third time. The crash tests visit every point.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections import Counter
from pathlib import Path

VARIABLE = "DIG_FAULT"
POLL_SECONDS = 0.05

#: Every fault point: its name and what has been done when it is reached.
POINTS: dict[str, str] = {}

_visits: Counter[str] = Counter()


def reached(name: str) -> None:
    """Say that a protocol has come to a fault point; acts only if ``$DIG_FAULT`` names it.

    Raises:
        KeyError: the point is not listed in ``POINTS``.
        OSError: a full disk, if that was asked for.
        ValueError: ``$DIG_FAULT`` cannot be read.
    """
    POINTS[name]
    armed = os.environ.get(VARIABLE)
    if not armed:
        return
    place, _, action = armed.partition("=")
    point, _, visit = place.partition("@")
    if point not in POINTS:
        raise ValueError(f"{VARIABLE}={armed}: no fault point {point!r}; there are {', '.join(sorted(POINTS))}")
    if point != name:
        return
    _visits[name] += 1
    if _visits[name] == int(visit or 1):
        _act(name, action, armed)


def _act(name: str, action: str, armed: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "full":
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} (fault point {name})")
    elif action.startswith("pause:"):
        flag = Path(action.removeprefix("pause:"), name)
        flag.write_text(str(os.getpid()))
        while flag.exists():
            time.sleep(POLL_SECONDS)
    else:
        raise ValueError(f"{VARIABLE}={armed}: expected <point>=kill, <point>=full or <point>=pause:<folder>")
