"""``<runs>/<date>/report.html``: one file with the figures, plots and examples of a run, readable offline."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from jobs import plots, runs
from jobs.config import CALIBRATION_TARGET, Config
from jobs.entry import Invocation, run
from jobs.files import replace_text
from jobs.model_card import METHODS, interval, number
from jobs.progress import emit
from jobs.summary import keep_latest

if TYPE_CHECKING:
    from jobs.answers import Answer

log = logging.getLogger("jobs.report")
TEMPLATES = Path(__file__).parent / "templates"
METRICS = ("recall@10", "recall@50", "ndcg@10", "ndcg@50")
USERS, PRODUCTS = 3, 8


def render(
    config: Config,
    parts: Mapping[str, Mapping[str, Any]],
    users: Sequence[Answer],
) -> str:
    """The page.

    Args:
        config: settings in force.
        parts: what ``summary, evaluate, train, register, gate, promote`` kept of the run.
        users: answers for some users, with their histories.
    """
    summary, evaluation, train = parts["summary"], parts["evaluate"], parts["train"]
    champion = (evaluation["champion"] or {}).get("ranking")
    page = _environment().get_template("report.html")
    return page.render(
        summary=summary,
        evaluation=evaluation,
        train=train,
        gate=parts["gate"],
        promote=parts["promote"],
        window=evaluation["window"],
        champion=champion,
        churn=churn_sentence(evaluation),
        confidence=f"{100 * config.evaluate.confidence:g}",
        health=health(evaluation),
        lineage=sorted(parts["register"]["tags"].items()),
        memory=gigabytes(summary["peak_rss_bytes"]),
        methods=_methods(evaluation),
        metrics=METRICS,
        plots=_plots(summary, evaluation, train),
        tiles=tiles(summary),
        total=minutes(sum(summary["seconds"].values())),
        users=users,
    )


def _environment() -> Environment:
    page = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    page.filters["figure"] = number
    page.filters["ci"] = interval
    page.filters["signed"] = lambda value: "—" if value is None else f"{value:+.4f}"
    return page


def _methods(evaluation: Mapping[str, Any]) -> dict[str, str]:
    champion = evaluation["champion"]
    compared = {"champion": f"champion v{champion['version']}, re-ranked"} if champion and "ranking" in champion else {}
    return {"dig": METHODS["dig"], "dig_path": METHODS["dig_path"], **compared, **METHODS}


def _plots(summary: Mapping[str, Any], evaluation: Mapping[str, Any], train: Mapping[str, Any]) -> dict[str, str]:
    drawn = {
        "retrieval": plots.svg(plots.retrieval(evaluation["retrieval"]), label="Recall at 10 of each method"),
        "calibration": plots.svg(plots.calibration(evaluation["ranking"]), label="Calibration curve"),
        "codebooks": plots.svg(plots.codebooks(evaluation["sid"]), label="Items per code at each level"),
        "training": plots.svg(plots.training(train), label="Training losses and validation AUC"),
    }
    seconds = summary["seconds"]
    return drawn | {"stages": plots.svg(plots.stages(seconds), label="Seconds of each stage") if seconds else ""}


def tiles(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """Headline figures."""
    ranking, found, sid = summary["ranking"], summary["retrieval"]["all"], summary["sid"]
    used = " · ".join(f"{level['used']}/{level['codes']}" for level in sid["levels"])
    popular = found["popularity"]["recall@10"]
    times = f", {found['recall@10'] / popular:.2f} times" if popular and found["recall@10"] is not None else ""
    rows = (
        ("Ranking AUC", number(ranking["auc"]), interval(ranking["auc_ci"])),
        ("Recall@10", number(found["recall@10"]), f"popularity {number(popular)}{times}"),
        ("Calibration", number(ranking["calibration"], 3), "predicted over actual, target {:g} to {:g}".format(*CALIBRATION_TARGET)),
        ("SID collision rate", number(sid["collision_rate"]), f"codes used {used}"),
        ("Time", minutes(sum(summary["seconds"].values())), f"peak memory {gigabytes(summary['peak_rss_bytes'])}"),
        ("Index", f"{summary['index']['items']:,} items", str(summary["index"]["generation"])),
    )
    return [{"what": what, "value": value, "beside": beside} for what, value, beside in rows]


def health(evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows of the SID health table."""
    sid, churn = evaluation["sid"], evaluation["churn"]
    rows = [
        ("Collision rate", number(sid["collision_rate"])),
        ("Items alone in their ID", number(sid["unique_rate"])),
        ("Entropy over its maximum", number(sid["entropy_ratio"])),
        ("Co-bought neighbours among the 10 nearest", number(sid["embedding_hit_rate@10"])),
        ("Targets whose prefix is in the history, by level", " · ".join(number(v, 2) for v in sid["history_overlap"])),
    ]
    for row in sid["severity"]:
        distance = int(row["distance"])
        label = "Mean cosine of items that collide" if distance == 0 else f"Mean cosine at {distance} differing code{'s' * (distance > 1)}"
        rows.append((label, f"{number(row['cosine'], 3)} ({row['pairs']:,} pairs)"))
    if churn:
        rows.append(("Changed IDs, by first changed level", _by_level(churn["first"])))
        if churn["unaligned"]:
            rows.append(("The same before codes were renamed", _by_level(churn["unaligned"]["first"])))
        rows.append(("Changed codes, by level", _by_level(churn["levels"])))
        rows.append(("Changed posting lists", number(churn["posting_lists"])))
    return rows


def churn_sentence(evaluation: Mapping[str, Any]) -> str:
    """Churn in words."""
    churn = evaluation["churn"]
    if churn is None:
        return "There is no champion to measure churn against."
    before = f" ({100 * churn['unaligned']['rate']:.1f}% before codes were renamed)" if churn["unaligned"] else ""
    return f"{100 * churn['rate']:.1f}% of the {churn['items']:,} items that the champion knows too have another ID{before}."


def _by_level(shares: Sequence[float]) -> str:
    return " · ".join(number(share, 3) for share in shares)


def minutes(seconds: float) -> str:
    """A duration for people."""
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{seconds:.1f} s"


def gigabytes(size: float) -> str:
    """Memory for people."""
    return f"{size / 1e9:.2f} GB"


def main(call: Invocation) -> None:
    """``python -m jobs.report --date D``."""
    from jobs.answers import Recommender
    from jobs.closing import sample_users

    emit("report", 0, 1)
    config, day = call.config, call.date
    parts = {name: runs.read(config, day, name) for name in ("summary", "evaluate", "train", "register", "gate", "promote")}
    recommender = Recommender.open(config, parts["summary"]["index"]["generation"])
    answers = [recommender.recommend(user, PRODUCTS) for user in sample_users(recommender)[:USERS]]
    path = runs.run_dir(config, day) / "report.html"
    replace_text(path, render(config, parts, answers))
    keep_latest(config, day, path.name)
    log.info("%s", path)
    emit("report", 1, 1)


if __name__ == "__main__":
    sys.exit(run("report", main))
