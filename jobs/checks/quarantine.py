"""Rows that broke a critical rule: kept as Parquet for a look, a few of their values shown in the message."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.checks.rules import Gate

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

REASON = "_reason"


def bad_rows(gate: Gate, staged: DataFrame, rules: Iterable[str], days: Sequence[str], limit: int) -> pa.Table:
    """Rows of some days that break at least one of the named rules, with the reasons in ``_reason``.

    Args:
        gate: the table's gate.
        staged: the staged rows.
        days: values of ``ds`` to look at, ``'null'`` where it is missing.
        rules: names of row rules and keys of the gate.
        limit: most rows of a day.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    names = set(rules)
    frame = staged.where(F.coalesce("ds", F.lit("null")).isin(list(days)))
    reasons = [F.when(F.expr(rule.bad), F.lit(rule.name)) for rule in gate.rules if rule.name in names]
    for i, key in enumerate(key for key in gate.keys if key.name in names):
        many = f"_many_{i}"
        frame = frame.withColumn(many, F.count(F.lit(1)).over(Window.partitionBy("ds", *key.columns)))
        reasons.append(F.when(F.expr(f"{many} > 1"), F.lit(key.name)))
    marked = frame.withColumn(REASON, F.concat_ws("; ", *reasons)).where(F.col(REASON) != "")
    order = Window.partitionBy("ds").orderBy(REASON, *(c for key in gate.keys[:1] for c in key.columns))
    kept = marked.withColumn("_rank", F.row_number().over(order)).where(F.col("_rank") <= limit)
    table: pa.Table = kept.select(*staged.columns, REASON).toArrow()
    return table


def keep(root: Path, gate: Gate, bad: pa.Table, days: Sequence[str]) -> Path:
    """Write bad rows to ``<root>/<table>/ds=…/bad.parquet``, replacing what an earlier run left for these days."""
    home = root / gate.table
    ds = bad.column("ds").to_pylist()
    for day in days:
        folder = home / f"ds={day}"
        shutil.rmtree(folder, ignore_errors=True)
        mine = pa.array([(d or "null") == day for d in ds], type=pa.bool_())
        if any(mine.to_pylist()):
            folder.mkdir(parents=True)
            pq.write_table(bad.filter(mine), folder / "bad.parquet")
    return home


def examples_of(gate: Gate, bad: pa.Table, rule: str, shown: int) -> list[str]:
    """A few bad values of one rule, each with the keys of its row."""
    named = {r.name: (r.column,) for r in gate.rules} | {k.name: k.columns for k in gate.keys}
    columns = named[rule]
    keys = [c for c in (gate.keys[0].columns if gate.keys else ()) if c not in columns]
    picked = []
    for row in bad.to_pylist():
        if rule in row[REASON].split("; "):
            text = ", ".join(f"{c}={_short(row.get(c))}" for c in (*columns, *keys))
            if text not in picked:
                picked.append(text)
            if len(picked) == shown:
                break
    return picked


def _short(value: object) -> str:
    text = "null" if value is None else repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
