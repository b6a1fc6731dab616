"""Crash scenarios of the lake that need no Spark: two days of a table of files, committed one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date
from functools import partial
from pathlib import Path

from jobs.entry import Invocation, run
from jobs.lake import CorruptPartition, Lake
from tests.crash.harness import Scenario, files_of

TABLE = "t"
DAYS = [date(2024, 3, 1), date(2024, 3, 2)]
ROWS = 20_000


def build(value: int, call: Invocation) -> None:
    """Two files a day, filled with a value, and one below a folder."""
    lake = Lake(call.config.paths.at("lake"))
    for day in call.days:
        with lake.stage_files(TABLE, day, f"crash-{day}") as stage:
            (stage.path / "below").mkdir()
            for name in ("a.bin", "below/b.bin"):
                (stage.path / name).write_bytes(bytes([value, day.day]) * ROWS)
            stage.commit(rows=ROWS, job="crash", code="", config="", inputs={}, stats={"value": value})


def step(root: Path, *, value: int = 2) -> int:
    """The days as a job builds them: options, settings, errors and exit status included."""
    main = partial(build, value)
    main.__module__ = __name__  # type: ignore[attr-defined]
    options = ["--from", str(DAYS[0]), "--to", str(DAYS[-1]), "--config", "conf/local.yaml", "--set", f"paths.home={root}"]
    return run("crash", main, options, ranges=True)


def nothing(root: Path) -> None:
    """A lake that was never written."""


def damaged(root: Path) -> None:
    """The same rows are committed, but a file of each day was cut."""
    step(root)
    for day in DAYS:
        file = Lake(str(root / "lake")).folder(TABLE, day) / "a.bin"
        file.write_bytes(file.read_bytes()[:-1])


def look(root: Path) -> Mapping[str, str]:
    """The value of each day, every byte of it."""
    return {str(day): _value(Lake(str(root / "lake")), day) for day in DAYS}


def _value(lake: Lake, day: date) -> str:
    try:
        marker = lake.marker(TABLE, day)
    except CorruptPartition as error:
        return "damaged" if "data folder" in str(error) else str(error)
    if marker is None:
        return "none"
    if not lake.is_current(TABLE, day, inputs={}, config="", code=""):
        return "damaged"
    value = int(marker.stats["value"])
    for name in ("a.bin", "below/b.bin"):
        assert (lake.folder(TABLE, day) / name).read_bytes() == bytes([value, day.day]) * ROWS
    return str(value)


def leaves(root: Path) -> Mapping[str, object]:
    """Every file of the lake."""
    return files_of(root / "lake")


def _scenario(situation: str, prepare: Callable[[Path], int | None], points: tuple[str, ...], full: tuple[str, ...] = ()) -> Scenario:
    points = tuple(f"partition.{point}" if "." not in point else point for point in points)
    return Scenario(area="partition", situation=situation, prepare=prepare, step=step, look=look, leaves=leaves, points=points, full=full)


COMMIT = ("synced", "moved", "named", "file.written", "file.replaced", "marker_replaced", "old_removed", "day_committed", "staging_removed")
SCENARIOS = [
    _scenario("first time", nothing, ("staging_cleared", "staged", *COMMIT), ("partition.staging_cleared", "file.written")),
    _scenario(
        "day replaced", partial(step, value=1), (*COMMIT, "staged@2", "moved@2", "file.written@2"), ("partition.staged", "file.written@2")
    ),
    _scenario("same rows again", step, ("same_found", "old_removed", "staging_removed")),
    _scenario("day damaged", damaged, ("damaged_moved_aside", "moved", "marker_replaced")),
]
