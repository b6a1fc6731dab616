"""Great Expectations suites over three small frames: column types, broken rules per day, figures per day.

Spark counts (see ``profile``), Great Expectations judges and writes the docs: one Spark pass serves every rule, where a suite
on the Spark frame itself would start a job for each expectation that wants to show values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from jobs.checks.profile import Comparison, DayProfile
from jobs.checks.rules import UNIQUE, Gate, Severity
from jobs.config import ChecksConfig

Bounds = tuple[float | None, float | None]
SEVERITIES: tuple[Severity, Severity] = ("critical", "warning")
ROWS, RATE, POSITIVES, PRESENT = "rows over trailing median", "label rate over trailing median", "positives", "has rows"


@dataclass(frozen=True, kw_only=True)
class Expected:
    """One expectation on a column of a frame that has a row per day (or the one row of column types).

    Attributes:
        frame_column: column of the frame; ``column`` and ``says`` are what messages name.
        bounds: allowed range; or ``values`` that are allowed; or neither, then the column must exist.
        unit: what the observed value is, for messages.
    """

    frame_column: str
    column: str
    says: str
    severity: Severity
    bounds: Bounds = (None, None)
    values: tuple[str, ...] = ()
    unit: str = ""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """An expectation that was not met.

    Attributes:
        observed: value by day; the key is ``''`` for findings about the table as a whole.
    """

    table: str
    column: str
    says: str
    severity: Severity
    observed: dict[str, str]

    @property
    def rule(self) -> str:
        """Column and what is said of it."""
        return f"{self.column} {self.says}"


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A named frame and what is expected of it: ``rows`` has one mapping per day with key ``ds``."""

    name: str
    rows: list[dict[str, Any]]
    expected: tuple[Expected, ...]
    exact_columns: tuple[str, ...] = ()


def _expect(frame_column: str, column: str, says: str, severity: Severity = "critical", **rest: Any) -> Expected:
    return Expected(frame_column=frame_column, column=column, says=says, severity=severity, **rest)


def schema_suite(gate: Gate, found: Mapping[str, str]) -> Suite:
    """Columns and types of a staged frame against those of the gate."""
    expected = []
    for column, types in gate.types.items():
        expected.append(_expect(column, column, "present"))
        if column in found and types:
            expected.append(_expect(column, column, f"of type {' or '.join(types)}", values=types))
    return Suite(name=f"{gate.table}_schema", rows=[dict(found)], expected=tuple(expected), exact_columns=tuple(gate.types))


def rows_suite(gate: Gate, days: Mapping[str, DayProfile]) -> Suite:
    """Bad rows per day and rule; a rule with ``share`` sees the share of bad rows instead of their number."""
    shares = {rule.name: rule.share for rule in gate.rules}
    expected = [
        _expect(r.name, r.column, r.says, r.severity, bounds=(None, r.share), unit="of the rows are bad" if r.share else "bad rows")
        for r in gate.rules
    ]
    expected += [_expect(k.name, ", ".join(k.columns), UNIQUE, bounds=(None, 0), unit="rows too many") for k in gate.keys]
    rows = []
    for ds, day in sorted(days.items()):
        counts = {e.frame_column: float(day.bad.get(e.frame_column, 0)) for e in expected}
        rows.append({"ds": ds} | {name: n / max(day.rows, 1) if shares.get(name) else n for name, n in counts.items()})
    return Suite(name=f"{gate.table}_rows", rows=rows, expected=tuple(expected))


def days_suite(
    gate: Gate,
    days: Mapping[str, DayProfile],
    compared: Mapping[str, Comparison],
    if_empty: Mapping[str, Severity | None],
    limits: ChecksConfig,
) -> Suite:
    """Figures per day against the trailing days.

    Args:
        gate: the table's gate.
        days: profiles by day.
        compared: each day against its trailing days.
        if_empty: per day how bad it would be to have no rows; ``None`` where that is fine.
        limits: bounds of the ratios and of PSI.
    """
    times = "times the trailing median"
    expected = [_expect(f"{PRESENT} ({s})", "(rows)", PRESENT, s, bounds=(1, None), unit="rows") for s in SEVERITIES]
    expected.append(_expect(ROWS, "(rows)", ROWS, bounds=limits.row_count_ratio, unit=times))
    if "positives" in gate.figures:
        expected.append(_expect(RATE, "label", RATE, bounds=limits.label_rate_ratio, unit=times))
        expected.append(_expect(POSITIVES, "label", "at least one positive", "warning", bounds=(1, None), unit="positives"))
    for name in gate.feature_names:
        for severity, limit in zip(SEVERITIES, (limits.max_psi, limits.warn_psi), strict=True):
            says = f"PSI against the trailing days at most {limit:g}"
            expected.append(_expect(f"PSI {name}", name, says, severity, bounds=(None, limit), unit="beyond the usual"))
    rows = [{"ds": ds} | _day_row(gate, day, compared[ds], if_empty.get(ds)) for ds, day in sorted(days.items())]
    return Suite(name=f"{gate.table}_days", rows=rows, expected=tuple(expected))


