"""The plots of a run, as Matplotlib figures: PNG for the registry, inline SVG that follows the page's colours for the report."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, GRID = "#1b1f23", "#6a737d", "#d9dee3"
SERIES = ("#0b6e99", "#c2571a", "#4d7c2f", "#7a4fa3", "#9a6b00")
_VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--line)"} | {c: f"var(--series-{i})" for i, c in enumerate(SERIES)}
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "svg.fonttype": "none",
}
METHODS = {
    "dig": "DIG, re-ranked",
    "dig_path": "DIG, path score",
    "champion": "champion",
    "own_frequency": "own frequency",
    "popularity": "popularity",
}


def _figure(columns: int, width: float = 8.4, height: float = 3.0) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)
    return figure, list(axes[0])


def training(train: Mapping[str, Any]) -> Figure:
    """Losses over the steps, and AUC on the validation days after each epoch.

    Args:
        train: what ``train.json`` holds.
    """
    with mpl.rc_context(_STYLE):
        figure, (left, right) = _figure(2)
        steps = train["curves"]["steps"]
        for colour, name in zip(SERIES, ("rank", "recall", "u2t", "commit", "recon"), strict=True):
            points = [(row["step"], row[name]) for row in steps if row.get(name) is not None]
            if points:
                left.plot(*zip(*points, strict=True), color=colour, label=name)
        left.set(title="Training losses", xlabel="step", yscale="log")
        if steps:
            left.legend(ncols=2, fontsize=8.5)
        epochs = train["curves"]["epochs"]
        for colour, (name, label) in zip(
            SERIES, (("rank_exposed_auc", "ranking path"), ("recall_exposed_auc", "retrieval path")), strict=False
        ):
            points = [(row["epoch"] + 1, row[name]) for row in epochs if row.get(name) is not None]
            if points:
                right.plot(*zip(*points, strict=True), color=colour, label=label, marker="o", markersize=4)
                right.legend(fontsize=8.5)
        right.set(title="AUC on the validation days", xlabel="epoch")
        right.set_xticks([row["epoch"] + 1 for row in epochs])
        return figure


def codebooks(sid: Mapping[str, Any]) -> Figure:
    """Items per code of each level, fullest code first.

    Args:
        sid: ``evaluate.json``'s ``sid``.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(len(sid["levels"]), height=2.5)
        for number, (ax, level) in enumerate(zip(axes, sid["levels"], strict=True), start=1):
            counts = sorted(level["counts"], reverse=True)
            ax.bar(range(1, len(counts) + 1), counts, width=1.0, color=SERIES[0], edgecolor="none")
            ax.axhline(sum(counts) / len(counts), color=SERIES[1], linewidth=1.2, linestyle="--")
            ax.set(title=f"Level {number}: {level['used']} of {level['codes']} codes", xlabel="code, fullest first")
            ax.grid(axis="x", visible=False)
        axes[0].set_ylabel("items")
        return figure


def calibration(ranking: Mapping[str, Any]) -> Figure:
    """Predicted against actual rate in bins of equal weight; on the line is calibrated.

    Args:
        ranking: ``evaluate.json``'s ``ranking``.
    """
    with mpl.rc_context(_STYLE):
        figure, (ax,) = _figure(1, width=4.2, height=3.4)
        curve = ranking["reliability"]
        points = [(p, a) for p, a in zip(curve["predicted"], curve["actual"], strict=True) if p > 0 and a > 0]
        ax.set(title="Calibration", xlabel="predicted rate", ylabel="actual rate")
        if points:
            low, high = min(min(p) for p in points) / 1.5, max(max(p) for p in points) * 1.5
            ax.plot((low, high), (low, high), color=MUTED, linewidth=1, linestyle="--")
            ax.plot(*zip(*points, strict=True), color=SERIES[0], marker="o", markersize=4.5)
            ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
        return figure


def retrieval(found: Mapping[str, Any], metric: str = "recall@10") -> Figure:
    """One metric of every method with its interval, over all items and over items new to the user.

    Args:
        found: ``evaluate.json``'s ``retrieval``.
        metric: such as ``recall@10``.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(2, height=2.4)
        for ax, (variant, title) in zip(axes, (("all", "All items"), ("new", "Items new to the user")), strict=True):
            names = [name for name in METHODS if name in found[variant]][::-1]
            for place, name in enumerate(names):
                value, (low, high) = found[variant][name][metric], found[variant][name]["ci"][metric]
                if value is None:
                    continue
                colour = SERIES[0] if name == "dig" else MUTED
                if low is not None and high is not None:
                    ax.plot((low, high), (place, place), color=colour, linewidth=3, alpha=0.45, solid_capstyle="round")
                ax.plot(value, place, "o", color=colour, markersize=7)
            ax.set_yticks(range(len(names)), [METHODS[name] for name in names])
            ax.set(title=title, xlabel=metric, ylim=(-0.6, len(names) - 0.4))
            ax.set_xlim(left=0)
            ax.grid(axis="y", visible=False)
        return figure


def stages(seconds: Mapping[str, float]) -> Figure:
    """Seconds of each stage, in the order they ran."""
    with mpl.rc_context(_STYLE):
        names: Sequence[str] = list(seconds)
        figure, (ax,) = _figure(1, height=0.6 + 0.26 * max(len(names), 2))
        ax.barh(names, [seconds[name] for name in names], color=SERIES[0], height=0.62)
        for place, name in enumerate(names):
            ax.annotate(f"{seconds[name]:.1f}", (seconds[name], place), (4, 0), textcoords="offset points", va="center", color=MUTED)
        ax.invert_yaxis()
        ax.set(xlabel="seconds")
        ax.grid(axis="y", visible=False)
        return figure


def png(figure: Figure) -> bytes:
    """PNG on white."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return out.getvalue()


def svg(figure: Figure, *, label: str) -> str:
    """SVG element to stand in a page: colours are the page's variables, text its font; names no other document.

    Args:
        figure: one of the figures above.
        label: what the plot shows, for those who cannot see it; also keeps ids of several plots apart.
    """
    out = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": label, "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'(<svg[^>]*?)\swidth="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?)\sheight="[^"]*"', r"\1", text, count=1)
    prefix = re.sub(r"\W+", "-", label.lower())
    text = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{prefix}-", text)
    text = re.sub(r"\s*font-family: [^;\"]*;?", "", text)
    text = re.sub(r"<style.*?</style>", "", text, count=1, flags=re.DOTALL)  # it would apply to the whole page
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
