"""How well DIG ranks beside the same ranker without DIG and beside gradient-boosted trees, on the same rows.

    python -m benchmarks.quality [--date 2017-11-15] [--seeds 2017 2018 2019]

Three rankers learn from the examples of the training window and are judged on the evaluation days of the date: DIG, Base (the same
network, ``model.loss.recall: 0``) and scikit-learn's histogram gradient boosting on the same fields and crosses, as
``benchmarks.tabular`` makes columns of them; each with every seed. DIG and Base are the trainings of the ablation's rows of these names.
Figures are means over the seeds. Intervals are over users and seeds, and differences of AUC are paired by both (``ablation_samples``); of
one seed an interval covers users alone. Writes ``benchmarks/results/quality.json`` and ``quality.png``; the exit status is 1 if a limit is
not met.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.baseline_trees import Data, trees
from benchmarks.intervals import Judge, auc_told, between
from benchmarks.judging import MAX_AUC_LOSS, Floats, add_options, asked, dig_or_base, facts, plainly, result_name
from benchmarks.tabular import LEFT_OUT
from dig_models.evaluate.scoring import exposed_rows, rank_rows
from jobs.config import Config
from jobs.evaluate import Draws, finite
from jobs.runs import write_json


def compare(config: Config, day: date, seeds: Sequence[int], settings: Path | None, sets: Sequence[str]) -> dict[str, Any]:
    """All three rankers, each with every seed, on the evaluation days of ``day``."""
    window = config.run_window(day)
    scores: dict[str, list[Floats]] = {"dig": [], "base": [], "trees": []}
    for seed in seeds:
        for kind in ("dig", "base"):
            bundle = dig_or_base(config, day, kind, seed, settings, sets)
            data = Data(config, bundle)
            test = data.requests(window.eval_first, window.eval_last)
            scores[kind].append(rank_rows(bundle.model, test, bundle.items))
        scores["trees"].append(trees(config, day, data, test, seed))
    judge = Judge(exposed_rows(test), Draws.over(config, test.user_B))
    rows, confidence = judge.rows, config.evaluate.confidence
    auc = {name: judge.auc(of) for name, of in scores.items()}
    gaps = {f"dig_minus_{other}": auc_told(auc["dig"] - auc[other], confidence) for other in ("base", "trees")}
    return {
        **facts(config, day, "evaluation", sets),
        "sample_users": config.dataset.sample_users,
        "confidence": confidence,
        "seeds": list(seeds),
        "rows": len(rows.label_R),
        "positives": int(rows.label_R.sum()),
        "users": len(judge.draws.users),
        "methods": {name: auc_told(auc[name], confidence) | judge.gauc(of) for name, of in scores.items()},
        "left_out_of_trees": LEFT_OUT,
        "differences": gaps,
        "limits": limits(gaps),
    }


def limits(gaps: Mapping[str, Mapping[str, Any]]) -> dict[str, bool]:
    """Whether the mean differences keep to what is asked for; the ablation's verdict holds the interval's end against the same loss."""
    return {
        f"auc_not_more_than_{MAX_AUC_LOSS}_below_base": gaps["dig_minus_base"]["auc"] >= -MAX_AUC_LOSS,
        "auc_above_trees": gaps["dig_minus_trees"]["auc"] > 0,
    }


def plot(found: dict[str, Any]) -> Figure:
    """AUC of each ranker, and DIG less the others, with intervals."""
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    labels = {"dig": "DIG", "base": "same ranker without DIG", "trees": "gradient-boosted trees"}
    groups = (
        (left, "Ranking AUC", {labels[k]: v for k, v in found["methods"].items()}),
        (right, "DIG less", {labels[k.removeprefix("dig_minus_")]: v for k, v in found["differences"].items()}),
    )
    for axes, title, values in groups:
        for at, value in enumerate(values.values()):
            if None not in value["auc_ci"]:
                axes.plot(value["auc_ci"], (at, at), color="#0b6e99", alpha=0.45, linewidth=3, solid_capstyle="round")
            axes.plot(value["auc"], at, "o", color="#0b6e99")
        axes.set_yticks(range(len(values)), list(values))
        axes.set(title=title, ylim=(len(values) - 0.5, -0.5))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="#d9dee3")
        axes.locator_params(axis="x", nbins=4)
    right.axvline(0, color="#6a737d", linewidth=1)
    right.axvline(-MAX_AUC_LOSS, color="#c2571a", linewidth=1, linestyle="--")
    return figure


@plainly
def main() -> None:
    """Parse the options, compare, write, and say what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_options(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=None, help="default: train.seed alone")
    args = parser.parse_args()
    config, day = asked(parser, args)
    found = compare(config, day, args.seeds or [config.train.seed], args.config, args.set)
    args.results.mkdir(parents=True, exist_ok=True)
    kept = result_name(config, "quality")
    write_json(args.results / f"{kept}.json", finite(found))
    plot(found).savefig(args.results / f"{kept}.png", dpi=150)
    for name, value in (found["methods"] | found["differences"]).items():
        seeds = " ".join(f"{of:+.4f}" for of in value["auc_by_seed"])
        print(f"{name:16} AUC {value['auc']:+.4f} {between(value['auc_ci'])}  by seed {seeds}")
    failed = [name for name, met in found["limits"].items() if not met]
    print("limits: " + ("all met" if not failed else f"NOT met: {', '.join(failed)}"))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
