"""What a gate is made of: column types, row rules, keys and drift features, as Spark SQL.

A row rule is a condition that holds for a *bad* row, so that one aggregation counts every rule on every day.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["critical", "warning"]
BINS = 128  # codes of one feature's histogram; the bin expressions below stay under it
HASH_BINS = 20
LARGE_DAY, ONE_IN = 50_000, 8  # of a day with more rows, one row in eight is looked at for drift
UNIQUE = "unique within the day"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A rule for single rows.

    Attributes:
        bad: Spark SQL condition that is true for a bad row; null counts as good.
        share: largest share of a day's rows that may be bad.
    """

    column: str
    says: str
    bad: str
    severity: Severity = "critical"
    share: float = 0.0

    @property
    def name(self) -> str:
        """Unique name within a table: the column and what is said of it."""
        return f"{self.column} {self.says}"


@dataclass(frozen=True, kw_only=True)
class Key:
    """Columns that, with ``ds``, no two rows share."""

    columns: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the rule that follows."""
        return f"{', '.join(self.columns)} {UNIQUE}"

    @property
    def hashed(self) -> str:
        """Spark SQL, 64-bit hash of the key, null or not being part of it."""
        # xxhash64 skips nulls, so that ('a', null) and (null, 'a') would hash alike.
        parts = (p for c in self.columns for p in (f"{quoted(c)} IS NULL", quoted(c)))
        return f"xxhash64({', '.join(parts)})"

    def share(self, large_days: Sequence[str]) -> str:
        """Spark SQL condition on the rows whose features are profiled: all, but one in ``ONE_IN`` (by hash of the key) on large days.

        Args:
            large_days: days with more than ``LARGE_DAY`` rows.
        """
        if not large_days:
            return "true"
        chosen = f"pmod(xxhash64({', '.join(map(quoted, self.columns))}), {ONE_IN}) = 0"
        return f"ds IS NULL OR ds NOT IN ({listed(tuple(large_days))}) OR {chosen}"


@dataclass(frozen=True, kw_only=True)
class Feature:
    """A column whose distribution is compared with the trailing days.

    Attributes:
        bins: Spark SQL, histogram bin of a row (int), or of each element (array of int) if ``many``.
    """

    name: str
    bins: str
    many: bool = False


@dataclass(frozen=True, kw_only=True)
class Wide:
    """An array column that holds several features side by side, row-major: element ``i`` belongs to ``names[i % len(names)]``."""

    column: str
    names: tuple[str, ...]
    choices: int = 0

    @property
    def bins(self) -> str:
        """Spark SQL, bin of element ``x`` at ``i``; the last ``choices`` features are small codes, the others numbers."""
        number = number_bin("CAST(x AS DOUBLE)")
        if not self.choices:
            return number
        head = len(self.names) - self.choices
        small = f"i % {len(self.names)} >= {head} AND x BETWEEN 0 AND 120"
        return f"CASE WHEN {small} THEN 1 + CAST(x AS INT) ELSE {number} END"


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Everything that is expected of one table.

    Attributes:
        types: column to accepted Spark types; none means any.
        keys: what identifies a row; the first one is shown with bad rows and decides which rows of a large day are profiled.
        figures: name to Spark SQL aggregate, kept with each day.
        raw: whether the table comes from outside, so that a day without rows may be one without events.
        must_have_rows: whether the first days, too, must have rows.
        source: committed table whose rows of a day are what this table's rows are made from.
        newcomers: whether nothing is made of those rows where their users are all new, so that no rows at all is but a warning.
    """

    table: str
    types: Mapping[str, tuple[str, ...]]
    rules: tuple[Rule, ...]
    keys: tuple[Key, ...]
    features: tuple[Feature, ...] = ()
    wide: Wide | None = None
    figures: Mapping[str, str] = field(default_factory=dict)
    raw: bool = False
    must_have_rows: bool = False
    source: str = ""
    newcomers: bool = False

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of all profiled features, in the order of their codes."""
        return (*(f.name for f in self.features), *(self.wide.names if self.wide else ()))


def quoted(column: str) -> str:
    """A column name in Spark SQL."""
    return f"`{column}`"


def listed(values: Sequence[str]) -> str:
    """String literals of Spark SQL, separated by commas."""
    return ", ".join("'" + v.replace("\\", "\\\\").replace("'", "\\'") + "'" for v in values)


def number_bin(x: str) -> str:
    """SQL bin of a number: 0 null, 1 not a number, 2 zero, then half octaves of its size, negatives apart.

    Fixed, so that histograms of any two days can be compared, and fine enough for counts as well as for prices.
    """
    # Bounded before it is made an integer: infinity must be counted, not overflow.
    size = f"CAST(floor(least(greatest(2 * log2(abs({x})) + 20, 0), 60)) AS INT)"
    return f"CASE WHEN {x} IS NULL THEN 0 WHEN isnan({x}) THEN 1 WHEN {x} = 0 THEN 2 ELSE 3 + {size} + IF({x} < 0, 62, 0) END"


def bucket_bin(x: str) -> str:
    """SQL bin of a hashed bucket: 0 null, 1 the missing bucket, then the bucket modulo a few bins."""
    return f"CASE WHEN {x} IS NULL THEN 0 WHEN {x} = 0 THEN 1 ELSE 2 + CAST(pmod({x}, {HASH_BINS}) AS INT) END"


def text_bin(x: str) -> str:
    """SQL bin of a string, by hash."""
    return f"CASE WHEN {x} IS NULL THEN 0 ELSE 2 + CAST(pmod(xxhash64({x}), {HASH_BINS}) AS INT) END"


def choice_bin(x: str, values: tuple[str, ...]) -> str:
    """SQL bin of a declared category: 0 null, 1 undeclared, then its position."""
    return f"CASE WHEN {x} IS NULL THEN 0 ELSE CAST(least(1 + array_position(array({listed(values)}), {x}), {BINS - 1}) AS INT) END"
