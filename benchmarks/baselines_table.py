"""The table of ``benchmarks.baselines`` from the scores and lists of its runs, and the plot.

What an interval covers: ``benchmarks.ablation_samples``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from benchmarks.ablation_samples import Series
from benchmarks.baseline_runs import Arrays
from benchmarks.intervals import Judge, auc_told, between, listed
from benchmarks.judging import Judged
from benchmarks.tabular import LEFT_OUT
from dig_models.evaluate.lists import VARIANTS
from dig_models.evaluate.scoring import exposed_rows


def summary(judged: Judged, runs: Mapping[str, Sequence[Arrays]], against: str) -> dict[str, Any]:
    """Figures of every method, means over its seeds, and one method's less each other's, paired by user and seed.

    Args:
        judged: what the runs were judged on.
        runs: scores and lists by method, one for each seed; of a method without chance one.
        against: the method that differences are of.
    """
    judge, confidence = Judge(exposed_rows(judged.requests), judged.draws), judged.draws.confidence
    series = {method: _series(judge, judged, of) for method, of in runs.items()}
    methods = {method: _told(of, confidence) for method, of in series.items()}
    for method, of in runs.items():
        if "score_R" in of[0]:
            methods[method] |= judge.gauc([arrays["score_R"] for arrays in of])
    gaps: dict[str, Any] = {}
    for method in (m for m in runs if m != against and against in runs):
        both = [name for name in series[method] if name in series[against]]
        gaps[method] = _told({name: series[against][name] - series[method][name] for name in both}, confidence)
    return {"methods": methods, f"{against}_minus": gaps}


def _series(judge: Judge, judged: Judged, of: Sequence[Arrays]) -> dict[str, Series]:
    """``auc`` and ``<variant>.<figure>``, as far as the method has them."""
    out = {"auc": judge.auc([arrays["score_R"] for arrays in of])} if "score_R" in of[0] else {}
    for variant in (v for v in VARIANTS if v in of[0]):
        each = [judged.values(variant, arrays[variant]) for arrays in of]
        out |= {f"{variant}.{name}": listed(judged, [values[name] for values in each]) for name in each[0]}
    return out


def _told(of: Mapping[str, Series], confidence: float) -> dict[str, Any]:
    out: dict[str, Any] = auc_told(of["auc"], confidence) if "auc" in of else {}
    return out | {name: series.told(confidence) for name, series in of.items() if name != "auc"}


FIGURES = ("auc", "gauc", "all.recall@10", "all.ndcg@10", "new.recall@10", "new.ndcg@10")


def table(found: Mapping[str, Any], against: str = "dig") -> str:
    """The methods as a Markdown table: figure, and in brackets the interval of the paired difference to ``against``."""
    head = ["method", "seeds", "AUC", "GAUC", *(f.replace(".", ", ") for f in FIGURES[2:])]
    lines = [" | ".join(head), " | ".join(["---"] * len(head))]
    for method, of in found["methods"].items():
        cells = [method, str(found["seeds"][method])]
        gaps = found[f"{against}_minus"].get(method, {})
        for name in FIGURES:
            value = of.get(name)
            if value is None:
                cells.append("")
                continue
            gap = gaps.get("auc_ci") if name == "auc" else gaps.get(name, {}).get("ci")
            text = f"{value['mean'] if isinstance(value, dict) else value:.4f}"
            # The table reads "this method less the other": the sign of what is kept turns.
            cells.append(text + (" " + between([None if end is None else -end for end in reversed(gap)]) if gap else ""))
        lines.append(" | ".join(cells))
    notes = [f"{found['dataset']}, {found['date']}, {found['judged_on']['part']} days {' to '.join(found['judged_on']['days'])}."]
    covered = "users and seeds" if max(found["seeds"].values()) > 1 else "users alone, for there is one seed"
    notes += [f"In brackets: the method less {against}, paired by user and seed, {found['confidence']:.0%} interval over {covered}."]
    if {"logistic", "trees", "trees_plain"} & found["methods"].keys():
        notes.append(f"Left out of logistic and trees: {LEFT_OUT}.")
    networks = [run for run in found["runs"] if run["training"]]
    if networks:
        epochs = ", ".join(f"{r['method']} {r['seed']}: {r['training']['chosen']} of {r['training']['taken']}" for r in networks)
        notes.append(f"Epoch kept, by validation, of those taken: {epochs}.")
    last = [f"{r['method']} {r['seed']}" for r in networks if r["training"]["last_won"]]
    if last:
        notes.append(f"The last epoch allowed was the best of {', '.join(last)}: more epochs might help these.")
    return "\n".join(f"| {line} |" for line in lines) + "\n\n" + "\n".join(notes) + "\n"


def plot(found: Mapping[str, Any]) -> Figure:
    """AUC of the rankers, recall@10 of the retrievers over all and over new items, with intervals."""
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    panels = (("auc", "Ranking AUC"), ("all.recall@10", "recall@10, all items"), ("new.recall@10", "recall@10, new to the user"))
    for axes, (name, title) in zip(figure.subplots(1, 3), panels, strict=True):
        shown = {m: of for m, of in found["methods"].items() if name in of}
        for at, of in enumerate(shown.values()):
            value, ci = (of["auc"], of["auc_ci"]) if name == "auc" else (of[name]["mean"], of[name]["ci"])
            if None not in ci:
                axes.plot(ci, (at, at), color="#0b6e99", alpha=0.45, linewidth=3, solid_capstyle="round")
            axes.plot(value, at, "o", color="#0b6e99")
        axes.set_yticks(range(len(shown)), list(shown))
        axes.set(title=title, ylim=(len(shown) - 0.5, -0.5))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="#d9dee3")
    return figure
