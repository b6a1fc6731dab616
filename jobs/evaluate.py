"""Score the challenger, the champion and the baselines on the evaluation days of a date; keep the figures and their intervals.

Ranking figures are over exposed rows, weighted by their sampling weight; retrieval figures are over requests with at least
one relevant item, against the whole catalogue that the challenger was trained on. ``docs/reference/metrics.md`` defines each.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dig_models.bundle import Bundle, BundleError, BundleMismatch, load_bundle
from dig_models.crosses import CrossStore
from dig_models.evaluate import bootstrap, ranking, retrieval, sid_quality
from dig_models.evaluate.lists import VARIANTS, Contender, Lists, Search, recommend_all
from dig_models.evaluate.scoring import Rows, Scores, exposed_rows, score_rows
from dig_models.features import FeatureSpec, hash_id
from dig_models.retrieve.rerank import Retriever
from dig_models.train.data import RequestTable, request_columns
from dig_models.train.warm import between, unaligned
from jobs import registry, runs
from jobs.config import Config
from jobs.dates import days_between
from jobs.entry import Invocation, JobError, run
from jobs.lake import Lake
from jobs.progress import emit
from jobs.registry import ModelRef

log = logging.getLogger("jobs.evaluate")
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
SUMMARY_KS = (10, 50)


@dataclass(frozen=True, kw_only=True)
class Champion:
    """The model to compare with; ``bundle`` is None if it cannot be scored on these examples, ``reason`` says why."""

    ref: ModelRef
    bundle: Bundle | None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Bootstrap draws over all users of the evaluation days."""

    users: Ints
    draw_SU: Floats
    confidence: float

    @classmethod
    def over(cls, config: Config, user_B: Ints) -> Draws:
        """Draws for the users of some requests; the seed is ``train.seed``."""
        users = np.unique(user_B)
        draw_SU = bootstrap.draws(len(users), config.evaluate.bootstrap, config.train.seed)
        return cls(users=users, draw_SU=draw_SU, confidence=config.evaluate.confidence)

    def of(self, user: Ints) -> Ints:
        """Index of user hashes into the draws."""
        return np.searchsorted(self.users, user).astype(np.int64)

    def interval(self, sample_S: Floats) -> list[float]:
        """Lower and upper bound at the configured confidence."""
        return list(bootstrap.interval(sample_S, self.confidence))


def evaluate(config: Config, day: date) -> dict[str, Any]:
    """Every figure of the run for ``day``; what ``evaluate.json`` holds. Figures that cannot be measured are null.

    Raises:
        JobError: no bundle, no examples, or a partition is missing.
        FeatureSpecMismatch: the bundle was trained with another data-set config.
    """
    spec, window = config.dataset.spec(), config.run_window(day)
    bundle = _challenger(config, day, spec)
    champion = _champion(config, day, str(bundle.info["lineage"]), spec)
    days = days_between(window.eval_first, window.eval_last)
    lake = Lake(config.paths.at("lake"))
    table = lake.read_arrow("examples", days, columns=[*request_columns(spec), "request_id"])
    requests = RequestTable.from_arrow(table, spec, bundle.items)
    if not len(requests):
        raise JobError(f"examples of {days[0]} to {days[-1]} hold no request: nothing to evaluate on; check ingest of these days")
    store = CrossStore.open(lake.folder("cross_arrays", day), spec, bundle.items)
    contenders = [_contender("dig", bundle, bundle.codes_NL, bundle, store, config)]
    if champion and champion.bundle:
        contenders.append(_contender("champion", champion.bundle, None, bundle, store, config))
    chosen = chosen_requests(requests, table.column("request_id").to_pylist(), config.evaluate.max_requests)
    progress = _Progress(len(requests) * len(contenders) + len(chosen))
    rows = exposed_rows(requests)
    scores = {c.name: score_rows(c.retriever, requests, ready=progress.part(len(requests))) for c in contenders}
    ks = tuple(sorted({*config.evaluate.ks, *SUMMARY_KS}))
    lists, bought = recommend_all(contenders, requests, chosen, k=max(ks), ready=progress.part(len(chosen)))
    draws = Draws.over(config, requests.user_B)
    ranked = {name: _ranking(rows, of, draws) for name, of in scores.items()}
    found = _retrieval(lists, bought, requests, chosen, ks, draws)
    figures = {
        "date": day.isoformat(),
        "dataset": config.dataset.name,
        "acceptance": config.in_acceptance(day),
        "lineage": bundle.info["lineage"],
        "window": {k: v.isoformat() for k, v in vars(window).items()},
        "requests": len(requests),
        "users": len(draws.users),
        "rows": len(rows.label_R),
        "positives": int(rows.label_R.sum()),
        "rows_outside_catalogue": _outside(requests),
        "ranking": ranked["dig"],
        "retrieval": found,
        "sid": _sid(contenders[0].retriever, bundle, requests, chosen),
        "champion": _champion_figures(champion, ranked, found),
        "churn": _churn(champion, bundle),
        "difference": _differences(rows, scores, draws),
    }
    cleaned: dict[str, Any] = finite(figures)
    return cleaned


