"""Data gates: what is staged must pass before it is committed.

``check`` profiles all staged days in a few Spark aggregations, lets Great Expectations judge them against the rules of the table
and against the trailing days (whose profiles lie in their markers), writes the data docs, and raises ``GateFailed`` if a
critical expectation is not met. Committing the days with ``CheckReport.stats`` makes them trailing days of later ones.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from jobs.checks import docs, quarantine
from jobs.checks.profile import DayProfile, compare, day_profiles
from jobs.checks.rules import Gate, Severity
from jobs.checks.suites import Finding, Suite, days_suite, judge, rows_suite, schema_suite
from jobs.checks.tables import gate_of
from jobs.config import ChecksConfig, Config
from jobs.entry import JobError
from jobs.files import replace_text
from jobs.lake import Lake, shown

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["CheckReport", "Finding", "GateFailed", "check"]
log = logging.getLogger(__name__)


class GateFailed(JobError):
    """A critical expectation was not met; nothing was committed."""

    def __init__(self, message: str, report: CheckReport) -> None:
        super().__init__(message)
        self.report = report


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What a gate found.

    Attributes:
        findings: expectations that were not met, critical ones first.
        stats: per day the figures to commit with its marker.
        short_history: days with too few trailing days for volume and drift checks.
        docs: first page of the table's data docs, ``None`` if the gates are off.
    """

    table: str
    days: list[date]
    findings: list[Finding] = field(default_factory=list)
    stats: dict[date, dict[str, float]] = field(default_factory=dict)
    short_history: list[date] = field(default_factory=list)
    docs: Path | None = None

    @property
    def critical(self) -> list[Finding]:
        """Findings that stop the commit."""
        return [f for f in self.findings if f.severity == "critical"]


def check(table: str, staged: DataFrame, days: list[date], *, config: Config, lake: Lake, spark: SparkSession) -> CheckReport:
    """Judge staged days of a table; call it between ``Staging.write`` and ``Staging.commit``.

    Args:
        table: a table with a gate: any raw table of the lake, item_features, u2i_crosses, examples or recommendations.
        staged: the staged rows of all ``days``, read back from storage.
        days: the days that will be committed; earlier ones serve as trailing days of later ones.
        config: settings in force.
        lake: where the markers of the trailing days are.
        spark: the session of ``staged``.

    Returns:
        The report; its ``stats`` belong into the markers.

    Raises:
        GateFailed: a critical expectation is not met. The bad rows are in the quarantine.
        ValueError: the table has no gate.
    """
    gate = gate_of(table, config)
    days = sorted(days)
    types = {f.name: f.dataType.simpleString() for f in staged.schema.fields}
    if any(c not in types or (accepted and types[c] not in accepted) for c, accepted in gate.types.items()):
        _refuse_schema(gate, types, days, config)
    profiles = day_profiles(gate, staged)
    for day in days:
        profiles.setdefault(day.isoformat(), DayProfile())
    stats = {day: profiles[day.isoformat()].stats() for day in days}
    if not config.checks.enabled:
        return CheckReport(table=table, days=days, stats=stats)
    suites, short = _suites(gate, types, profiles, days, config, lake)
    context = docs.open_context(config, table)
    findings = judge(context, table, suites, days[-1])
    page = docs.write(config, context, table)
    report = CheckReport(table=table, days=days, findings=findings, stats=stats, short_history=short, docs=page)
    _log(report)
    if report.critical:
        raise GateFailed(_quarantine(gate, staged, report, config), report)
    return report


def _suites(
    gate: Gate, types: Mapping[str, str], profiles: dict[str, DayProfile], days: Sequence[date], config: Config, lake: Lake
) -> tuple[list[Suite], list[date]]:
    limits = config.checks
    known = _history(gate, profiles, days, config, lake)
    trailing = {d: {t: known[t] for t in _before(d, limits.trailing_days) if t in known} for d in days}
    compared = {d.isoformat(): compare(gate, profiles[d.isoformat()], trailing[d], limits.min_trailing_days) for d in days}
    asked = {d.isoformat(): profiles[d.isoformat()] for d in days}
    empty = {d.isoformat(): None if d in limits.quiet_days else _if_empty(gate, d, known, trailing[d].values(), limits, lake) for d in days}
    suites = [schema_suite(gate, types), rows_suite(gate, profiles), days_suite(gate, asked, compared, empty, limits)]
    return suites, [d for d in days if compared[d.isoformat()].history < limits.min_trailing_days]


def _before(day: date, count: int) -> list[date]:
    return [day - timedelta(days=i) for i in range(1, count + 1)]


