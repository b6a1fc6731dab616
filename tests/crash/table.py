"""What the crash tests found, as a table at the end of the test run."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from dig_models.faults import POINTS
from tests.crash.harness import OUTCOMES, Outcome


def visited() -> set[str]:
    """Names of the points at which a process was killed."""
    return {one.point.partition("@")[0] for one in OUTCOMES if one.died == "SIGKILL"}


def totals() -> str:
    """The last line: how many points were visited, and what readers met."""
    reads, mixed, missing = (sum(getattr(one, name) for one in OUTCOMES) for name in ("reads", "mixed", "missing"))
    return (
        f"{len(visited() & POINTS.keys())} fault points visited of {len(POINTS)} listed, in {len(OUTCOMES)} visits; "
        f"{reads} reader polls, {mixed} mixed, {missing} missing"
    )


def show(console: Console) -> None:
    """Print the table; nothing if no point was visited."""
    if not OUTCOMES:
        return
    table = Table("fault point", "done there", "situation", "died", "readers then saw", "after the rerun", box=None, padding=(0, 1))
    for one in OUTCOMES:
        table.add_row(one.point, POINTS.get(one.point.partition("@")[0], one.done), one.situation, one.died, one.seen, one.rerun)
    console.print(table)
    console.print(totals())


def dump() -> list[dict[str, Any]]:
    """What was found in this process, for another one to ``take``."""
    return [asdict(one) for one in OUTCOMES]


def take(found: list[dict[str, Any]]) -> None:
    """Count what was found in another process as found here."""
    OUTCOMES.extend(Outcome(**one) for one in found)
