"""A lake of markers alone, for what reads nothing else: each day's content follows from what it was made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date

from jobs.backfill import plan
from jobs.config import Config
from jobs.dates import days_between
from jobs.lake import MARKER, Inputs, Lake, Marker, digest_of
from jobs.provenance import RAW_TABLES, TABLES, code_of
from jobs.reach import Reach
from jobs.sources.base import RawDataError
from jobs.stale import Report, find


def march(first: int, last: int | None = None) -> list[date]:
    """Days of the small data set."""
    return days_between(date(2024, 3, first), date(2024, 3, last or first))


@dataclass
class MarkerWorld:
    """Markers of a backfill from the 10th to the 30th of March, and raw files that may change.

    Attributes:
        raw: digest of each day's raw file; a day that is not there was never delivered, or is gone.
        content: contents that do not follow from the inputs.
    """

    config: Config
    raw: dict[date, str] = field(default_factory=lambda: dict.fromkeys(march(1, 30), "delivered"))
    content: dict[tuple[str, date], str] = field(default_factory=dict)
    codes: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lake = Lake(self.config.paths.at("lake"))

    def raw_inputs(self, table: str, day: date) -> Inputs:
        if day not in self.raw:
            raise RawDataError(f"raw table interactions: no file of {day}")
        return {"raw.interactions": {day.isoformat(): self.raw[day]}}

    def code(self, table: str) -> str:
        return self.codes.get(table) or code_of(table)

    def built(self, first: int = 10, last: int = 30) -> MarkerWorld:
        """The lake after a backfill."""
        for chunk in plan(self.config, date(2024, 3, first), date(2024, 3, last)):
            self.build(chunk.request.days)
        return self

    def build(self, days: Mapping[str, Sequence[date]]) -> None:
        """Commit days as their jobs would."""
        for table in TABLES:
            for day in days.get(table, ()):
                self.commit(table, day)

    def commit(self, table: str, day: date) -> None:
        """Commit one day as its job would."""
        raw = table in RAW_TABLES
        inputs = self.raw_inputs(table, day) if raw else Reach(self.config, self.lake).inputs(table, day)
        marker = Marker(
            table=table,
            ds=day.isoformat(),
            data="data-x",
            rows=0,
            content=self.content.get((table, day)) or digest_of([table, inputs]),
            schema="",
            columns={},
            code=self.code(table),
            config=self.config.dataset.rows_digest(raw=raw),
            inputs=inputs,
            stats={},
            job="test",
        )
        home = self.lake.day_dir(table, day)
        (home / marker.data).mkdir(parents=True, exist_ok=True)
        (home / MARKER).write_text(marker.text())

    def report(self) -> Report:
        return find(self.config, self.lake, self.raw_inputs, self.code)
