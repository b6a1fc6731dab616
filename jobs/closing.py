"""What a run ends with on the terminal: its figures beside the baselines, some households, and where to look next."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from jobs import runs
from jobs.config import Config
from jobs.tables import answer_table, history_line, plain_table

if TYPE_CHECKING:
    from rich.table import Table

    from jobs.answers import Answer, Recommender

STAGES = (
    *("ingest", "item_features", "u2i_crosses", "examples", "sweep"),
    *("tokenize", "train", "evaluate", "register", "gate", "index", "promote", "summary", "report"),
)
HOUSEHOLDS = 3
PRODUCTS = 5
MIN_HISTORY = 5


def close(console: Console, config: Config, day: date) -> None:
    """Print the end of a run.

    Raises:
        JobError: the run left no summary, or the index cannot be read.
    """
    summary = runs.read(config, day, "summary")
    console.print()
    console.print(stage_table(summary | runs.read(config, day, "stages")))
    console.print()
    console.print(figure_table(summary))
    for answer in sample_answers(config):
        console.print()
        console.print(history_line(answer), highlight=False)
        console.print(answer_table(answer))
    console.print()
    console.print(where_next(config, day), soft_wrap=True)


def stage_table(summary: Mapping[str, Any]) -> Table:
    """Seconds of each stage, and the memory peak."""
    table = plain_table("stage", "seconds", title=f"{summary['dataset']} {summary['date']}", right=("seconds",))
    seconds: dict[str, float] = summary["seconds"]
    for stage in sorted(seconds, key=lambda name: (STAGES.index(name) if name in STAGES else len(STAGES), name)):
        table.add_row(stage, f"{seconds[stage]:.1f}")
    table.add_row("total", f"{sum(seconds.values()):.1f}", style="bold")
    table.add_row("peak memory", f"{summary['peak_rss_bytes'] / 1e9:.2f} GB")
    return table


def _figure(value: float | None, digits: int = 4) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"


def figure_table(summary: Mapping[str, Any]) -> Table:
    """Figures of the model, beside popularity and the user's own most frequent items where those compete."""
    table = plain_table("figure", "DIG", "popularity", "own frequency", right=("DIG", "popularity", "own frequency"))
    ranking, sid, model, index = summary["ranking"], summary["sid"], summary["model"], summary["index"]
    interval = " – ".join(_figure(v) for v in ranking["auc_ci"])
    table.add_row("ranking AUC", f"{_figure(ranking['auc'])}  ({interval})")
    table.add_row("ranking GAUC", _figure(ranking["gauc"]))
    table.add_row("log loss", _figure(ranking["logloss"]))
    table.add_row("calibration (predicted / actual)", _figure(ranking["calibration"], 3))
    for variant, said in (("all", "all items"), ("new", "items new to the user")):
        found = summary["retrieval"][variant]
        for name in ("recall@10", "recall@50", "ndcg@10"):
            baselines = [_figure((found[baseline] or {}).get(name)) for baseline in ("popularity", "own_frequency")]
            table.add_row(f"{name}, {said}", _figure(found[name]), *baselines)
    table.add_row("SID collision rate", _figure(sid["collision_rate"]))
    used = "  ".join(f"{level['used']}/{level['codes']} ({level['perplexity']:.0f})" for level in sid["levels"])
    table.add_row("codes used by level (perplexity)", used)
    table.add_row("model", f"{model['name']} v{model['version']} ({model['alias']})")
    table.add_row("index generation", f"{index['generation']}  {index['items']:,} items")
    return table


def sample_answers(config: Config) -> list[Answer]:
    """Recommendations for some users with a history, always the same ones for the same index."""
    from jobs.answers import Recommender

    recommender = Recommender.open(config)
    return [recommender.recommend(user, PRODUCTS) for user in sample_users(recommender)]


def sample_users(recommender: Recommender) -> list[str]:
    """The users with the smallest id hashes, those with a history worth showing first."""
    from dig_models.features import hash_id

    state = recommender.reader.state
    length_B = state.history_start[1:] - state.history_start[:-1]
    lengths = dict(zip(recommender.reader.user_ids, length_B.tolist(), strict=True))
    return sorted(lengths, key=lambda user: (-min(lengths[user], MIN_HISTORY), hash_id(user)))[:HOUSEHOLDS]


def where_next(config: Config, day: date) -> Text:
    """Commands and files to look at."""
    folder = runs.run_dir(config, day)
    lines = {
        "report": str(folder / "report.html"),
        "figures": str(folder / "summary.json"),
        "experiments": f"mlflow ui --backend-store-uri {config.tracking_uri()}",
        "index": "dig index show    dig index verify    dig index diff A B",
        "ask": "dig recommend --user U -k 10    dig rank --user U --items a,b,c",
    }
    text = Text()
    for what, how in lines.items():
        text.append(f"{what:12}", style="bold").append(f"{how}\n")
    return text
