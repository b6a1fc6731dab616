"""DIG beside the usual rankers and retrievers, on the same rows and requests, with intervals paired by user.

    python -m benchmarks.baselines [--date 2017-11-08] [--seeds 2017 7 18] [--methods dig base din sasrec …]

Figures are means over the seeds, intervals and paired differences from one set of draws over users (``benchmarks.judging``).

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
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.baseline_fit import Curve, Days, SasRecRetriever, TowerRetriever, logistic, ranker
from benchmarks.judging import SEEDS, Judge, Judged, add_options, add_validation, asked, facts, judged_days, part_of, result_name
from benchmarks.quality import Data, trained, trees
from benchmarks.tabular import LEFT_OUT, linear
from dig_models.bundle import Bundle
from dig_models.evaluate.lists import VARIANTS, Contender, Search, baselines, columns, recommend_all
from dig_models.evaluate.scoring import exposed_rows, rank_rows
from dig_models.retrieve.rerank import Retriever
from jobs.config import Config
from jobs.dataset_config import digest_of
from jobs.evaluate import finite
from jobs.files import replace_text
from jobs.lake import Lake, code_digest
from jobs.runs import write_json

Arrays = dict[str, NDArray[Any]]
Floats = NDArray[np.float64]
CODE = (
    *(f"benchmarks.{m}" for m in ("baseline_fit", "baseline_models", "baselines", "judging", "quality", "tabular")),
    *(f"dig_models.{m}" for m in ("affinity", "arrays", "batch", "bundle", "cross_files", "crosses", "dig", "evaluate", "features")),
    *(f"dig_models.{m}" for m in ("items", "losses", "nn", "quantize", "retrieve", "train", "u2t")),
    *(f"jobs.{m}" for m in ("dataset_config", "dates", "evaluate")),
)
"""Modules that scores and lists depend on: a change in one of them makes the runs anew."""
K = 10
UNSEEDED = ("popularity", "own")


@dataclass
class World:
    """What all methods share.

    Attributes:
        judged: requests and rows, on the catalogue of ``judged.bundle``.
        epochs, cap, patience: as ``Days`` has them.
        settings: file and ``--set`` options, for the trainings of ``dig`` and ``base``.
    """

    config: Config
    day: date
    judged: Judged
    epochs: int
    cap: int
    patience: int
    settings: tuple[Path | None, tuple[str, ...]]

    @cached_property
    def data(self) -> Data:
        """Examples of days on the catalogue."""
        return Data(self.config, self.judged.bundle)

    def days(self, seed: int) -> Days:
        """What a baseline learns from."""
        window, bundle = self.config.run_window(self.day), self.judged.bundle
        return Days(
            spec=bundle.spec,
            items=bundle.items,
            store=self.judged.store,
            fit=self.data.requests(window.train_first, window.fit_last),
            validation=self.data.requests(window.validation_first, window.train_last),
            train=self.config.train,
            keep_rate=self.config.dataset.sampling.exposed_negative_rate,
            seed=seed,
            epochs=self.epochs,
            cap=self.cap,
            patience=self.patience,
            affinity=bundle.model.affinity,
        )

    def bundle(self, kind: str, seed: int) -> Bundle:
        """DIG or Base of a seed, trained if it is not there."""
        return trained(self.config, self.day, kind, seed, *self.settings)


class Made(NamedTuple):
    """What a method brings.

    Attributes:
        arrays: ``score_R`` of the exposed rows and lists by variant, as far as the method has them.
        curve: of a network trained here.
    """

    arrays: Arrays
    curve: Curve | None = None


Method = Callable[[World, int], Made]


def dig(world: World, seed: int) -> Made:
    """Ranking path, and search with re-ranking."""
    bundle, judged = world.bundle("dig", seed), world.judged
    retriever = Retriever.of(bundle.model, judged.bundle.spec, judged.bundle.items, judged.store)
    shape, retrieve = bundle.model.config, world.config.retrieve
    search = Search(beam=retrieve.beam, rerank=retrieve.rerank, u2t=shape.u2t_inference, path_score=shape.path_score)
    contender = Contender(name="dig", retriever=retriever, search=search)
    lists, _ = recommend_all([contender], judged.requests, judged.index_Q, k=K)
    return Made({"score_R": rank_rows(bundle.model, judged.requests, judged.bundle.items), **{v: lists[v]["dig"] for v in VARIANTS}})


def base(world: World, seed: int) -> Made:
    """The ranker without DIG."""
    bundle, judged = world.bundle("base", seed), world.judged
    bundle.model.set_items(judged.bundle.items)
    return Made({"score_R": rank_rows(bundle.model.eval(), judged.requests, judged.bundle.items)})


def plain(name: str) -> Method:
    """Popularity, or the user's own frequency: a column of the crosses as a score, and the list of the evaluation."""

    def run(world: World, seed: int) -> Made:
        judged, spec = world.judged, world.judged.bundle.spec
        popularity, own = columns(spec)
        rows_R = judged.requests.rows_of(np.arange(len(judged.requests), dtype=np.int64))[1]
        raw_RW = judged.requests.cross_RW[rows_R[judged.requests.source_R[rows_R] == 0]].astype(np.float64)
        # Counts are whole numbers: popularity below one only breaks their ties.
        share_R = raw_RW[:, popularity] / (1.0 + raw_RW[:, popularity].max(initial=0.0))
        out: Arrays = {"score_R": share_R if name == "popularity" else raw_RW[:, own] + share_R}
        for variant in VARIANTS:
            lists = []
            for b, gone in zip(judged.index_Q, judged.excluded(variant), strict=True):
                asked = (int(column[b]) for column in (judged.requests.user_B, judged.requests.ts_B, judged.requests.offer_B))
                found = baselines(spec, [judged.store.catalogue(*asked)], [gone], K)
                lists.append(found["popularity" if name == "popularity" else "own_frequency"][0])
            out[variant] = np.stack(lists)
        return Made(out)

    return run