def _challenger(config: Config, day: date, spec: FeatureSpec) -> Bundle:
    path = Path(config.paths.at("checkpoints")) / day.isoformat() / "bundle"
    if not path.is_dir():
        raise JobError(f"{path}: no trained model for {day}; run python -m jobs.train --date {day} first")
    try:
        bundle = load_bundle(path, spec)
    except BundleError as error:
        raise JobError(str(error)) from error
    if bundle.model.config.loss.recall == 0:
        raise JobError(
            f"{path}: trained with model.loss.recall 0, so it has no semantic IDs to evaluate, promote or publish; "
            "train with a positive weight (benchmarks/quality.py compares such a ranker with DIG)"
        )
    return bundle


def _champion(config: Config, day: date, lineage: str, spec: FeatureSpec) -> Champion | None:
    """The champion; when that is this very model (a rerun), the one it replaced, so that a rerun gives the same figures."""
    ref = registry.find(config, registry.CHAMPION)
    if ref and ref.lineage == lineage:
        ref = registry.ancestor(config, day)
    if ref is None:
        log.info("no champion yet: absolute limits only")
        return None
    try:
        bundle = load_bundle(registry.fetch(config, ref))
    except BundleMismatch as error:
        log.warning("champion version %s is not compared: %s", ref.version, error)
        return Champion(ref=ref, bundle=None, reason=str(error))
    except BundleError as error:
        raise JobError(str(error)) from error
    if bundle.spec.digest != spec.digest:
        reason = f"its feature spec {bundle.spec.digest[:12]} is not the one in force ({spec.digest[:12]})"
        log.warning("champion version %s is not compared: %s", ref.version, reason)
        return Champion(ref=ref, bundle=None, reason=reason)
    return Champion(ref=ref, bundle=bundle)


def _contender(name: str, own: Bundle, codes_NL: Ints | None, catalogue: Bundle, store: CrossStore, config: Config) -> Contender:
    retriever = Retriever.of(own.model, catalogue.spec, catalogue.items, store, codes_NL=codes_NL)
    shape = own.model.config
    search = Search(beam=config.retrieve.beam, rerank=config.retrieve.rerank, u2t=shape.u2t_inference, path_score=shape.path_score)
    return Contender(name=name, retriever=retriever, search=search)


def chosen_requests(requests: RequestTable, request_ids: list[str], most: int) -> Ints:
    """Requests with a relevant item, at most ``most`` of them, those with the smallest hashes; ascending positions."""
    request_R, at_R = requests.rows_of(np.arange(len(requests), dtype=np.int64))
    with_relevant = np.unique(request_R[requests.label_R[at_R] > 0])
    order = np.argsort([hash_id(request_ids[b]) for b in with_relevant], kind="stable")
    return np.sort(with_relevant[order[:most]])


def _outside(requests: RequestTable) -> int:
    return int((requests.item_R == 0).sum())


