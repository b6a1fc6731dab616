"""One run of ``benchmarks.baselines``: a method with a seed, its scores and lists, kept with the key of all that decides them.

What makes the table of the runs is elsewhere (``baselines_table``, ``intervals``): a change there makes no run anew.

Shape suffixes: ``B`` and ``Q`` requests, ``R`` rows, ``W`` crosses.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.baseline_fit import Curve, Days, SasRecRetriever, TowerRetriever, logistic, ranker
from benchmarks.baseline_trees import Data, trees
from benchmarks.judging import Judged, dig_or_base, judged_days
from benchmarks.tabular import linear
from dig_models.bundle import Bundle
from dig_models.evaluate.lists import VARIANTS, Contender, Search, baselines, columns, recommend_all
from dig_models.evaluate.scoring import exposed_rows, rank_rows
from dig_models.retrieve.rerank import Retriever
from jobs.config import Config
from jobs.dataset_config import digest_of
from jobs.lake import Lake, code_digest
from jobs.runs import write_json

Arrays = dict[str, NDArray[Any]]
CODE = (
    *(f"benchmarks.{m}" for m in ("baseline_fit", "baseline_models", "baseline_runs", "baseline_trees", "judging", "tabular")),
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
        return dig_or_base(self.config, self.day, kind, seed, *self.settings)


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


def boosted(*, shares: bool) -> Method:
    """Gradient-boosted trees."""

    def run(world: World, seed: int) -> Made:
        return Made({"score_R": trees(world.config, world.day, world.data, world.judged.requests, seed, shares=shares)})

    return run


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
    "trees": boosted(shares=True),
    "trees_plain": boosted(shares=False),
    "din": network("din"),
    "dcn": network("dcn"),
    "towers": retrieving(TowerRetriever),
    "sasrec": retrieving(SasRecRetriever),
}


class Kept(NamedTuple):
    """Where a run is kept, and the digest of all that decides it."""

    row_file: Path
    arrays_file: Path
    key: str

    @classmethod
    def of(cls, world: World, method: str, seed: int) -> Kept:
        """Of a method with a seed."""
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
        return cls(folder / f"{method}-{seed}.json", folder / f"{method}-{seed}.npz", digest_of(made_from))

    def row(self) -> dict[str, Any] | None:
        """The row that says what made it; None if it is not there, or was made from something else."""
        if not (self.row_file.is_file() and self.arrays_file.is_file()):
            return None
        row: dict[str, Any] = json.loads(self.row_file.read_text())
        return row if row["key"] == self.key else None


def run_one(world: World, method: str, seed: int) -> tuple[Arrays, dict[str, Any]]:
    """Scores and lists of a method and seed, and the row that says what made them; from disk if they were made before from the same."""
    kept = Kept.of(world, method, seed)
    if (row := kept.row()) is not None:
        with np.load(kept.arrays_file, allow_pickle=False) as arrays_kept:
            return {name: arrays_kept[name] for name in arrays_kept.files}, row
    began = time.perf_counter()
    arrays, curve = METHODS[method](world, seed)
    row = {"method": method, "seed": seed, "key": kept.key, "seconds": round(time.perf_counter() - began, 1)}
    row["training"] = curve.row() if curve else None
    kept.row_file.parent.mkdir(parents=True, exist_ok=True)
    with kept.arrays_file.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    write_json(kept.row_file, row)  # last: without it the arrays do not count
    return arrays, row
