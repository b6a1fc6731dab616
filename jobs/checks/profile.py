"""What a day looks like in a few numbers: rows, broken rules, label rate, a histogram of each feature; and how days compare.

A profile is kept in the day's marker (``stats``), so that comparing a day with its trailing days reads no old data. All days of
a call are profiled together: one aggregation for rows and rules, one for histograms, one for keys.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from jobs.checks.rules import BINS, LARGE_DAY, Gate

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

HIST = "hist"
NOISE_QUANTILE = 0.999
USUAL_QUANTILE = 0.9
WEEK = 7
SHARE_FLOOR = 1e-3
CALENDAR_SHARE = 0.99
Histogram = NDArray[np.float64]


@dataclass(kw_only=True)
class DayProfile:
    """Figures of one day.

    Attributes:
        bad: rows that break a rule, by rule name; not kept in markers.
        figures: the gate's own aggregates, such as ``positives``.
        hist: counts ``(BINS,)`` per feature.
    """

    rows: int = 0
    bad: dict[str, int] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    hist: dict[str, Histogram] = field(default_factory=dict)

    def stats(self) -> dict[str, float]:
        """Flat, exact numbers for a marker; histograms as ``hist.<feature>.<bin>``, empty bins left out."""
        bins = {f"{HIST}.{name}.{i}": float(h[i]) for name, h in self.hist.items() for i in np.flatnonzero(h)}
        return {"rows": float(self.rows), **self.figures, **bins}

    @classmethod
    def from_stats(cls, rows: int, stats: Mapping[str, float]) -> DayProfile:
        """Back from a marker; bins that this version does not know are ignored."""
        profile = cls(rows=rows)
        for key, value in stats.items():
            if not key.startswith(f"{HIST}."):
                profile.figures[key] = value
                continue
            name, _, code = key.removeprefix(f"{HIST}.").rpartition(".")
            if int(code) < BINS:
                profile.hist.setdefault(name, np.zeros(BINS))[int(code)] = value
        return profile

    @property
    def label_rate(self) -> float | None:
        """Weighted share of positives among exposed rows; ``None`` if nothing was exposed or the table has no labels."""
        weight = self.figures.get("exposed_weight", 0.0)
        return self.figures.get("exposed_positives", 0.0) / weight if weight else None


def day_profiles(gate: Gate, staged: DataFrame) -> dict[str, DayProfile]:
    """Profiles of all days of a staged frame, by ``ds`` (``'null'`` where it is missing); three aggregations at most.

    Args:
        gate: the rules, figures and features to count.
        staged: rows with a string column ``ds``.
    """
    days: dict[str, DayProfile] = defaultdict(DayProfile)
    _count_rules(gate, staged, days)
    _count_duplicates(gate, staged, days)
    _count_bins(gate, staged, days)
    return dict(days)


def _count_rules(gate: Gate, staged: DataFrame, days: dict[str, DayProfile]) -> None:
    from pyspark.sql import functions as F

    bad = [F.expr(f"count_if({rule.bad})").alias(f"bad_{i}") for i, rule in enumerate(gate.rules)]
    figures = [F.expr(sql).alias(f"figure_{i}") for i, sql in enumerate(gate.figures.values())]
    for row in staged.groupBy("ds").agg(F.count(F.lit(1)).alias("rows"), *bad, *figures).collect():
        day = days[row["ds"] or "null"]
        day.rows = int(row["rows"])
        day.bad = {rule.name: int(row[f"bad_{i}"]) for i, rule in enumerate(gate.rules)}
        day.figures = {name: float(row[f"figure_{i}"] or 0.0) for i, name in enumerate(gate.figures)}


def _count_duplicates(gate: Gate, staged: DataFrame, days: dict[str, DayProfile]) -> None:
    from pyspark.sql import functions as F

    for key in gate.keys:
        # Grouping 64-bit hashes moves a fraction of what keys of text do; among a million rows two differ and agree in it by one in 4e7.
        hashed = staged.select("ds", F.expr(key.hashed).alias("key"))
        groups = hashed.groupBy("ds", "key").agg(F.count(F.lit(1)).alias("n")).where("n > 1")
        for row in groups.groupBy("ds").agg(F.sum(F.col("n") - 1).alias("extra")).collect():
            days[row["ds"] or "null"].bad[key.name] = int(row["extra"])


def large_days(days: Mapping[str, DayProfile]) -> list[str]:
    """Days with so many rows that drift is looked for in a share of them."""
    return sorted(ds for ds, day in days.items() if day.rows > LARGE_DAY)


def _count_bins(gate: Gate, staged: DataFrame, days: dict[str, DayProfile]) -> None:
    from pyspark.sql import functions as F

    names = gate.feature_names
    if not names:
        return
    frame = staged.where(gate.keys[0].share(large_days(days)))
    coded = [(at * BINS, feature) for at, feature in enumerate(gate.features)]
    parts = ["array(" + ", ".join(f"{base} + {f.bins}" for base, f in coded if not f.many) + ")"]
    parts += [f"coalesce(transform({f.bins}, b -> {base} + b), array())" for base, f in coded if f.many]
    codes = frame.select("ds", F.explode(F.expr(f"concat({', '.join(parts)})")).alias("code"))
    if gate.wide:
        # posexplode and not transform: plain columns are compiled, lambdas are interpreted (4 times as slow here).
        elements = frame.select("ds", F.posexplode(f"`{gate.wide.column}`").alias("i", "x"))
        code = f"({len(gate.features)} + i % {len(gate.wide.names)}) * {BINS} + {gate.wide.bins}"
        codes = codes.unionAll(elements.select("ds", F.expr(code).alias("code")))
    for row in codes.groupBy("ds", "code").count().collect():
        name = names[row["code"] // BINS]
        days[row["ds"] or "null"].hist.setdefault(name, np.zeros(BINS))[row["code"] % BINS] = row["count"]


def psi(now: Histogram, before: Histogram) -> Histogram:
    """Population stability index of histograms ``(…, BINS)``: sum over used bins of (p - q) ln(p / q).

    Half a count is added to each used bin, and a share counts as at least ``SHARE_FLOOR``: otherwise a bin that is new weighs the
    more the more rows there are. 0 means the same shares; 0.1 is usually called small, 0.25 large.
    """
    used = (now + before) > 0

    def shares(counts: Histogram) -> Histogram:
        smooth = np.where(used, counts + 0.5, 0.0)
        return np.where(used, np.maximum(smooth / smooth.sum(axis=-1, keepdims=True), SHARE_FLOOR), 1.0)

    p, q = shares(now), shares(before)
    total: Histogram = np.sum((p - q) * np.log(p / q), axis=-1)
    return total


def psi_noise(now: Histogram, before: Histogram, *, rows: float, rows_before: float) -> float:
    """PSI that chance alone exceeds once in a thousand times: (1/n + 1/m) chi2(bins - 1), Yurdakul (2018).

    Args:
        now: histogram ``(BINS,)``.
        before: histogram ``(BINS,)``.
        rows: independent observations behind ``now`` (elements of one row are not).
        rows_before: independent observations behind ``before``.
    """
    free = max(int(((now + before) > 0).sum()) - 1, 1)
    return _chi2_point(free) * (1 / max(rows, 1.0) + 1 / max(rows_before, 1.0))


@cache
def _chi2_point(free: int) -> float:
    from scipy.stats import chi2

    return float(chi2.ppf(NOISE_QUANTILE, free))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A day against its trailing days; ``None`` where there is not enough history, or nothing to compare.

    Attributes:
        history: trailing days with rows.
        rows: row count over the trailing median.
        label_rate: label rate over the trailing median.
        psi: drift of each feature beyond what chance and the usual differences between weeks explain.
    """

    history: int
    rows: float | None
    label_rate: float | None
    psi: dict[str, float | None]