def _history(gate: Gate, profiles: Mapping[str, DayProfile], days: Sequence[date], config: Config, lake: Lake) -> dict[date, DayProfile]:
    """Profiles by day: of the staged days, and from the markers of committed trailing days that were made with the same settings."""
    known, settings = {day: profiles[day.isoformat()] for day in days}, config.dataset.rows_digest(raw=gate.raw)
    for day in {t for d in days for t in _before(d, config.checks.trailing_days)} - known.keys():
        marker = lake.marker(gate.table, day)
        if marker is not None and marker.config == settings:
            known[day] = DayProfile.from_stats(marker.rows, marker.stats)
    return known


def _if_empty(
    gate: Gate, day: date, known: Mapping[date, DayProfile], trailing: Iterable[DayProfile], limits: ChecksConfig, lake: Lake
) -> Severity | None:
    """How bad it is when a day has no rows.

    Raw tables: a warning if a later day has rows, which shows that the source did arrive and the day was a quiet one.
    Made from another table: fine where that has no rows either; a warning where its users may all be new and no limit says that a day's
    volume cannot fall to nothing. Otherwise critical, once earlier days had rows.
    """
    if gate.raw and _arrived_later(gate.table, day, known, lake):
        return "warning"
    if gate.source:
        marker = lake.marker(gate.source, day)
        if marker is not None and not marker.rows:
            return None
    full = sum(p.rows > 0 for p in trailing)
    limited = full >= limits.min_trailing_days and limits.row_count_ratio[0] > 0
    if gate.newcomers and not limited:
        return "warning"
    return "critical" if gate.must_have_rows or full else "warning"


def _arrived_later(table: str, day: date, known: Mapping[date, DayProfile], lake: Lake) -> bool:
    if any(d > day and p.rows for d, p in known.items()):
        return True
    later = (lake.marker(table, d) for d in lake.days(table) if d > day and d not in known)
    return any(marker is not None and marker.rows for marker in later)


def _refuse_schema(gate: Gate, types: Mapping[str, str], days: list[date], config: Config) -> NoReturn:
    """Without the right columns no rule can be computed: only the schema is judged."""
    context = docs.open_context(config, gate.table)
    findings = judge(context, gate.table, [schema_suite(gate, types)], days[-1])
    report = CheckReport(table=gate.table, days=days, findings=findings, docs=docs.write(config, context, gate.table))
    raise GateFailed(_message(report, {}, None), report)


def _quarantine(gate: Gate, staged: DataFrame, report: CheckReport, config: Config) -> str:
    """Keep bad rows and the findings; the message of the failure."""
    rules = {r.name for r in gate.rules} | {k.name for k in gate.keys}
    broken = [f for f in report.critical if f.rule in rules]
    days = sorted({ds for f in broken for ds in f.observed})
    home = docs.place(config, "quarantine") / gate.table
    examples: dict[str, list[str]] = {}
    if broken:
        bad = quarantine.bad_rows(gate, staged, [f.rule for f in broken], days, config.checks.quarantine_rows)
        quarantine.keep(home.parent, gate, bad, days)
        examples = {f.rule: quarantine.examples_of(gate, bad, f.rule, config.checks.bad_values_shown) for f in broken}
    home.mkdir(parents=True, exist_ok=True)
    said = [asdict(f) | {"examples": examples.get(f.rule, [])} for f in report.findings]
    replace_text(home / f"findings-{report.days[-1]}.json", json.dumps(said, indent=1) + "\n")
    return _message(report, examples, home)


def _message(report: CheckReport, examples: Mapping[str, list[str]], home: Path | None) -> str:
    lines = [
        f"table {report.table}, {shown(report.days)}: {len(report.critical)} critical expectations not met; "
        "nothing was committed, what was there before stays"
    ]
    for f in report.critical:
        lines.append(f"  {f.column}: expected {f.says}; {_observed(f)}")
        lines += [f"    for example {text}" for text in examples.get(f.rule, [])]
    lines.append(f"  data docs: {report.docs}" + (f"; quarantine: {home}" if home else ""))
    return "\n".join(lines)


def _observed(finding: Finding, most: int = 4) -> str:
    items = sorted(finding.observed.items())
    said = ", ".join(f"{ds}: {value}" if ds else value for ds, value in items[:most])
    return said if len(items) <= most else f"{said}, … ({len(items)} days)"


def _log(report: CheckReport) -> None:
    for f in report.findings:
        if f.severity == "warning":
            log.warning("table %s, %s: expected %s; %s", report.table, f.column, f.says, _observed(f))
    if report.short_history:
        log.info("table %s: not enough history for volume and drift checks on %s", report.table, shown(report.short_history))
    log.info("table %s: %d days checked, %d critical, data docs %s", report.table, len(report.days), len(report.critical), report.docs)
