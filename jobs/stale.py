"""Which committed days of which tables are out of date, and why.

``python -m jobs.stale --date D`` says it of the days from D on. Only markers are read, and of the raw tables what their source's files are
now: no Spark session is started, no row is looked at. A day whose input is out of date itself is so *by way of* it: it will be rebuilt
if the input turns out to have other rows.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Literal

from jobs.config import Config, ConfigError
from jobs.entry import Invocation, JobError, run
from jobs.lake import CorruptPartition, Inputs, Lake, Marker, shown
from jobs.provenance import RAW_TABLES, TABLES, code_of
from jobs.reach import Reach

log = logging.getLogger(__name__)
Kind = Literal["raw", "input", "code", "settings", "damaged", "gone", "by way of"]
Key = tuple[str, date]
RawInputs = Callable[[str, date], Inputs]


@dataclass(frozen=True, kw_only=True)
class Reason:
    """One reason why a day is out of date.

    Attributes:
        kind: ``raw`` files or an ``input`` changed, ``code`` or ``settings`` did, its marker is ``damaged``, it is ``gone`` though
            other days are made from it, or it is so ``by way of`` an input that is out of date.
        what: the input table or raw table, with what is wrong for a damaged marker.
        days: days of the input; ``all`` for raw files that hold every day.
    """

    kind: Kind
    what: str = ""
    days: tuple[str, ...] = ()

    def said(self, day: date) -> str:
        """The reason of a day, for people: in words that many days have in common."""
        plain = {"code": "the job's code changed", "settings": "settings changed", "gone": "gone, and other days are made from it"}
        if self.kind in plain:
            return plain[self.kind]
        if self.kind == "damaged":
            return f"damaged: {self.what}"
        if self.kind == "by way of":
            return f"by way of {self.what}"
        names = {(): "", ("all",): "", (day.isoformat(),): " of the day"}
        which = names.get(self.days, f" of {', '.join(self.days)}" if len(self.days) <= 3 else " of several days")
        return f"{'raw files ' if self.kind == 'raw' else ''}changed: {self.what}{which}"


@dataclass(frozen=True, kw_only=True)
class Stale:
    """A day of a table that is out of date."""

    table: str
    day: date
    reasons: tuple[Reason, ...]

    @property
    def only_by_way(self) -> bool:
        """Whether nothing it was made from has changed yet."""
        return all(reason.kind == "by way of" for reason in self.reasons)

    @property
    def why(self) -> str:
        """All reasons, for people."""
        return "; ".join(reason.said(self.day) for reason in self.reasons)


@dataclass(frozen=True)
class Report:
    """What is out of date in a lake.

    Attributes:
        stale: by table and day, tables after those that they are made from.
        unknown: days that cannot be judged, with the reason: their raw files are gone, or no run is possible for them any more.
    """

    stale: dict[Key, Stale] = field(default_factory=dict)
    unknown: dict[Key, str] = field(default_factory=dict)

    def between(self, first: date | None, last: date | None) -> Report:
        """The part of it that concerns some days."""

        def inside(key: Key) -> bool:
            return (first is None or key[1] >= first) and (last is None or key[1] <= last)

        return Report({k: v for k, v in self.stale.items() if inside(k)}, {k: v for k, v in self.unknown.items() if inside(k)})

    def days(self) -> dict[str, list[date]]:
        """The days that are out of date, by table."""
        found: dict[str, list[date]] = {}
        for table, day in sorted(self.stale, key=lambda key: (TABLES.index(key[0]), key[1])):
            found.setdefault(table, []).append(day)
        return found

    def with_inputs(self, part: Report) -> Report:
        """A part of this report and every day that the part is made from and that is out of date too."""
        left, kept = list(part.stale), dict(part.stale)
        while left:
            for reason in self.stale[left.pop()].reasons:
                for ds in reason.days if reason.kind == "by way of" else ():
                    key = (reason.what, date.fromisoformat(ds))
                    if key not in kept:
                        kept[key] = self.stale[key]
                        left.append(key)
        return Report({key: one for key, one in self.stale.items() if key in kept}, part.unknown)

    def rows(self) -> list[tuple[str, list[date], str]]:
        """Table, days and reasons for people; days of a table with the same reasons are one row."""
        found: dict[tuple[str, str], list[date]] = {}
        for (table, day), one in self.stale.items():
            found.setdefault((table, one.why), []).append(day)
        return [(table, days, why) for (table, why), days in found.items()]


def find(config: Config, lake: Lake, raw_inputs: RawInputs, code: Callable[[str], str] = code_of) -> Report:
    """Hold every marker of the lake against what it would be now.

    Args:
        config: settings in force.
        lake: the lake.
        raw_inputs: what a day of a raw table is made from now, see ``Source.inputs``.
        code: code digest of a table's job.
    """
    return _Survey(config, lake, raw_inputs, code).report()


class _Survey:
    def __init__(self, config: Config, lake: Lake, raw_inputs: RawInputs, code: Callable[[str], str]) -> None:
        self.config, self.lake, self.raw_inputs, self.code = config, lake, raw_inputs, code
        self.reach, self.found = Reach(config, lake), Report()
        self.markers: dict[Key, Marker] = {}
        self.settings = {raw: config.dataset.rows_digest(raw=raw) for raw in (False, True)}

    def report(self) -> Report:
        days = {table: self.lake.days(table) for table in TABLES}
        there = {(table, day) for table, some in days.items() for day in some}
        for table, day in self._gone(days, there):
            if self._can_be_built(table, day):
                self.found.stale[table, day] = Stale(table=table, day=day, reasons=(Reason(kind="gone"),))
        for table in TABLES:
            for day in days[table]:
                self._look(table, day)
        order = sorted(self.found.stale, key=lambda key: (TABLES.index(key[0]), key[1]))
        return Report({key: self.found.stale[key] for key in order}, self.found.unknown)

    def _gone(self, days: Mapping[str, list[date]], there: set[Key]) -> set[Key]:
        """Inputs that are not in the lake, and their inputs in turn."""
        gone: set[Key] = set()
        for table in reversed([table for table in TABLES if table not in RAW_TABLES]):
            for day in [*days[table], *(day for source, day in gone if source == table)]:
                gone |= {key for key in self._inputs(table, day) if key not in there}
        return gone

    def _inputs(self, table: str, day: date) -> Iterable[Key]:
        try:
            return [(source, one) for source, some in self.reach.of(table, day).items() for one in some]
        except ConfigError as error:
            self.found.unknown[table, day] = str(error)
            return []

    def _can_be_built(self, table: str, day: date) -> bool:
        try:
            return table not in RAW_TABLES or bool(self.raw_inputs(table, day))
        except JobError as error:
            self.found.unknown[table, day] = str(error)
            return False

    def _look(self, table: str, day: date) -> None:
        if (table, day) in self.found.unknown:
            return
        try:
            marker = self.lake.marker(table, day)
            if marker is None:  # removed since the days were listed
                return
            self.markers[table, day] = marker
            reasons = [*self._own(marker), *(self._raw(marker, day) if table in RAW_TABLES else self._made_from(marker, day))]
        except CorruptPartition as error:
            reasons = [Reason(kind="damaged", what=str(error))]
        except JobError as error:
            self.found.unknown[table, day] = str(error)
            return
        if reasons:
            self.found.stale[table, day] = Stale(table=table, day=day, reasons=tuple(reasons))

    def _own(self, marker: Marker) -> list[Reason]:
        reasons = [Reason(kind="code")] if marker.code != self.code(marker.table) else []
        return reasons + ([Reason(kind="settings")] if marker.config != self.settings[marker.table in RAW_TABLES] else [])

    def _raw(self, marker: Marker, day: date) -> list[Reason]:
        now = self.raw_inputs(marker.table, day)
        return [
            Reason(kind="raw", what=name.removeprefix("raw."), days=tuple(sorted({*now.get(name, {}), *marker.inputs.get(name, {})})))
            for name in sorted({*now, *marker.inputs})
            if now.get(name) != marker.inputs.get(name)
        ]

    def _made_from(self, marker: Marker, day: date) -> list[Reason]:
        changed, by_way = [], []
        for source, days in self.reach.of(marker.table, day).items():
            then = marker.inputs.get(source, {})
            if lost := [one for one in days if (source, one) in self.found.unknown and (source, one) not in self.markers]:
                raise JobError(f"its input {source} {shown(lost)} is not in the lake, and cannot be built")
            stale = [one.isoformat() for one in days if (source, one) in self.found.stale]
            others = {one.isoformat(): self._content(source, one) for one in days if one.isoformat() not in stale}
            now = {ds: content for ds, content in others.items() if content is not None}
            differing = sorted({ds for ds in {*then, *now} - set(stale) if then.get(ds) != now.get(ds)})
            # An input that is out of date may already be another than the one the day was made from.
            differing += [ds for ds in stale if ds in then and self._content(source, date.fromisoformat(ds)) not in (None, then[ds])]
            if differing:
                changed.append(Reason(kind="input", what=source, days=tuple(sorted(differing))))
            if stale:
                by_way.append(Reason(kind="by way of", what=source, days=tuple(stale)))
        return changed + by_way

    def _content(self, table: str, day: date) -> str | None:
        marker = self.markers.get((table, day))
        return None if marker is None else marker.content


def survey(config: Config) -> Report:
    """``find`` for the lake and the source of the settings in force."""
    from jobs.sources import open_source

    lake = Lake(config.paths.at("lake"))
    lake.belongs_to(config.dataset.name)
    return find(config, lake, open_source(config.dataset).inputs)


def summary(report: Report) -> list[str]:
    """Lines that say what is out of date."""
    lines = [f"{table} {shown(days)}: {why}" for table, days, why in report.rows()]
    return lines + [f"{table} {day} cannot be judged: {why}" for (table, day), why in report.unknown.items()]


def refresh_command(report: Report) -> str:
    """The command that rebuilds what a report names."""
    days = sorted({day for _, day in report.stale})
    return f"dig lake refresh --from {days[0]} --to {days[-1]}"


def main(call: Invocation) -> None:
    """Log the days from a date on that are out of date, and the command that refreshes them."""
    report = survey(call.config).between(call.date, None)
    for line in summary(report):
        log.warning("%s", line)
    if report.stale:
        log.warning("%d days are out of date; refresh them with: %s", len(report.stale), refresh_command(report))
    else:
        log.info("nothing is out of date from %s on", call.date)


if __name__ == "__main__":
    sys.exit(run("stale", main))
