"""How well DIG ranks beside the same ranker without DIG and beside gradient-boosted trees, on the same rows.

    python -m benchmarks.quality [--date 2017-11-15] [--seeds 2017 2018 2019]

Three rankers learn from the examples of the training window and are judged on the evaluation days of the date: DIG, Base (the same
network, ``model.loss.recall: 0``) and scikit-learn's histogram gradient boosting on the same fields and crosses, as
``benchmarks.tabular`` makes columns of them. Differences of AUC are paired over users and, with several seeds, averaged over seeds. Writes
``benchmarks/results/quality.json`` and ``quality.png``; the exit status is 1 if a limit is not met.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure
from sklearn.ensemble import HistGradientBoostingClassifier

from benchmarks.judging import MAX_AUC_LOSS, Floats, Judge, ablation_home, add_options, asked, changes_of, model_home, result_name
from benchmarks.judging import trained as train_anew
from benchmarks.tabular import LEFT_OUT, TreeColumns
from dig_models.bundle import Bundle
from dig_models.evaluate.scoring import exposed_rows, rank_rows
from dig_models.train.data import RequestTable, request_columns
from jobs.config import Config
from jobs.dates import days_between
from jobs.lake import Lake
from jobs.runs import write_json


def trained(config: Config, day: date, kind: str, seed: int, settings: Path | None, sets: Sequence[str]) -> Bundle:
    """Bundle of a ranker, trained in a home of its own, the same as the ablation's row of that name (``kind``) and seed."""
    home = model_home(ablation_home(config, day), kind, seed)
    changes = changes_of(config, home, seed, {"model.loss.recall": 0} if kind == "base" else {})
    return train_anew(day, home, settings, [*sets, *changes])


class Data:
    """Requests of days as arrays, on one item table."""

    def __init__(self, config: Config, bundle: Bundle) -> None:
        self.spec, self.items, self.lake = bundle.spec, bundle.items, Lake(config.paths.at("lake"))
        self.affinity = bundle.model.affinity

    def requests(self, first: date, last: date) -> RequestTable:
        """Examples of some days."""
        columns = request_columns(self.spec)
        table: pa.Table = self.lake.read_arrow("examples", days_between(first, last), columns=columns)
        return RequestTable.from_arrow(table, self.spec, self.items)


def trees(config: Config, day: date, data: Data, test: RequestTable, seed: int) -> Floats:
    """Scores of gradient-boosted trees, stopped early on the validation days."""
    window = config.run_window(day)
    fit, validation = data.requests(window.train_first, window.fit_last), data.requests(window.validation_first, window.train_last)
    columns = TreeColumns.fit(data.spec, data.items, fit, data.affinity)
    model = HistGradientBoostingClassifier(
        max_iter=400, learning_rate=0.08, max_leaf_nodes=63, l2_regularization=1.0, categorical_features=columns.categorical,
        early_stopping=True, n_iter_no_change=15, scoring="roc_auc", random_state=seed,
    )  # fmt: skip
    model.fit(columns.of(fit), exposed_rows(fit).label_R, X_val=columns.of(validation), y_val=exposed_rows(validation).label_R)
    return np.asarray(model.decision_function(columns.of(test)), dtype=np.float64)


def compare(config: Config, day: date, seeds: Sequence[int], settings: Path | None, sets: Sequence[str]) -> dict[str, Any]:
    """All three rankers on the evaluation days of ``day``."""
    window = config.run_window(day)
    scores: dict[str, list[Floats]] = {"dig": [], "base": [], "trees": []}
    for seed in seeds:
        for kind in ("dig", "base"):
            bundle = trained(config, day, kind, seed, settings, sets)
            data = Data(config, bundle)
            test = data.requests(window.eval_first, window.eval_last)
            scores[kind].append(rank_rows(bundle.model, test, bundle.items))
    rows = exposed_rows(test)
    scores["trees"].append(trees(config, day, data, test, seeds[0]))
    judge = Judge(config, rows)
    gaps = {f"dig_minus_{other}": judge.difference(scores["dig"], scores[other]) for other in ("base", "trees")}
    return {
        "date": day.isoformat(),
        "dataset": config.dataset.name,
        "acceptance": config.in_acceptance(day),
        "sample_users": config.dataset.sample_users,
        "evaluation": [window.eval_first.isoformat(), window.eval_last.isoformat()],
        "seeds": list(seeds),
        "rows": len(rows.label_R),
        "positives": int(rows.label_R.sum()),
        "users": int(judge.draw_SU.shape[1]),
        "methods": {name: judge.method(of) for name, of in scores.items()},
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
            axes.plot(value["auc_ci"], (at, at), color="#0b6e99", alpha=0.45, linewidth=3, solid_capstyle="round")
            axes.plot(value["auc"], at, "o", color="#0b6e99")
        axes.set_yticks(range(len(values)), list(values))
        axes.set(title=title, ylim=(len(values) - 0.5, -0.5))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="#d9dee3")
    right.axvline(0, color="#6a737d", linewidth=1)
    right.axvline(-MAX_AUC_LOSS, color="#c2571a", linewidth=1, linestyle="--")
    return figure


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
    write_json(args.results / f"{kept}.json", found)
    plot(found).savefig(args.results / f"{kept}.png", dpi=150)
    for name, value in (found["methods"] | found["differences"]).items():
        low, high = value["auc_ci"]
        print(f"{name:16} AUC {value['auc']:+.4f} [{low:+.4f}, {high:+.4f}]")
    failed = [name for name, met in found["limits"].items() if not met]
    print("limits: " + ("all met" if not failed else f"NOT met: {', '.join(failed)}"))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