def _day_row(gate: Gate, day: DayProfile, compared: Comparison, empty: Severity | None) -> dict[str, float]:
    row = {f"{PRESENT} ({severity})": float(day.rows) if empty == severity else math.nan for severity in SEVERITIES}
    row |= {"rows": float(day.rows), "trailing days": float(compared.history), ROWS: _number(compared.rows)}
    if "positives" in gate.figures:
        row |= {RATE: _number(compared.label_rate), "label rate": _number(day.label_rate)}
        row[POSITIVES] = day.figures.get("positives", 0.0) if day.rows else math.nan
    return row | {f"PSI {name}": _number(value) for name, value in compared.psi.items()}


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def judge(context: Any, table: str, suites: Sequence[Suite], last: date) -> list[Finding]:
    """Run suites in a Great Expectations context; what was not met, critical findings first.

    Args:
        table: name of the table.
        suites: what to run.
        context: see ``docs.open_context``.
        last: day that the run is filed under.

    Raises:
        RuntimeError: an expectation could not be evaluated, which is an error of the gate itself.
    """
    source = context.data_sources.add_pandas(table)
    found = [finding for suite in suites for finding in _run(context, source, table, suite, last)]
    return sorted(found, key=lambda f: (f.severity != "critical", f.rule))


def _run(context: Any, source: Any, table: str, suite: Suite, last: date) -> list[Finding]:
    from datetime import UTC, datetime, time

    import great_expectations as gx
    import pandas as pd
    from great_expectations.core.run_identifier import RunIdentifier

    built = context.suites.add(gx.ExpectationSuite(suite.name, expectations=_expectations(suite)))
    batch = source.add_dataframe_asset(suite.name).add_batch_definition_whole_dataframe("days")
    definition = gx.ValidationDefinition(name=suite.name, data=batch, suite=built)
    by_day = "ds" in suite.rows[0] and not suite.exact_columns
    wanted = {"result_format": "COMPLETE", **({"unexpected_index_column_names": ["ds"]} if by_day else {})}
    run_id = RunIdentifier(run_name=last.isoformat(), run_time=datetime.combine(last, time(), UTC))
    result = definition.run(batch_parameters={"dataframe": pd.DataFrame(suite.rows)}, result_format=wanted, run_id=run_id)
    return [_finding(table, r, by_day) for r in result.results if not r.success]


def _expectations(suite: Suite) -> list[Any]:
    import great_expectations.expectations as gxe

    made: list[Any] = []
    for e in suite.expected:
        common = {
            "severity": e.severity,
            "description": f"{e.column}: {e.says}",
            "meta": {"column": e.column, "says": e.says, "unit": e.unit, "severity": e.severity},
        }
        if e.values:
            made.append(gxe.ExpectColumnValuesToBeInSet(column=e.frame_column, value_set=list(e.values), **common))
        elif e.bounds != (None, None):
            low, high = e.bounds
            made.append(gxe.ExpectColumnValuesToBeBetween(column=e.frame_column, min_value=low, max_value=high, **common))
        else:
            made.append(gxe.ExpectColumnToExist(column=e.frame_column, **common))
    if suite.exact_columns:
        meta = {"column": "(columns)", "says": "none beside the declared ones", "unit": "", "severity": "warning"}
        made.append(gxe.ExpectTableColumnsToMatchSet(column_set=list(suite.exact_columns), exact_match=True, severity="warning", meta=meta))
    return made


def _finding(table: str, result: Any, by_day: bool) -> Finding:
    raised = result.exception_info or {}
    if raised.get("raised_exception") or any(isinstance(v, dict) and v.get("raised_exception") for v in raised.values()):
        raise RuntimeError(f"table {table}: expectation {result.expectation_config.meta} could not be evaluated: {raised}")
    meta, found = result.expectation_config.meta, result.result
    if by_day:
        name = result.expectation_config.kwargs["column"]
        observed = {row["ds"]: f"{row[name]:.4g} {meta['unit']}" for row in found["unexpected_index_list"]}
    elif "unexpected_list" in found:
        observed = {"": f"found {', '.join(map(str, found['unexpected_list']))}"}
    elif meta["column"] == "(columns)":
        observed = {"": f"found also {', '.join(found['details']['mismatched'].get('unexpected', [])) or 'nothing'}"}
    else:
        observed = {"": "missing"}
    return Finding(table=table, column=meta["column"], says=meta["says"], severity=meta["severity"], observed=observed)
