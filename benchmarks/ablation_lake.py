"""Where the ablation finds its features: in the lake of the daily run, or a quick run in a small one of its own.

A quick run judges fewer days and trains on fewer, so from nothing it need not build the whole window. It cannot build its own window in the
common lake, though. Most partitions depend on their day alone, but ``cross_arrays`` of a date reach as far back as the window of the
settings they are made with: events and popularity since the first training day, less the longest window of the features. Built for a short
window they would take the place of the daily run's, which then could not look up its older days; and its own next build would take them
back. The other way round is harmless: crosses from arrays of the whole window are those of every shorter one that ends on the same date,
for a look-up is a sum between two times, popularity is kept by day, and an offer key has what was offered on its newest day in both. One
thing knows how far back arrays reach: what a user bought before, hence which items count as new to him. The whole window's reach further,
so figures on new items are not the same from both; as the content of the arrays is part of a run's key, no table mixes them.

So a quick run takes the common lake where the whole window is there and up to date, and else builds its days in
``<paths.home>/benchmarks/ablation-quick/lake``. The rows of a day are the same in both.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path

from jobs.backfill import is_done, plan
from jobs.config import Config
from jobs.lake import Lake


def quick_lake(whole: Config, quick: Config, day: date) -> Path | None:
    """The lake that a quick run must build for itself; None if the common one has all it reads.

    Args:
        whole: settings of the daily run.
        quick: the same with the window of the quick run.
        day: date of both.

    Raises:
        JobError: the common lake belongs to another data set, or the raw tables cannot be read.
    """
    enough = whole.run_window(day).train_first <= quick.run_window(day).train_first
    if enough and has_window(whole, day):
        return None
    return Path(whole.paths.home).resolve() / "benchmarks" / "ablation-quick" / "lake"


def has_window(config: Config, day: date) -> bool:
    """Whether every partition that a run for the day reads is in the lake and up to date; reads markers alone.

    Raises:
        JobError: the lake belongs to another data set, or the raw tables cannot be read.
    """
    lake = Lake(config.paths.at("lake"))
    if not lake.belongs_to(config.dataset.name):
        return False
    return all(is_done(config, lake, chunk.request) for chunk in plan(config, config.run_window(day).train_first, day))