def _ranking(rows: Rows, scores: Scores, draws: Draws) -> dict[str, Any]:
    label, weight, user = rows.label_R, rows.weight_R, draws.of(rows.user_R)
    probability = _sigmoid(scores.rank_R)
    auc = ranking.auc(scores.rank_R, label, weight)
    paths = {"exact": ranking.auc(scores.exact_R, label, weight), "mlp": ranking.auc(scores.mlp_R, label, weight)}
    curve = ranking.reliability(probability, label, weight)
    return {
        "auc": auc,
        "auc_ci": draws.interval(bootstrap.auc_samples(scores.rank_R, label, weight, user, draws.draw_SU)),
        "gauc": ranking.gauc(scores.rank_R, label, rows.user_R, weight),
        "logloss": ranking.log_loss(probability, label, weight),
        "calibration": ranking.calibration(probability, label, weight),
        "recall_path": {
            name: {"auc": paths[name], "calibration": ranking.calibration(_sigmoid(logit), label, weight)}
            for name, logit in (("exact", scores.exact_R), ("mlp", scores.mlp_R))
        },
        "auc_gap": {name: auc - value for name, value in paths.items()},
        "reliability": {"predicted": curve.predicted_B, "actual": curve.actual_B, "weight": curve.weight_B},
    }


def _retrieval(lists: Lists, bought: list[Ints], requests: RequestTable, chosen: Ints, ks: tuple[int, ...], draws: Draws) -> dict[str, Any]:
    user_Q = draws.of(requests.user_B[chosen])
    out: dict[str, Any] = {}
    for variant in VARIANTS:
        relevant = relevant_items(requests, chosen, bought if variant == "new" else None)
        sizes = np.array([len(r) for r in relevant], dtype=np.int64)
        flat, offsets = np.concatenate([np.zeros(0, np.int64), *relevant]), np.concatenate([[0], np.cumsum(sizes)])
        values: dict[str, dict[str, Floats]] = {}
        for name, ranked_QK in lists[variant].items():
            hit = retrieval.hits(ranked_QK, flat, offsets)
            values[name] = {f"recall@{k}": retrieval.recall_at(hit, sizes, k) for k in ks}
            values[name] |= {f"ndcg@{k}": retrieval.ndcg_at(hit, sizes, k) for k in ks}
        samples = {
            name: {figure: bootstrap.mean_samples(value_Q, user_Q, draws.draw_SU) for figure, value_Q in of.items()}
            for name, of in values.items()
        }
        out[variant] = {
            "requests": int((sizes > 0).sum()),
            "relevant": int(sizes.sum()),
            **{name: _means(of, samples[name], draws) for name, of in values.items()},
            "difference": {
                name: {f: draws.interval(samples["dig"][f] - samples[name][f]) for f in samples[name]} for name in samples if name != "dig"
            },
        }
    return out


def _means(values: dict[str, Floats], samples: dict[str, Floats], draws: Draws) -> dict[str, Any]:
    means = {figure: float(np.nanmean(v)) if np.isfinite(v).any() else math.nan for figure, v in values.items()}
    return means | {"ci": {figure: draws.interval(sample) for figure, sample in samples.items()}}


def relevant_items(requests: RequestTable, chosen: Ints, bought: list[Ints] | None) -> list[Ints]:
    """Distinct catalogue items bought in each chosen request, without what the user had bought before if that is given."""
    request_R, at_R = requests.rows_of(chosen)
    positive = requests.label_R[at_R] > 0
    request_R, item_R = request_R[positive], requests.item_R[at_R[positive]]
    bounds = np.searchsorted(request_R, np.arange(len(chosen) + 1))
    relevant = [np.unique(item_R[a:b]) for a, b in pairwise(bounds)]
    return relevant if bought is None else [np.setdiff1d(r, b) for r, b in zip(relevant, bought, strict=True)]