def regression(world: World, seed: int) -> Made:
    """Logistic regression."""
    days, bundle = world.days(seed), world.judged.bundle
    fit, test = linear(bundle.spec, bundle.items, days.fit, world.judged.requests, days.affinity)
    return Made({"score_R": logistic(fit, exposed_rows(days.fit).label_R, test, seed)})


def boosted(world: World, seed: int) -> Made:
    """Gradient-boosted trees."""
    return Made({"score_R": trees(world.config, world.day, world.data, world.judged.requests, seed)})


def network(kind: Literal["din", "dcn"]) -> Method:
    """DIN or DCNv2."""

    def run(world: World, seed: int) -> Made:
        score_R, curve = ranker(kind, world.days(seed), world.judged.requests)
        return Made({"score_R": score_R}, curve)

    return run


def retrieving(kind: type[TowerRetriever] | type[SasRecRetriever]) -> Method:
    """Two towers or SASRec."""

    def run(world: World, seed: int) -> Made:
        judged, found = world.judged, kind(world.days(seed))
        return Made({v: found.lists(judged.requests, judged.index_Q, judged.excluded(v), K) for v in VARIANTS}, found.curve)

    return run


METHODS: Mapping[str, Method] = {
    "dig": dig,
    "base": base,
    "popularity": plain("popularity"),
    "own": plain("own"),
    "logistic": regression,
    "trees": boosted,
    "din": network("din"),
    "dcn": network("dcn"),
    "towers": retrieving(TowerRetriever),
    "sasrec": retrieving(SasRecRetriever),
}


def run_one(world: World, method: str, seed: int) -> tuple[Arrays, dict[str, Any]]:
    """Scores and lists of a method and seed, and the row that says what made them; from disk if they were made before from the same."""
    folder, part = Path(world.config.paths.home).resolve() / "benchmarks" / "baselines" / world.day.isoformat(), world.judged.part
    folder = folder if part == "evaluation" else folder / part
    examples = {"examples": judged_days(world.config, world.day, part)}
    made_from = {
        "judged_on": [part, Lake(world.config.paths.at("lake")).inputs(examples)],
        "lineage": world.judged.bundle.info["lineage"],
        "train": world.config.digest("train", "model", "retrieve") if method in ("dig", "base") else world.config.digest("train"),
        "epochs": [world.epochs, world.cap, world.patience],
        "requests": len(world.judged.index_Q),
        "code": code_digest(*CODE),
    }
    row_file, arrays_file, key = folder / f"{method}-{seed}.json", folder / f"{method}-{seed}.npz", digest_of(made_from)
    if row_file.is_file():
        row: dict[str, Any] = json.loads(row_file.read_text())
        if row["key"] == key and arrays_file.is_file():
            with np.load(arrays_file, allow_pickle=False) as kept:
                return {name: kept[name] for name in kept.files}, row
    began = time.perf_counter()
    arrays, curve = METHODS[method](world, seed)
    row = {"method": method, "seed": seed, "key": key, "seconds": round(time.perf_counter() - began, 1)}
    row["training"] = curve.row() if curve else None
    folder.mkdir(parents=True, exist_ok=True)
    with arrays_file.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    write_json(row_file, row)  # last: without it the arrays do not count
    return arrays, row


def summary(world: World, runs: Mapping[str, Sequence[Arrays]], against: str) -> dict[str, Any]:
    """Figures of every method, means over its seeds, and one method's less each other's, paired by user.

    Args:
        world: what was asked.
        runs: scores and lists by method, one for each seed.
        against: the method that differences are of.
    """
    judged, judge = world.judged, Judge(world.config, exposed_rows(world.judged.requests))
    values: dict[str, dict[str, Floats]] = {}
    for method, of in runs.items():
        values[method] = {}
        for variant in VARIANTS:
            if variant in of[0]:
                each = [judged.values(variant, arrays[variant]) for arrays in of]
                values[method] |= {f"{variant}.{name}": np.mean([e[name] for e in each], axis=0) for name in each[0]}
    methods: dict[str, Any] = {}
    gaps: dict[str, Any] = {}
    for method, of in runs.items():
        ranks = "score_R" in of[0]
        methods[method] = judge.method([a["score_R"] for a in of]) if ranks else {}
        methods[method] |= {name: judged.figure(value_Q) for name, value_Q in values[method].items()}
        if method == against or against not in runs:
            continue
        gaps[method] = {}
        if ranks and "score_R" in runs[against][0]:
            gaps[method] |= judge.difference([a["score_R"] for a in runs[against]], [a["score_R"] for a in of])
        for name in values[method].keys() & values[against].keys():
            gaps[method][name] = _gap(judged, values[against][name], values[method][name])
    return {"methods": methods, f"{against}_minus": gaps}


