"""The model card: what a version is, what it was made from, how good it is and what it must not be used for, in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any

from dig_models.bundle import Bundle
from jobs.config import Config

METHODS = {
    "dig": "DIG, re-ranked",
    "dig_path": "DIG, path score",
    "popularity": "popularity",
    "own_frequency": "user's own most frequent",
}


def number(value: float | None, digits: int = 4) -> str:
    """A figure for people; an em dash if it could not be measured."""
    return "—" if value is None else f"{value:.{digits}f}"


def tokenizer_of(bundle: Bundle) -> str:
    """What made a model's SIDs, in words."""
    made = bundle.info.get("tokenizer")
    if made is None:
        return "a file" if bundle.model.config.assignment == "given" else "dig"
    kept = f", kept from version {made['kept']['version']}" if made["kept"] else ""
    content = f" of {made['content']}" if made["content"] else ""
    return f"{made['kind']}{content}, lineage {made['lineage'][:12]}{kept}"


def interval(bounds: Any, digits: int = 4) -> str:
    """A confidence interval for people; empty if there is none."""
    low, high = bounds or (None, None)
    return "" if low is None or high is None else f"[{low:.{digits}f}, {high:.{digits}f}]"


def card(
    config: Config, day: date, bundle: Bundle, train: Mapping[str, Any], evaluation: Mapping[str, Any], tags: Mapping[str, str]
) -> str:
    """Markdown of the card, deterministic for the same inputs."""
    lines = [
        f"# {config.mlflow.model_name}, {config.dataset.name}, {day}",
        "",
        "One network that ranks items and retrieves them through semantic IDs (DIG, arXiv 2605.14853).",
        "",
        "## Intended use",
        "",
        f"Recommendation of the {len(bundle.items) - 1:,} items of its catalogue to users of the data set `{config.dataset.name}`:",
        "the ranking path scores items in view, the retrieval path finds candidates by beam search over semantic IDs.",
        "",
        "## Data",
        "",
        f"- training days {tags['train_window'].replace('..', ' to ')}, the last {config.window.validation_days} of them validate",
        f"- evaluation days {tags['eval_window'].replace('..', ' to ')}: {evaluation['requests']:,} requests of",
        f"  {evaluation['users']:,} users, {evaluation['rows']:,} exposed rows with {evaluation['positives']:,} positives",
        f"- share of users, by hash: {config.dataset.sample_users:g}",
        f"- share of exposed negatives kept, by hash: {config.dataset.sampling.exposed_negative_rate:g}",
        "",
        *_ranking(evaluation),
        *_retrieval(config, evaluation),
        *_sid(evaluation, tokenizer_of(bundle)),
        "## Training",
        "",
        f"{train['steps']:,} steps on {train['examples']:,} rows; "
        + (f"warm start from version {train['ancestor']}" if train.get("ancestor") else "cold start")
        + (f"; codes named after those of version {train['alignment']['version']}." if train.get("alignment") else "."),
        "",
        "## Limits",
        "",
        "- Figures are offline and on logged exposures; they say nothing of how users react to what this model would show.",
        "- Probabilities are calibrated for the exposure policy of the logs.",
        "- Items that entered the catalogue after training have a semantic ID from their static fields alone.",
        "- Households in the data are a panel of one retailer; do not carry conclusions about people over to others.",
        "",
        "## Lineage",
        "",
        *(f"- {name}: `{value}`" for name, value in sorted(tags.items())),
        "",
    ]
    return "\n".join(lines)


def _ranking(evaluation: Mapping[str, Any]) -> Iterator[str]:
    ranking = evaluation["ranking"]
    yield from ("## Ranking, exposed rows", "", "| figure | value | 95% interval |", "|---|---|---|")
    yield f"| AUC | {number(ranking['auc'])} | {interval(ranking['auc_ci'])} |"
    for name, label in (("gauc", "GAUC"), ("logloss", "log loss"), ("calibration", "calibration (predicted / actual)")):
        yield f"| {label} | {number(ranking[name])} | |"
    for name, label in (("exact", "exact u2t"), ("mlp", "u2t by MLP")):
        yield f"| AUC of the retrieval path, {label} | {number(ranking['recall_path'][name]['auc'])} | |"
    yield ""


def _retrieval(config: Config, evaluation: Mapping[str, Any]) -> Iterator[str]:
    yield from ("## Retrieval, whole catalogue", "")
    yield f"Beam {config.retrieve.beam}, {config.retrieve.rerank} items re-ranked."
    yield ""
    for variant, title in (("all", "all items"), ("new", "items new to the user")):
        found = evaluation["retrieval"][variant]
        yield from (f"| {title}, {found['requests']:,} requests | recall@10 | recall@50 | NDCG@10 |", "|---|---|---|---|")
        for name, label in METHODS.items():
            of = found[name]
            ten = f"{number(of['recall@10'])} {interval(of['ci']['recall@10'])}"
            yield f"| {label} | {ten} | {number(of['recall@50'])} | {number(of['ndcg@10'])} |"
        yield ""


def _churn(churn: Mapping[str, Any]) -> str:
    levels = ", ".join(f"{number(share)} first at level {level}" for level, share in enumerate(churn["first"], start=1))
    before = f"; {number(churn['unaligned']['rate'])} before codes were renamed" if churn["unaligned"] else ""
    return f"{number(churn['rate'])} ({levels}){before}"


def _sid(evaluation: Mapping[str, Any], tokenizer: str) -> Iterator[str]:
    sid, churn = evaluation["sid"], evaluation["churn"]
    yield from ("## Semantic IDs", "")
    yield "- learnt by the ranker itself" if tokenizer == "dig" else f"- made before the training, by {tokenizer}"
    yield f"- {sid['items']:,} items in {sid['sids']:,} SIDs, at most {sid['largest_bucket']} in one"
    yield f"- collision rate {number(sid['collision_rate'])}"
    for at, level in enumerate(sid["levels"], start=1):
        used, spread = f"{level['used']} of {level['codes']} codes used", f"perplexity {level['perplexity']:.1f}, Gini {level['gini']:.3f}"
        yield f"- level {at}: {used}, {spread}"
    yield f"- churn against the champion: {_churn(churn) if churn else 'no champion to compare with'}"
    yield ""
