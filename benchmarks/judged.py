"""Requests, relevant items and figures as the evaluation has them, for benchmarks that bring lists of their own.

Shape suffixes: ``Q`` requests, ``K`` ranks, ``U`` users, ``S`` bootstrap replicates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dig_models.bundle import Bundle, load_bundle
from dig_models.crosses import CrossStore
from dig_models.evaluate import bootstrap, retrieval
from dig_models.evaluate.lists import VARIANTS, Variant
from dig_models.features import hash_id
from dig_models.retrieve.rerank import Retriever
from dig_models.train.data import RequestTable, request_columns
from jobs.config import Config
from jobs.dates import days_between
from jobs.evaluate import relevant_items
from jobs.lake import Lake

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Lists = Mapping[Variant, Mapping[str, Ints]]


def finite(value: Any) -> Any:
    """The same figures with null for what could not be measured, as JSON needs it."""
    if isinstance(value, dict):
        return {name: finite(of) for name, of in value.items()}
    if isinstance(value, list | tuple):
        return [finite(of) for of in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def chosen(requests: RequestTable, request_ids: list[str], most: int) -> Ints:
    """Requests with a relevant item, at most ``most``, those with the smallest hashes of their ids; ascending, as in ``jobs.evaluate``."""
    request_R, at_R = requests.rows_of(np.arange(len(requests), dtype=np.int64))
    asked = np.unique(request_R[requests.label_R[at_R] > 0])
    order = np.argsort([hash_id(request_ids[b]) for b in asked], kind="stable")
    return np.sort(asked[order[:most]])


@dataclass(frozen=True)
class Judged:
    """The evaluation days of a finished run, ready to be asked.

    Attributes:
        requests: every request of the days; ``index_Q`` are those that lists are judged on.
        bought: item rows that the user of each of them bought before.
    """

    config: Config
    day: date
    bundle: Bundle
    store: CrossStore
    requests: RequestTable
    index_Q: Ints
    bought: list[Ints]

    @classmethod
    def open(cls, config: Config, day: date, most: int, bundle: Bundle | None = None) -> Judged:
        """Read what the evaluation of ``day`` reads.

        Args:
            config: its lake and checkpoints hold a finished training for the day.
            day: the run date.
            most: requests to judge lists on.
            bundle: the model whose catalogue counts; that of the day by default.
        """
        window, lake, spec = config.run_window(day), Lake(config.paths.at("lake")), config.dataset.spec()
        if bundle is None:
            bundle = load_bundle(Path(config.paths.at("checkpoints")) / day.isoformat() / "bundle", spec)
        columns = [*request_columns(spec), "request_id"]
        table = lake.read_arrow("examples", days_between(window.eval_first, window.eval_last), columns=columns)
        requests = RequestTable.from_arrow(table, spec, bundle.items)
        store = CrossStore.open(lake.folder("cross_arrays", day), spec, bundle.items)
        index_Q = chosen(requests, table.column("request_id").to_pylist(), most)
        bought = [store.bought(int(requests.user_B[b]), int(requests.ts_B[b])) for b in index_Q]
        return cls(config, day, bundle, store, requests, index_Q, bought)

    @cached_property
    def retriever(self) -> Retriever:
        """The model of the run on its catalogue."""
        bundle = self.bundle
        return Retriever.of(bundle.model, bundle.spec, bundle.items, self.store, codes_NL=bundle.codes_NL)

    @cached_property
    def user_Q(self) -> Ints:
        """Index of each judged request's user."""
        return np.unique(self.requests.user_B[self.index_Q], return_inverse=True)[1].astype(np.int64)

    @cached_property
    def draw_SU(self) -> Floats:
        """Bootstrap draws over the users of the judged requests, the same for every method."""
        return bootstrap.draws(int(self.user_Q.max()) + 1, self.config.evaluate.bootstrap, self.config.train.seed)

    @cached_property
    def relevant(self) -> dict[Variant, list[Ints]]:
        """Relevant item rows of each judged request, by variant."""
        return {v: relevant_items(self.requests, self.index_Q, self.bought if v == "new" else None) for v in VARIANTS}

    def excluded(self, variant: Variant) -> list[Ints]:
        """Item rows that no list of a variant may hold."""
        return self.bought if variant == "new" else [b[:0] for b in self.bought]

    def values(self, variant: Variant, list_QK: Ints, k: int = 10) -> dict[str, Floats]:
        """``recall@k`` and ``ndcg@k`` of each request, NaN where nothing is relevant; lists are padded with -1."""
        relevant = self.relevant[variant]
        size_Q = np.array([len(r) for r in relevant], dtype=np.int64)
        flat, offset = np.concatenate([np.zeros(0, np.int64), *relevant]), np.concatenate([[0], np.cumsum(size_Q)])
        hit = retrieval.hits(list_QK, flat, offset)
        return {f"recall@{k}": retrieval.recall_at(hit, size_Q, k), f"ndcg@{k}": retrieval.ndcg_at(hit, size_Q, k)}

    def samples(self, value_Q: Floats) -> Floats:
        """Mean over requests in each bootstrap replicate, ``(S,)``."""
        return bootstrap.mean_samples(value_Q, self.user_Q, self.draw_SU)

    def figure(self, value_Q: Floats) -> dict[str, Any]:
        """Mean over requests with its interval."""
        mean = float(np.nanmean(value_Q)) if np.isfinite(value_Q).any() else float("nan")
        return {"mean": mean, "ci": list(bootstrap.interval(self.samples(value_Q), self.config.evaluate.confidence))}
