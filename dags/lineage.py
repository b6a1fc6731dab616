"""What each job reads and writes: the first lines of every task's log, and its OpenLineage events."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta

from dags.spans import Span
from jobs.config import Config, ConfigError


@dataclass(frozen=True, kw_only=True)
class Touched:
    """One thing that a task reads or writes.

    Attributes:
        place: where, such as ``lake``; the namespace of its OpenLineage name is ``dig://<place>``.
        name: which, such as ``interactions``.
        what: days or version, in words.
    """

    place: str
    name: str
    what: str = ""

    def __str__(self) -> str:
        return f"{self.place}/{self.name}" + (f" ({self.what})" if self.what else "")


CURRENT = Touched(place="index", name="CURRENT")
PROMOTIONS = Touched(place="index", name="promotions.jsonl")


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """What a task reads and writes."""

    reads: tuple[Touched, ...]
    writes: tuple[Touched, ...]

    def __add__(self, other: Lineage) -> Lineage:
        return Lineage(reads=self.reads + other.reads, writes=self.writes + other.writes)

    def lines(self) -> list[str]:
        """Two lines for the log."""
        return [f"{verb}: {', '.join(map(str, things)) or 'nothing'}" for verb, things in (("reads", self.reads), ("writes", self.writes))]


def _days(first: date, last: date) -> str:
    return str(last) if first == last else f"{first}..{last}"


def _lake(first: date, last: date, *tables: str) -> tuple[Touched, ...]:
    return tuple(Touched(place="lake", name=table, what=_days(first, last)) for table in tables)


def _cross_arrays(day: date, config: Config) -> Lineage:
    """What the export of the cross arrays adds; a day too early for a run has none."""
    dataset = config.dataset
    try:
        window = config.run_window(day)
    except ConfigError:
        return Lineage(reads=(), writes=())
    longest = max(dataset.u2i.windows)
    told = max(window.train_first - timedelta(days=longest), dataset.first_date)
    popular = max(window.train_first - timedelta(days=max(longest, dataset.catalogue.window_days)), dataset.first_date)
    shown = (window.train_first, window.eval_last)
    return Lineage(
        reads=_lake(told, day, "u2i_daily") + _lake(popular, day, "item_daily") + _lake(*shown, "offers", "requests"),
        writes=_lake(day, day, "cross_arrays"),
    )


def of_features(job: str, span: Span, config: Config) -> Lineage:
    """What a feature job reads and writes for the days of a run; a day that is up to date is left alone."""
    dataset = config.dataset

    def back(day: date, days: int) -> date:
        return max(day - timedelta(days=days), dataset.first_date)

    (first, last), shown = (span.events, span.last), (span.examples, span.last)
    longest = max(dataset.u2i.windows)
    ingest = Lineage(
        reads=(Touched(place="source", name=dataset.name, what=_days(first, last)),),
        writes=_lake(first, last, "interactions", "requests") + _lake(*shown, "offers", "items", "users"),
    )
    item_features = Lineage(
        reads=_lake(first, last, "interactions")
        + _lake(back(span.catalogue, max(longest, dataset.catalogue.window_days) - 1), last, "item_daily")
        + _lake(span.catalogue, last, "items"),
        writes=_lake(first, last, "item_daily") + _lake(span.catalogue, last, "item_features"),
    )
    u2i_crosses = Lineage(
        reads=_lake(first, last, "interactions", "items")
        + _lake(back(span.examples, longest), last, "u2i_daily")
        + _lake(*shown, "requests"),
        writes=_lake(first, last, "u2i_daily") + _lake(*shown, "u2i_crosses"),
    )
    if span.arrays:
        u2i_crosses += _cross_arrays(last, config)
    examples = Lineage(
        reads=_lake(*shown, "offers", "interactions", "users", "u2i_crosses")
        + _lake(min(span.examples, back(last, dataset.history.days - 1)), last, "requests")
        + _lake(back(span.examples, dataset.history.days), last, "u2i_daily")
        + _lake(back(span.examples, 1), max(back(last, 1), span.examples - timedelta(days=1)), "item_features"),
        writes=_lake(*shown, "examples") + _lake(last, last, "user_state"),
    )
    if job == "recommend":
        return Lineage(reads=(Touched(place="index", name="generations", what=str(last)),), writes=_lake(last, last, "recommendations"))
    jobs = {"ingest": ingest, "item_features": item_features, "u2i_crosses": u2i_crosses, "examples": examples}
    if job == "backfill":
        every = list(jobs.values())
        return Lineage(reads=ingest.reads, writes=tuple(thing for one in every for thing in one.writes))
    return jobs[job]


def _trained_on(day: date, config: Config) -> tuple[Touched, ...]:
    """What a training reads of the lake besides examples."""
    window = config.run_window(day)
    eve = window.train_first - timedelta(days=1)
    events = _lake(window.events_first, eve, "u2i_daily") if config.model.affinity.enabled else ()
    return (*_lake(eve, day, "item_features"), *_lake(day, day, "cross_arrays"), *events)


def of_model(job: str, day: date, config: Config) -> Lineage:
    """What a job after the features reads and writes for a date; nothing is known of other jobs."""
    window = config.run_window(day)
    examples = _lake(window.train_first, window.train_last, "examples")
    judged = _lake(window.eval_first, window.eval_last, "examples")
    of_day = _lake(day, day, "item_features", "user_state", "cross_arrays")
    bundle, tokenizer = (Touched(place="checkpoints", name=f"{day}/{name}") for name in ("bundle", "tokenizer"))
    made = () if config.tokenizer == "dig" else (tokenizer,)
    model = Touched(place="models", name=config.mlflow.model_name)
    index = Touched(place="index", name="generations", what=str(day))

    def kept(*names: str) -> tuple[Touched, ...]:
        return tuple(Touched(place="runs", name=f"{day}/{name}") for name in names)

    def champion(what: str) -> Touched:
        return Touched(place="models", name=config.mlflow.model_name, what=what)

    known = {
        "sids": (
            (
                *_lake(window.train_first, window.fit_last, "examples"),
                *_lake(window.train_first - timedelta(days=1), day, "item_features"),
                champion("the version whose tokenizer is kept"),
            ),
            (tokenizer, *kept("sids.json")),
        ),
        "launch": (
            (*examples, *_trained_on(day, config), *made, champion("the version that training starts from")),
            (bundle, *kept("train.json")),
        ),
        "evaluate": ((*judged, bundle, champion("champion")), kept("evaluate.json")),
        "register": ((bundle, *kept("train.json", "evaluate.json")), (champion("a version, alias challenger"), *kept("register.json"))),
        "gate": ((*kept("register.json", "evaluate.json"), champion("champion")), (champion("tag gate"), *kept("gate.json"))),
        "index": ((*of_day, model, *kept("gate.json")), (index, *kept("index.json"))),
        "promote": (
            (*kept("gate.json", "index.json"), index, CURRENT, PROMOTIONS),
            (champion("aliases champion and previous"), CURRENT, PROMOTIONS, *kept("promote.json")),
        ),
        "summary": (kept("evaluate.json", "train.json", "register.json", "promote.json", "index.json"), kept("summary.json")),
        "report": ((*kept("summary.json", "evaluate.json", "train.json"), index), kept("report.html")),
    }
    reads, writes = known[job]
    return Lineage(reads=tuple(reads), writes=tuple(writes))


UNDATED = {
    "arrivals": Lineage(
        reads=(Touched(place="source", name="items"),), writes=(Touched(place="lake", name="items", what="snapshot of the day"),)
    ),
    "fresh": Lineage(
        reads=(Touched(place="lake", name="items"), CURRENT, PROMOTIONS, Touched(place="index", name="generations")),
        writes=(Touched(place="index", name="generations", what="a delta"), CURRENT, PROMOTIONS),
    ),
    "promote": Lineage(
        reads=(CURRENT, PROMOTIONS, Touched(place="index", name="generations"), Touched(place="models", name="versions")),
        writes=(Touched(place="models", name="aliases champion and previous"), CURRENT, PROMOTIONS),
    ),
    "approve": Lineage(reads=(), writes=(Touched(place="airflow", name="required actions"),)),
    "mirrors": Lineage(reads=(CURRENT, Touched(place="index", name="generations")), writes=(Touched(place="mirrors", name="index"),)),
    "redis_sink": Lineage(reads=(CURRENT, Touched(place="index", name="generations")), writes=(Touched(place="redis", name="item maps"),)),
    "request": Lineage(reads=(CURRENT,), writes=()),
    "retrain": Lineage(reads=(), writes=(Touched(place="assets", name="dig://examples", what="if asked for"),)),
    "stale": Lineage(reads=(Touched(place="lake", name="markers"), Touched(place="source", name="files")), writes=()),
    "sweep": Lineage(reads=(), writes=(Touched(place="lake", name="_staging"),)),
    "watch": Lineage(reads=(CURRENT,), writes=()),
}
"""What is read and written by tasks whose date is not that of a daily run, by job or task."""
