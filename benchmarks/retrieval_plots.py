"""Plots of ``benchmarks.retrieval``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = {
    "mlp": "#0b6e99",
    "exact": "#0b6e99",
    "floor": "#6a737d",
    "dense": "#c2571a",
    "dict": "#4d7c2f",
    "exhaustive": "#7a4fa3",
    "hnsw": "#9a6b00",
}
FAMILIES = ("64^3", "256^4", "16^4")
LABELS = {
    "mlp": "this project, MLP u2t",
    "exact": "this project, exact u2t",
    "floor": "matrix products alone",
    "dense": "dense, masked",
    "dict": "Python dictionaries",
    "exhaustive": "every SID",
    "hnsw": "HNSW, two towers",
}
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#d9dee3",
    "legend.frameon": False,
    "font.size": 9.5,
}


def draw(results: dict[str, Any], folder: Path, name: str) -> None:
    """Write ``<name>.png`` (cost by catalogue and batch, growth) and ``<name>-mask.png`` (the mask step)."""
    cases = [dict(_named(key), **case) for key, case in results["cases"].items()]
    with mpl.rc_context(STYLE):
        batches = sorted({int(b) for case in cases for b in case["batches"]})
        figure = Figure(figsize=(4.2 * (len(batches) + 1), 3.9), layout="constrained")
        axes = list(figure.subplots(1, len(batches) + 1, squeeze=False)[0])
        for axis, batch in zip(axes, batches, strict=False):
            _cost(axis, cases, batch)
        _growth(axes[-1], cases)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=len(LABELS), fontsize=8, handlelength=3.5)
        figure.savefig(folder / f"{name}.png", dpi=150)
        figure = Figure(figsize=(4.2 * len(batches), 3.6), layout="constrained")
        for axis, batch in zip(figure.subplots(1, len(batches), squeeze=False)[0], batches, strict=True):
            _mask(axis, cases, batch)
        figure.savefig(folder / f"{name}-mask.png", dpi=150)


def _named(key: str) -> dict[str, Any]:
    size, method, beam, *rest = key.split("/")
    items, codes = size.split("-")
    return {"items": int(items), "codes": codes, "method": method, "beam": beam, "plain": not rest}


def _fits(case: dict[str, Any]) -> bool:
    return bool(case["plain"] and case["beam"] == "beam 50" and case["codes"] == ("64^3" if case["items"] == 10_000 else "256^4"))


def _cost(axis: Axes, cases: list[dict[str, Any]], batch: int) -> None:
    for method, colour in COLOURS.items():
        points = [
            (c["items"], c["batches"][str(batch)]["p50_ms"] / batch)
            for c in cases
            if c["method"] == method and _fits(c) and str(batch) in c["batches"]
        ]
        if points:
            x, y = zip(*sorted(points), strict=True)
            axis.plot(x, y, color=colour, marker="o", markersize=3.5, linestyle="--" if method == "exact" else "-", label=LABELS[method])
    axis.set(xscale="log", yscale="log", title=f"batch of {batch}", xlabel="items", ylabel="ms a user (median)")


def _growth(axis: Axes, cases: list[dict[str, Any]]) -> None:
    """Cost and scored rows against those at 100k items."""
    for codes, colour in zip(FAMILIES, ("#0b6e99", "#c2571a", "#4d7c2f"), strict=True):
        found = {c["items"]: c for c in cases if c["method"] == "mlp" and c["codes"] == codes and c["items"] >= 100_000 and c["plain"]}
        shared = [b for b in ("32", "1") if all(b in c["batches"] for c in found.values())]
        if 100_000 not in found or not shared:
            continue
        first, batch = found[100_000], shared[0]
        x = sorted(found)
        axis.plot(
            x,
            [found[n]["batches"][batch]["p50_ms"] / first["batches"][batch]["p50_ms"] for n in x],
            color=colour,
            marker="o",
            label=f"{codes}: time",
        )
        axis.plot(x, [sum(found[n]["rows"]) / sum(first["rows"]) for n in x], color=colour, linestyle=":", label=f"{codes}: rows scored")
    axis.axhline(1.3, color="#6a737d", linewidth=0.8)
    axis.set(xscale="log", title="growth at fixed codes and beam", xlabel="items", ylabel="against 100k items", ylim=(0, None))
    axis.legend(fontsize=7.5)


def _mask(axis: Axes, cases: list[dict[str, Any]], batch: int) -> None:
    names = {"csr": "this project, CSR ranges", "static": "STATIC", "dict": "Python dictionaries"}
    found = sorted((c for c in cases if c["method"] == "mask" and str(batch) in c["batches"]), key=lambda c: c["items"])
    for (name, label), colour in zip(names.items(), ("#0b6e99", "#c2571a", "#4d7c2f"), strict=True):
        points = []
        for case in found:
            steps = [row["p50_ms"] for step, row in case["batches"][str(batch)].items() if step.endswith(f" {name}")]
            if steps:
                points.append((case["items"], sum(steps)))
        if points:
            x, y = zip(*points, strict=True)
            axis.plot(x, y, color=colour, marker="o", markersize=3.5, label=label)
    axis.set(xscale="log", yscale="log", title=f"mask steps of a search, batch of {batch}", xlabel="items", ylabel="ms (median)")
    axis.legend(fontsize=7.5)
