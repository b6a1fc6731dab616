"""DIG beside the usual rankers and retrievers, on the same rows and requests, with intervals paired by user and seed.

    python -m benchmarks.baselines [--date 2017-11-08] [--seeds 2017 7 18] [--methods dig base din sasrec …]

Figures are means over the seeds. Intervals are over users and seeds, from one set of draws of both, and differences are paired by both
(``benchmarks.ablation_samples``); a method without chance is the same beside every seed, and its own interval covers users alone.

Rankers are judged on the exposed rows of the evaluation days, retrievers on the requests of the evaluation, over all items and over those
new to the user; the catalogue is that of DIG's model. All learn from the examples of the training window. Networks choose their epoch by
its validation days: the rankers among ``--epochs``, the retrievers, whose epochs are short, among up to ``--cap``, until ``--patience``
of them bring no gain. The file of a run has the figure of every epoch; the table says where the last one allowed was the best.
``--validation`` judges on the validation days instead, to tune by. There the networks and the trees, whose epochs these days chose, look a
little better than they are; ``dig`` and ``base`` had no such choice.

==============  =====================================================================================================================
``dig``         the pipeline's own model: its ranking path, and its search with re-ranking
``base``        the same network with ``model.loss.recall: 0``: ranking alone
``popularity``  events of all users in the window nearest to 30 days
``own``         the user's own most frequent items, then popularity; as a ranker, the user's count in the longest window, then popularity
``logistic``    logistic regression on crosses, numbers and every bucket of every field (scikit-learn)
``trees``       histogram gradient boosting on the same fields, wide and multi-valued ones as shares of earlier days (scikit-learn)
``trees_plain`` the same trees without those shares: nothing that the networks do not read
``din``         DIN: fields, crosses, history read by the item
``dcn``         DCNv2: fields, crosses, mean of the history, cross layers
``towers``      two towers with in-batch softmax, searched by FAISS
``sasrec``      SASRec with a sampled softmax
==============  =====================================================================================================================

A run is one method and seed; its scores and lists are kept under ``<home>/benchmarks/baselines`` and taken from there when asked again, so
a benchmark that was cut short goes on. Writes ``benchmarks/results/baselines.json``, ``baselines.md`` and ``baselines.png``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.baseline_runs import METHODS, UNSEEDED, Arrays, Kept, World, run_one
from benchmarks.baselines_table import plot, summary, table
from benchmarks.judging import SEEDS, Judged, add_options, add_validation, asked, dig_or_base, facts, part_of, plainly, result_name
from jobs.evaluate import finite
from jobs.files import replace_text
from jobs.runs import write_json


def run_all(world: World, methods: Sequence[str], seeds: Sequence[int], tell: Callable[[str], None]) -> list[tuple[Arrays, dict[str, Any]]]:
    """Every method with every seed (those without chance once), one run after the other; the time left goes by the runs made, not found."""
    todo = [(m, s) for m in methods for s in (seeds[:1] if m in UNSEEDED else seeds)]
    there = [Kept.of(world, method, seed).row() is not None for method, seed in todo]
    out, missing, made, spent = [], there.count(False), 0, 0.0
    for number, ((method, seed), found) in enumerate(zip(todo, there, strict=True), start=1):
        out.append(run_one(world, method, seed))
        if not found:
            made, spent = made + 1, spent + out[-1][1]["seconds"]
        state = "there already" if found else f"{out[-1][1]['seconds']} s"
        left = f"; about {spent / made * (missing - made) / 60:.0f} min left" if made else ""
        tell(f"{number}/{len(todo)} {method} seed {seed}: {state}{left}")
    return out


def compare(world: World, methods: Sequence[str], seeds: Sequence[int], tell: Callable[[str], None]) -> dict[str, Any]:
    """What the result file holds."""
    judged, found = world.judged, run_all(world, methods, seeds, tell)
    runs = {m: [arrays for arrays, row in found if row["method"] == m] for m in methods}
    return {
        **facts(world.config, world.day, judged.part, world.settings[1]),
        "lineage": judged.bundle.info["lineage"],
        "requests": len(judged.index_Q),
        "confidence": world.config.evaluate.confidence,
        "seeds": {m: len(of) for m, of in runs.items()},
        "runs": [{k: row[k] for k in ("method", "seed", "seconds", "training")} for _, row in found],
        **summary(judged, runs, methods[0]),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_options(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help=f"default: {' '.join(map(str, SEEDS))}")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), help="differences are of the first one")
    parser.add_argument("--epochs", type=int, default=3, help="of the ranking networks; the validation days choose among them")
    parser.add_argument("--cap", type=int, default=40, help="epochs of the retrieving networks at most; the validation days choose")
    parser.add_argument("--patience", type=int, default=6, help="epochs without a gain after which a retrieving network is done")
    add_validation(parser)
    return parser


@plainly
def main() -> None:
    """Parse the options, run what is missing, write table and plot."""
    parser = _parser()
    args = parser.parse_args()
    config, day = asked(parser, args)
    seeds = list(dict.fromkeys(args.seeds))
    settings = (args.config, tuple(args.set))
    bundle = dig_or_base(config, day, "dig", seeds[0], *settings)
    judged = Judged.open(config, day, config.evaluate.max_requests, bundle, part_of(args))
    world = World(config=config, day=day, judged=judged, epochs=args.epochs, cap=args.cap, patience=args.patience, settings=settings)
    methods = list(dict.fromkeys(args.methods))
    found = compare(world, methods, seeds, lambda text: print(text, flush=True))
    args.results.mkdir(parents=True, exist_ok=True)
    name = result_name(config, "baselines", judged.part)
    write_json(args.results / f"{name}.json", finite(found))
    replace_text(args.results / f"{name}.md", table(found, methods[0]))
    plot(found).savefig(args.results / f"{name}.png", dpi=150)
    print(table(found, methods[0]))


if __name__ == "__main__":
    main()
