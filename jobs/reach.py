"""Which input days each table's day is made from: the one place that says so, for the jobs and for whoever asks what is out of date.

Needs no Spark. Every input is of the day itself or of a day before it, but for a snapshot of items: a day without its own takes the next
later one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from datetime import date, timedelta
from functools import cached_property

from jobs.config import Config
from jobs.dates import days_between
from jobs.lake import Inputs, Lake

InputDays = dict[str, list[date]]


class Reach:
    """Input days and inputs of the days of feature tables, as the settings in force and the lake have it.

    Args:
        config: settings in force.
        lake: its snapshots of items decide which one stands for a day; they are listed once.
    """

    def __init__(self, config: Config, lake: Lake) -> None:
        self.config = config
        self.lake = lake
        self._content: dict[tuple[str, date], str] = {}
        self._made_from: dict[str, Callable[[date], InputDays]] = {
            "item_daily": self._item_daily,
            "item_features": self._item_features,
            "u2i_daily": self._u2i_daily,
            "u2i_crosses": self._u2i_crosses,
            "cross_arrays": self._cross_arrays,
            "examples": self._examples,
            "user_state": self._user_state,
        }

    def of(self, table: str, day: date) -> InputDays:
        """Days of each input table that a day of a feature table is made from.

        Raises:
            ConfigError: cross arrays of a day that no run is possible for.
        """
        return self._made_from[table](day)

    def over(self, table: str, days: Iterable[date], source: str) -> list[date]:
        """Days of one input table that any of some days of a feature table is made from, ascending."""
        return sorted({found for day in days for found in self.of(table, day)[source]})

    def inputs(self, table: str, day: date) -> Inputs:
        """What a marker of the day would hold as its inputs, if the day were built now; each input's marker is read once.

        Raises:
            MissingPartition: an input is not in the lake.
        """
        found: Inputs = {"feature_spec": {"digest": self.spec_digest}}
        for source, days in self.of(table, day).items():
            unread = [one for one in days if (source, one) not in self._content]
            for one, marker in zip(unread, self.lake.require(source, unread), strict=True):
                self._content[source, one] = marker.content
            found[source] = {one.isoformat(): self._content[source, one] for one in days}
        return found

    def forget(self, table: str, days: Iterable[date]) -> None:
        """Read the markers of these days again: they were just committed."""
        for day in days:
            self._content.pop((table, day), None)

    def snapshot(self, day: date) -> date:
        """Day of the items snapshot that stands for a day: its own, else the next later one in the lake.

        Snapshots need not reach as far back as events; a day with none on or after it stands for itself, and reading it says so.
        """
        at = bisect_left(self._snapshots, day)
        return self._snapshots[at] if at < len(self._snapshots) else day

    @cached_property
    def spec_digest(self) -> str:
        """Digest of the feature spec in force."""
        return self.config.dataset.spec().digest

    @cached_property
    def _snapshots(self) -> list[date]:
        return self.lake.days("items")

    def _before(self, last: date, days: int) -> list[date]:
        return window_before(last, days, self.config.dataset.first_date)

    def _item_daily(self, day: date) -> InputDays:
        return {"interactions": [day]}

    def _item_features(self, day: date) -> InputDays:
        dataset = self.config.dataset
        longest = max(*dataset.u2i.windows, dataset.catalogue.window_days)
        return {"item_daily": self._before(day, longest), "items": [self.snapshot(day)]}

    def _u2i_daily(self, day: date) -> InputDays:
        return {"interactions": [day], "items": [self.snapshot(day)]}

    def _u2i_crosses(self, day: date) -> InputDays:
        return {"u2i_daily": self._before(day - timedelta(days=1), max(self.config.dataset.u2i.windows)), "requests": [day]}

    def _cross_arrays(self, day: date) -> InputDays:
        dataset, window = self.config.dataset, self.config.run_window(day)
        longest = max(dataset.u2i.windows)
        # Every item that can be in a catalogue of the window has its events in these days.
        popular = self._before(window.train_first - timedelta(days=1), max(longest, dataset.catalogue.window_days))
        return {
            "u2i_daily": days_between(max(window.train_first - timedelta(days=longest), dataset.first_date), day),
            "item_daily": days_between(popular[0], day),
            "offers": window.examples(),
            "requests": window.examples(),
        }

    def _examples(self, day: date) -> InputDays:
        own = {table: [day] for table in ("requests", "offers", "interactions", "users", "u2i_crosses")}
        history = self._before(day, self.config.dataset.history.days + 1)
        return {**own, "item_features": [day - timedelta(days=1)], "u2i_daily": history}

    def _user_state(self, day: date) -> InputDays:
        history = self._before(day, self.config.dataset.history.days)
        return {"u2i_daily": history, "requests": history, "users": [day], "offers": [day]}


def window_before(last: date, days: int, first_date: date) -> list[date]:
    """The ``days`` days that end with ``last``, cut at the first day with data."""
    return days_between(max(last - timedelta(days=days - 1), first_date), last)


def spans(days: Sequence[date], length: int) -> list[list[date]]:
    """Ascending days in groups that each lie within ``length`` consecutive days."""
    groups: list[list[date]] = []
    for day in days:
        if not groups or day >= groups[-1][0] + timedelta(days=length):
            groups.append([])
        groups[-1].append(day)
    return groups
