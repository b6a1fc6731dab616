"""Table and plot of the ablation: means over seeds, with intervals over users and seeds, differences paired by both.

What an interval is: ``benchmarks.ablation_samples``. ``spread`` beside it is the standard deviation over seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.ablation_rows import BASE, DIG, ROWS, TWO_STAGE, Row
from benchmarks.ablation_samples import Runs, Series, ratio, stands_out
from benchmarks.ablation_verdicts import heading, verdicts

Records = Mapping[str, Runs]
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
    "codes used: of the level that uses fewest.\n"
    "Differences are to Base, and to DIG as it serves: by default with exact means of u2t. The paper compares\n"
    f"{ROWS['no_inference_u2t'].label!r} with {ROWS['mlp_u2t'].label!r}: read these rows side by side."
)
STAR = "* where the interval excludes 0 and every seed, of at least two, has the difference with the same sign; sd: over seeds"
REFERENCE_LABELS = {"popularity": "popularity", "own_frequency": "own most frequent"}


def summary(records: Records, confidence: float) -> dict[str, Any]:
    """By row: figures with interval and spread, differences to DIG (and of ranking to Base), SID quality, training time.

    ``auc_gap`` of a row is its ranking path's AUC less its retrieval path's. Also ``references``, the baselines on the same requests,
    ``over_references``, DIG's figures less and over theirs, ``ratios``, DIG's recall over that of each two-stage row, and ``verdicts``.

    Args:
        records: of at least ``dig`` or ``base``.
        confidence: of the intervals.
    """
    out: dict[str, Any] = {"rows": {}, "references": {}, "over_references": {}, "ratios": {}}
    for name, runs in records.items():
        figures = {f: Series.of(runs, f).told(confidence) for f in SHOWN if _has(runs, f)}
        row: dict[str, Any] = {"seeds": [run["seed"] for run in runs], "figures": figures, "sid": _sid(runs), "differences": {}}
        row["seconds"] = float(np.mean([run["train"]["seconds"] + run["train"]["tokenizer_seconds"] for run in runs]))
        for other, among in ((DIG, SHOWN), (BASE, ("rank_auc", "rank_gauc"))):
            if other in records and other != name:
                both = [f for f in among if _has(runs, f) and _has(records[other], f)]
                row["differences"][other] = {f: (Series.of(runs, f) - Series.of(records[other], f)).told(confidence) for f in both}
        if _has(runs, "rank_auc") and _has(runs, "path_auc"):
            row["auc_gap"] = (Series.of(runs, "rank_auc") - Series.of(runs, "path_auc")).told(confidence)
        out["rows"][name] = row
    if DIG in records:
        for name in REFERENCE_LABELS:
            runs = [run["references"][name] for run in records[DIG]]
            out["references"][name] = {f: Series.of(runs, f).told(confidence) for f in SHOWN if _has(runs, f)}
            out["over_references"][name] = _over(records[DIG], runs, confidence)
        recalls = [f for f in SHOWN if f.removeprefix("path_").startswith("recall") and _has(records[DIG], f)]
        for name in TWO_STAGE:
            if name in records:
                both = [f for f in recalls if _has(records[name], f)]
                out["ratios"][name] = {f: ratio(Series.of(records[DIG], f), Series.of(records[name], f), confidence) for f in both}
    return out | {"verdicts": [verdict.as_dict() for verdict in verdicts(out)]}


def _over(runs: Runs, references: Runs, confidence: float) -> dict[str, Any]:
    """A row's figures less a baseline's on the same requests, and over them."""
    both = [f for f in SHOWN if _has(runs, f) and _has(references, f)]
    pairs = {f: (Series.of(runs, f), Series.of(references, f)) for f in both}
    return {
        "differences": {f: (one - other).told(confidence) for f, (one, other) in pairs.items()},
        "ratios": {f: ratio(one, other, confidence) for f, (one, other) in pairs.items()},
    }


def _has(runs: Runs, figure: str) -> bool:
    return all(run["figures"].get(figure) is not None for run in runs)


def _sid(runs: Runs) -> dict[str, Any] | None:
    if any(run["sid"] is None for run in runs):
        return None
    return {
        "collision_rate": float(np.mean([run["sid"]["collision_rate"] for run in runs])),
        "shared_rate": float(np.mean([run["sid"]["shared_rate"] for run in runs])),
        "codes_used": np.mean([run["sid"]["codes_used"] for run in runs], axis=0).tolist(),
        "shared_rate_by_seed": [run["sid"]["shared_rate"] for run in runs],
        "codes_used_by_seed": [run["sid"]["codes_used"] for run in runs],
    }


def text(found: dict[str, Any], rows: Sequence[Row]) -> str:
    """The table for people: figures, then differences with their intervals; a star where ``stands_out`` says so."""
    width = max(len(row.label) for row in rows) + 2
    parts = [LEGEND, "", "Means over seeds", _header(width, [*SHOWN.values(), "collisions", "shared", "codes used", "train s"])]
    for row in rows:
        of = found["rows"].get(row.name)
        if of is not None:
            cells = [_cell(of["figures"].get(figure)) for figure in SHOWN]
            parts.append(_line(width, row.label, [*cells, *_sid_cells(of["sid"]), f"{of['seconds']:.0f}"]))
    for name, figures in found["references"].items():
        parts.append(_line(width, REFERENCE_LABELS[name], [_cell(figures.get(figure)) for figure in SHOWN]))
    parts += ["", "With intervals over users and seeds, and the standard deviation over seeds"]
    for row in rows:
        if row.name in found["rows"]:
            figures = found["rows"][row.name]["figures"]
            parts.append(f"{row.label:{width}}" + "  ".join(_with_interval(f, figures[f]) for f in PLOTTED if f in figures))
    labels = {row.name: row.label for row in rows}
    for other in (BASE, DIG):
        if other in found["rows"]:
            parts += ["", f"Less {labels[other]}, paired by user and seed", STAR]
            parts += _differences(found, rows, other)
    for name, figures in found["ratios"].items():
        if name not in labels:
            continue
        shown = [f"{SHOWN[f]} {_number(r['mean'], '.2f')}x {_between(r['ci'], '.2f')}" for f, r in figures.items()]
        parts += ["", f"DIG over {ROWS[name].label}: " + ", ".join(shown)]
    told = [verdict.line() for verdict in verdicts(found)]
    if told:
        parts += ["", heading(found), *told]
    return "\n".join(parts) + "\n"


def _with_interval(figure: str, of: dict[str, Any]) -> str:
    spread = "" if of["spread"] is None else f" sd {of['spread']:.4f}"
    return f"{SHOWN[figure]} {of['mean']:.4f} {_between(of['ci'], '.4f')}{spread}"


def _differences(found: dict[str, Any], rows: Sequence[Row], other: str) -> list[str]:
    lines = []
    for row in rows:
        given = found["rows"].get(row.name, {}).get("differences", {}).get(other, {})
        lines += [row.label] * bool(given)
        for figure, gap in given.items():
            star = "*" if stands_out(gap) else " "
            spread = "" if gap["spread"] is None else f"  sd {gap['spread']:.4f}"
            seeds = " ".join(f"{value:+.4f}" for value in gap["by_seed"])
            lines.append(f"  {SHOWN[figure]:12} {gap['mean']:+.4f}{star} {_between(gap['ci'], '+.4f')}{spread}  by seed {seeds}")
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