def _sid(retriever: Retriever, bundle: Bundle, requests: RequestTable, chosen: Ints) -> dict[str, Any]:
    code_NL, e_ND = np.asarray(bundle.codes_NL, dtype=np.int64), retriever.embedding_ND.numpy()
    quality = sid_quality.measure(code_NL[1:], bundle.model.config.codes)
    relevant = relevant_items(requests, chosen, None)
    owner_M = np.repeat(np.arange(len(chosen)), [len(r) for r in relevant])
    target_M = np.concatenate([np.zeros(0, np.int64), *relevant])
    neighbours = sid_quality.co_occurrence(owner_M, target_M, len(bundle.items))
    history_QH = _histories(requests, chosen)
    return quality.as_dict() | {
        "severity": sid_quality.severity(code_NL[1:], e_ND[1:]),
        "embedding_hit_rate@10": sid_quality.embedding_hit_rate(e_ND, *neighbours, k=10),
        "history_overlap": sid_quality.history_overlap(code_NL, target_M, history_QH[owner_M]),
    }


def _histories(requests: RequestTable, chosen: Ints) -> Ints:
    """Item rows of the chosen requests' histories, padded with 0."""
    bounds = requests.history_start[chosen], requests.history_start[chosen + 1]
    lengths = bounds[1] - bounds[0]
    out_QH = np.zeros((len(chosen), max(int(lengths.max(initial=0)), 1)), dtype=np.int64)
    for q, (first, last) in enumerate(zip(*bounds, strict=True)):
        out_QH[q, : last - first] = requests.history_item[first:last]
    return out_QH


def _champion_figures(champion: Champion | None, ranked: dict[str, Any], found: dict[str, Any]) -> dict[str, Any] | None:
    if champion is None:
        return None
    named = {"version": champion.ref.version, "date": champion.ref.date.isoformat(), "lineage": champion.ref.lineage}
    if champion.bundle is None:
        return named | {"reason": champion.reason}
    return named | {
        "ranking": ranked["champion"],
        "retrieval": {v: {"dig": found[v]["champion"], "dig_path": found[v]["champion_path"]} for v in VARIANTS},
    }


def _churn(champion: Champion | None, bundle: Bundle) -> dict[str, Any] | None:
    if champion is None or champion.bundle is None:
        return None
    old, alignment = champion.bundle.sids, bundle.info.get("alignment")
    changed = between(old, bundle.sids)
    if changed is None:
        return None
    before = between(old, unaligned(bundle.sids, alignment)) if alignment else None
    return changed.as_dict() | {"unaligned": before.as_dict() if before else None}


def _differences(rows: Rows, scores: dict[str, Scores], draws: Draws) -> dict[str, Any] | None:
    """AUC of the challenger less the champion's on the same rows, with a paired interval."""
    if "champion" not in scores:
        return None
    user = draws.of(rows.user_R)
    pair = [scores[name].rank_R for name in ("dig", "champion")]
    new, old = (ranking.auc(logit, rows.label_R, rows.weight_R) for logit in pair)
    samples = [bootstrap.auc_samples(logit, rows.label_R, rows.weight_R, user, draws.draw_SU) for logit in pair]
    return {"auc": new - old, "auc_ci": draws.interval(samples[0] - samples[1])}


def _sigmoid(logit: Floats) -> Floats:
    return 0.5 * (1 + np.tanh(logit / 2))


def finite(value: Any) -> Any:
    """Plain JSON values; NaN and infinities become null."""
    if isinstance(value, dict):
        return {key: finite(of) for key, of in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [finite(of) for of in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


class _Progress:
    """Adds up parts of one bar."""

    def __init__(self, total: int) -> None:
        self.total, self.before = total, 0
        emit("evaluate", 0, total)

    def part(self, size: int) -> Callable[[int], None]:
        """The next ``size`` units: a function that is told how many of them are done."""
        base = self.before
        self.before += size
        return lambda done: emit("evaluate", base + done, self.total)


def main(call: Invocation) -> None:
    """``python -m jobs.evaluate --date D``."""
    torch.set_num_threads(call.config.train.ranks * call.config.train.threads_per_rank)
    figures = evaluate(call.config, call.date)
    runs.supersede(call.config, call.date, figures["lineage"])
    runs.save(call.config, call.date, "evaluate", figures)
    everything = figures["retrieval"]["all"]
    log.info(
        "AUC %s, recall@10 %s (popularity %s)", figures["ranking"]["auc"], *(everything[m]["recall@10"] for m in ("dig", "popularity"))
    )


if __name__ == "__main__":
    sys.exit(run("evaluate", main))