def compare(gate: Gate, today: DayProfile, trailing: Mapping[date, DayProfile], min_days: int) -> Comparison:
    """Compare a day with the days before it.

    Args:
        gate: the table's gate; names the features.
        today: profile of the day.
        trailing: profiles of earlier days; those without rows do not count.
        min_days: with fewer trailing days nothing is compared.
    """
    full = {day: p for day, p in trailing.items() if p.rows}
    if len(full) < min_days or not today.rows:
        return Comparison(history=len(full), rows=None, label_rate=None, psi=dict.fromkeys(gate.feature_names))
    rates = [p.label_rate for p in full.values() if p.label_rate]
    rate = 0.0 if today.label_rate is None and rates else today.label_rate  # nothing was exposed, other than before
    return Comparison(
        history=len(full),
        rows=today.rows / median(p.rows for p in full.values()),
        label_rate=None if rate is None or len(rates) < min_days else rate / median(rates),
        psi={name: _drift(gate, name, today, full, min_days) for name in gate.feature_names},
    )


def _drift(gate: Gate, name: str, today: DayProfile, full: Mapping[date, DayProfile], min_days: int) -> float | None:
    known = {day: p for day, p in full.items() if name in p.hist}
    if not known:
        return None
    now = today.hist.get(name)
    if now is None:  # lists that are empty in every row: as if each row were null
        now = np.zeros(BINS)
        now[0] = today.rows
    days = np.stack([p.hist[name] for p in known.values()])
    usual = usual_psi(days, np.array([day.toordinal() for day in known]))
    before = days.sum(axis=0)
    if len(usual) < min_days or _is_calendar(days, before):
        return None
    # Elements of one row share most of their values: rows, not elements, are the independent observations.
    n, m = _observations(gate, name, [today]), _observations(gate, name, list(known.values()))
    chance = psi_noise(now, before, rows=n, rows_before=m)
    return max(float(psi(now, before)) - max(chance, float(np.quantile(usual, USUAL_QUANTILE))), 0.0)


def usual_psi(days: NDArray[np.float64], ordinal: NDArray[np.int64]) -> Histogram:
    """PSI of each trailing day against those at least a week from it: what the calendar and weekly promotions do anyway.

    Args:
        days: histograms ``(days, BINS)``.
        ordinal: day numbers ``(days,)``.

    Returns:
        One figure for each day that has such others.
    """
    far = np.abs(ordinal[:, None] - ordinal[None, :]) >= WEEK
    has = far.any(axis=1)
    return psi(days[has], far[has].astype(np.float64) @ days)


def _is_calendar(days: NDArray[np.float64], before: Histogram) -> bool:
    """Whether a feature is constant within each day but changes over days, as the weekday does: comparing a day with others is no use."""
    within = days.max(axis=1) / days.sum(axis=1)
    return bool(np.quantile(within, 1 - USUAL_QUANTILE) >= CALENDAR_SHARE and before.max() / before.sum() < 0.5)


def _observations(gate: Gate, name: str, days: Sequence[DayProfile]) -> float:
    """Rows behind the histograms of a feature, sampled or not; a plain feature has one entry for each."""
    plain = [f.name for f in gate.features if not f.many]
    counted = name if name in plain or not plain else plain[0]
    return float(sum(p.hist[counted].sum() for p in days if counted in p.hist))
