"""Table and plot of the ablation: means over seeds, intervals over users, differences paired by user.

An interval is the percentile interval of the bootstrap samples averaged over seeds: it says how far other users would move the mean of
these seeds. ``spread`` beside it is the standard deviation over seeds.

Shape suffixes: ``S`` bootstrap replicates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.ablation_rows import BASE, DIG, TWO_STAGE, Row
from dig_models.evaluate import bootstrap

Floats = NDArray[np.float64]
Records = Mapping[str, Sequence[dict[str, Any]]]
"""By row: one record a seed, the same seeds in every row."""

SHOWN = {
    "rank_auc": "rank AUC",
    "rank_gauc": "GAUC",
    "path_auc": "path AUC",
    "recall@10_all": "R@10",
    "ndcg@10_all": "N@10",
    "path_recall@10_all": "R@10 path",
    "path_ndcg@10_all": "N@10 path",
    "recall@10_new": "R@10 new",
    "ndcg@10_new": "N@10 new",
    "path_recall@10_new": "R new path",
    "path_ndcg@10_new": "N new path",
}
PLOTTED = ("rank_auc", "path_auc", "recall@10_all", "path_recall@10_all", "recall@10_new")
LEGEND = (
    "R@10, N@10: recall and NDCG over all items, re-ranked; path: in the order of the path score; new: items new to the user.\n"
    "path AUC: the retrieval path at the full SID, on the impressions of rank AUC. shared: items that do not have their SID alone.\n"
    "codes used: of the level that uses fewest."
)
REFERENCE_LABELS = {"popularity": "popularity", "own_frequency": "own most frequent"}


def summary(records: Records, confidence: float) -> dict[str, Any]:
    """By row: figures with interval and spread, differences to DIG (and of ranking to Base), SID quality, training time.

    Also ``references``, the baselines on the same requests, and ``ratios``, DIG's recall over that of each two-stage row.

    Args:
        records: of at least ``dig`` or ``base``.
        confidence: of the intervals.
    """
    out: dict[str, Any] = {"rows": {}, "references": {}, "ratios": {}}
    for name, runs in records.items():
        figures = {figure: _figure(runs, figure, confidence) for figure in SHOWN if _has(runs, figure)}
        row: dict[str, Any] = {"seeds": [run["seed"] for run in runs], "figures": figures, "sid": _sid(runs), "differences": {}}
        row["seconds"] = float(np.mean([run["train"]["seconds"] + run["train"]["tokenizer_seconds"] for run in runs]))
        for other, among in ((DIG, SHOWN), (BASE, ("rank_auc", "rank_gauc"))):
            if other in records and other != name:
                both = [f for f in among if _has(runs, f) and _has(records[other], f)]
                row["differences"][other] = {f: _difference(runs, records[other], f, confidence) for f in both}
        out["rows"][name] = row
    if DIG in records:
        for name in REFERENCE_LABELS:
            runs = [run["references"][name] for run in records[DIG]]
            out["references"][name] = {f: _figure(runs, f, confidence) for f in SHOWN if _has(runs, f)}
        recalls = [f for f in SHOWN if f.removeprefix("path_").startswith("recall") and _has(records[DIG], f)]
        for name in TWO_STAGE:
            if name in records:
                both = [f for f in recalls if _has(records[name], f)]
                out["ratios"][name] = {f: _ratio(records[DIG], records[name], f, confidence) for f in both}
    return out


def _has(runs: Sequence[dict[str, Any]], figure: str) -> bool:
    return all(run["figures"].get(figure) is not None for run in runs)


def _mean(runs: Sequence[dict[str, Any]], figure: str) -> tuple[float, Floats]:
    samples = np.array([run["samples"][figure] for run in runs], dtype=np.float64)  # null becomes NaN
    return float(np.mean([run["figures"][figure] for run in runs])), samples.mean(axis=0)


def _figure(runs: Sequence[dict[str, Any]], figure: str, confidence: float) -> dict[str, Any]:
    mean, sample_S = _mean(runs, figure)
    values = [run["figures"][figure] for run in runs]
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": mean, "ci": _interval(sample_S, confidence), "spread": spread}


def _difference(runs: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]], figure: str, confidence: float) -> dict[str, Any]:
    (one, one_S), (two, two_S) = _mean(runs, figure), _mean(other, figure)
    return {"mean": one - two, "ci": _interval(one_S - two_S, confidence)}


def _ratio(runs: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]], figure: str, confidence: float) -> dict[str, Any]:
    (one, one_S), (two, two_S) = _mean(runs, figure), _mean(other, figure)
    ratio_S = np.divide(one_S, two_S, out=np.full(len(one_S), np.nan), where=two_S > 0)
    return {"mean": one / two if two > 0 else None, "ci": _interval(ratio_S, confidence)}


def _interval(sample_S: Floats, confidence: float) -> list[float | None]:
    return [value if np.isfinite(value) else None for value in bootstrap.interval(sample_S, confidence)]


def _sid(runs: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    if any(run["sid"] is None for run in runs):
        return None
    return {
        "collision_rate": float(np.mean([run["sid"]["collision_rate"] for run in runs])),
        "shared_rate": float(np.mean([run["sid"]["shared_rate"] for run in runs])),
        "codes_used": np.mean([run["sid"]["codes_used"] for run in runs], axis=0).tolist(),
    }


def text(found: dict[str, Any], rows: Sequence[Row]) -> str:
    """The table for people: figures, then differences with their intervals; a star where the interval excludes 0."""
    width = max(len(row.label) for row in rows) + 2
    parts = [LEGEND, "", "Means over seeds", _header(width, [*SHOWN.values(), "collisions", "shared", "codes used", "train s"])]
    for row in rows:
        of = found["rows"].get(row.name)
        if of is not None:
            cells = [_cell(of["figures"].get(figure)) for figure in SHOWN]
            parts.append(_line(width, row.label, [*cells, *_sid_cells(of["sid"]), f"{of['seconds']:.0f}"]))
    for name, figures in found["references"].items():
        parts.append(_line(width, REFERENCE_LABELS[name], [_cell(figures.get(figure)) for figure in SHOWN]))
    parts += ["", "With intervals over users, and the standard deviation over seeds"]
    for row in rows:
        if row.name in found["rows"]:
            figures = found["rows"][row.name]["figures"]
            parts.append(f"{row.label:{width}}" + "  ".join(_with_interval(f, figures[f]) for f in PLOTTED if f in figures))
    labels = {row.name: row.label for row in rows}
    for other in (BASE, DIG):
        if other in found["rows"]:
            parts += ["", f"Less {labels[other]}, paired by user; * where the interval excludes 0"]
            parts += _differences(found, rows, other, width)
    for name, figures in found["ratios"].items():
        shown = [f"{SHOWN[f]} {_number(r['mean'], '.2f')}x {_between(r['ci'], '.2f')}" for f, r in figures.items()]
        parts += ["", f"DIG over {labels[name]}: " + ", ".join(shown)]
    return "\n".join(parts) + "\n"


def _with_interval(figure: str, of: dict[str, Any]) -> str:
    spread = "" if of["spread"] is None else f" sd {of['spread']:.4f}"
    return f"{SHOWN[figure]} {of['mean']:.4f} {_between(of['ci'], '.4f')}{spread}"


def _differences(found: dict[str, Any], rows: Sequence[Row], other: str, width: int) -> list[str]:
    lines = []
    for row in rows:
        given = found["rows"].get(row.name, {}).get("differences", {}).get(other, {})
        cells = []
        for figure, gap in given.items():
            low, high = gap["ci"]
            star = "*" if low is not None and (low > 0 or high < 0) else " "
            cells.append(f"{SHOWN[figure]} {gap['mean']:+.4f}{star}{_between(gap['ci'], '+.4f')}")
        if cells:
            lines.append(f"{row.label:{width}}" + "  ".join(cells))
    return lines


def _header(width: int, names: Sequence[str]) -> str:
    return " " * width + "".join(f"{name:>12}" for name in names)


def _line(width: int, label: str, cells: Sequence[str]) -> str:
    return f"{label:{width}}" + "".join(f"{cell:>12}" for cell in cells)


def _cell(figure: dict[str, Any] | None) -> str:
    return "-" if figure is None else f"{figure['mean']:.4f}"


def _sid_cells(sid: dict[str, Any] | None) -> list[str]:
    return ["-"] * 3 if sid is None else [f"{sid['collision_rate']:.1%}", f"{sid['shared_rate']:.1%}", f"{min(sid['codes_used']):.0%}"]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _between(ci: Sequence[float | None], form: str) -> str:
    return f"[{_number(ci[0], form)}, {_number(ci[1], form)}]"


def plot(found: dict[str, Any], rows: Sequence[Row], title: str) -> Figure:
    """A panel a figure: each row's mean with its interval, DIG's as a line to compare with."""
    there = [row for row in rows if row.name in found["rows"]]
    figure = Figure(figsize=(3.1 * len(PLOTTED) + 2.5, 0.36 * len(there) + 1.6), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(1, len(PLOTTED), sharey=True)
    for axes, name in zip(panels, PLOTTED, strict=True):
        for at, row in enumerate(there):
            value = found["rows"][row.name]["figures"].get(name)
            if value is None:
                continue
            color = "#c2571a" if row.name in (BASE, DIG) else "#0b6e99"
            if None not in value["ci"]:
                axes.plot(value["ci"], (at, at), color=color, alpha=0.45, linewidth=3, solid_capstyle="round")
            axes.plot(value["mean"], at, "o", color=color)
        dig = found["rows"].get(DIG, {}).get("figures", {}).get(name)
        if dig is not None:
            axes.axvline(dig["mean"], color="#c2571a", linewidth=1, linestyle="--")
        axes.set_yticks(range(len(there)), [row.label for row in there])
        axes.set(title=SHOWN[name], ylim=(len(there) - 0.5, -0.5))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="#d9dee3")
    return figure