def _gap(judged: Judged, one_Q: Floats, other_Q: Floats) -> dict[str, Any]:
    return {"mean": judged.mean(one_Q) - judged.mean(other_Q), "ci": judged.draws.interval(judged.samples(one_Q) - judged.samples(other_Q))}


FIGURES = ("auc", "gauc", "all.recall@10", "all.ndcg@10", "new.recall@10", "new.ndcg@10")


def table(found: Mapping[str, Any], against: str = "dig") -> str:
    """The methods as a Markdown table: figure, and in brackets the interval of the paired difference to ``against``."""
    head = ["method", "seeds", "AUC", "GAUC", *(f.replace(".", ", ").replace("@", "@") for f in FIGURES[2:])]
    lines = [" | ".join(head), " | ".join(["---"] * len(head))]
    for method, of in found["methods"].items():
        cells = [method, str(found["seeds"][method])]
        gaps = found[f"{against}_minus"].get(method, {})
        for name in FIGURES:
            value = of.get(name)
            if value is None:
                cells.append("")
                continue
            gap = gaps.get("auc_ci") if name == "auc" else gaps.get(name, {}).get("ci") if isinstance(gaps.get(name), dict) else None
            text = f"{value['mean'] if isinstance(value, dict) else value:.4f}"
            # The table reads "this method less the other": the sign of what is kept turns.
            cells.append(text + (f" [{-gap[1]:+.4f}, {-gap[0]:+.4f}]" if gap else ""))
        lines.append(" | ".join(cells))
    notes = [f"{found['dataset']}, {found['date']}, {found['judged_on']['part']} days {' to '.join(found['judged_on']['days'])}."]
    notes += [f"In brackets: the method less {against}, paired by user, {found['confidence']:.0%} interval."]
    if {"logistic", "trees"} & found["methods"].keys():
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
            axes.plot(ci, (at, at), color="#0b6e99", alpha=0.45, linewidth=3, solid_capstyle="round")
            axes.plot(value, at, "o", color="#0b6e99")
        axes.set_yticks(range(len(shown)), list(shown))
        axes.set(title=title, ylim=(len(shown) - 0.5, -0.5))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="#d9dee3")
    return figure


def compare(world: World, methods: Sequence[str], seeds: Sequence[int], tell: Callable[[str], None]) -> dict[str, Any]:
    """Every method with every seed (those without chance once), one run after the other."""
    todo = [(m, s) for m in methods for s in (seeds[:1] if m in UNSEEDED else seeds)]
    runs: dict[str, list[Arrays]] = {m: [] for m in methods}
    rows, began = [], time.perf_counter()
    for done, (method, seed) in enumerate(todo, start=1):
        arrays, row = run_one(world, method, seed)
        runs[method].append(arrays)
        rows.append(row)
        left = (time.perf_counter() - began) / done * (len(todo) - done)
        tell(f"{done}/{len(todo)} {method} seed {seed}: {row['seconds']} s; about {left / 60:.0f} min left")
    judged = world.judged
    return {
        **facts(world.config, world.day, judged.part),
        "lineage": judged.bundle.info["lineage"],
        "requests": len(judged.index_Q),
        "confidence": world.config.evaluate.confidence,
        "seeds": {m: len(of) for m, of in runs.items()},
        "runs": [{k: row[k] for k in ("method", "seed", "seconds", "training")} for row in rows],
        **summary(world, runs, methods[0]),
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


def main() -> None:
    """Parse the options, run what is missing, write table and plot."""
    parser = _parser()
    args = parser.parse_args()
    config, day = asked(parser, args)
    seeds = list(dict.fromkeys(args.seeds))
    settings = (args.config, tuple(args.set))
    bundle = trained(config, day, "dig", seeds[0], *settings)
    judged = Judged.open(config, day, config.evaluate.max_requests, bundle, part_of(args))
    world = World(config=config, day=day, judged=judged, epochs=args.epochs, cap=args.cap, patience=args.patience, settings=settings)
    found = compare(world, args.methods, seeds, lambda text: print(text, flush=True))
    args.results.mkdir(parents=True, exist_ok=True)
    name = result_name(config, "baselines", judged.part)
    write_json(args.results / f"{name}.json", finite(found))
    replace_text(args.results / f"{name}.md", table(found, args.methods[0]))
    plot(found).savefig(args.results / f"{name}.png", dpi=150)
    print(table(found, args.methods[0]))


if __name__ == "__main__":
    main()
