"""The one source of settings: YAML, then ``DIG_…`` environment variables, then ``--set``; typed, strict, traceable.

``conf/<place>.yaml`` says what differs between places, ``conf/datasets/<name>.yaml`` what differs between data sets. A wrong
value is one ``ConfigError`` that names the file (or variable, or option), the key and what was expected.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, ValidationError, ValidationInfo, field_validator, model_validator

from dig_models.config import Fraction, ModelConfig, Positive, RetrieveConfig, ServeConfig, Strict, TrainConfig
from dig_models.tokenizers.settings import DIG, WITHOUT_CONTENT, Kind, TokenizersConfig
from jobs.dataset_config import (
    CompleteJourneySource,
    DatasetConfig,
    HistoryConfig,
    OfferColumn,
    SourceField,
    TableConfig,
    TablesSource,
    digest_of,
)
from jobs.dates import Window
from jobs.layers import ConfigError, Layers, from_environment, from_options, hint, inherited, known_keys, read_yaml

__all__ = [
    "CONF_DIR",
    "CompleteJourneySource",
    "Config",
    "ConfigError",
    "DatasetConfig",
    "HistoryConfig",
    "OfferColumn",
    "SourceField",
    "TableConfig",
    "TablesSource",
    "load",
    "load_layers",
]

CONF_DIR = Path(__file__).resolve().parent.parent / "conf"


def _ascending(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"a lower and an upper limit expected, in that order, found {list(pair)}")
    return pair


Limits = Annotated[tuple[float, float], AfterValidator(_ascending)]


Place = Literal["lake", "index", "runs", "checkpoints", "quarantine", "docs"]
PLACES: tuple[Place, ...] = get_args(Place)


class PathsConfig(Strict):
    """Where things are kept; everything lies under ``home`` unless said otherwise."""

    home: Annotated[str, Field(min_length=1)] = ".dig"
    lake: str = ""
    index: str = ""
    runs: str = ""
    checkpoints: str = ""
    quarantine: str = ""
    docs: str = ""

    def at(self, name: Place) -> str:
        """Absolute path (or URL) of one of the places."""
        own = getattr(self, name)
        if own:
            return str(own) if "://" in own else str(Path(own).resolve())
        return f"{self.home.rstrip('/')}/{name}" if "://" in self.home else str(Path(self.home).resolve() / name)


class SparkConfig(Strict):
    """Spark session; the master is overridden by the Airflow connection when submitted from a DAG."""

    master: str = "local[*]"
    driver_memory: str = "3g"
    shuffle_partitions: Positive = 4
    connection_id: str = "spark_default"
    conf: dict[str, str] = Field({}, description="further Spark properties")
    one_day_java_options: str = Field(
        "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m -XX:+UseSerialGC",
        description="of the driver's JVM where a DAG submits a single day: that ends before a second compilation would have paid",
    )


class WindowConfig(Strict):
    """Days of a run, counted back from its date; see ``jobs.dates.Window``."""

    eval_days: Positive = 7
    train_days: Positive = 42
    validation_days: Positive = 3

    @model_validator(mode="after")
    def _days_left_to_train(self) -> WindowConfig:
        if self.validation_days >= self.train_days:
            raise ValueError(
                f"validation_days {self.validation_days} are the tail of train_days {self.train_days}: fewer of them expected, to leave "
                "days to train on"
            )
        return self


class ChecksConfig(Strict):
    """Limits of the data gates."""

    enabled: bool = True
    trailing_days: Positive = 28
    min_trailing_days: Positive = Field(7, description="drift and volume checks need so many trailing days")
    row_count_ratio: Limits = (0.3, 3.0)
    label_rate_ratio: Limits = (0.4, 2.5)
    max_psi: float = Field(2.0, description="drift of a feature, beyond the usual, that stops a commit; healthy promotions reach 1.1")
    warn_psi: float = Field(0.25, description="drift of a feature that is only warned of")
    max_null_fraction: Fraction = 0.0
    quiet_days: tuple[date, ...] = Field((), description="days on which no events are expected, such as a closed shop's")
    bad_values_shown: Positive = 5
    quarantine_rows: Positive = 1000


class EvaluateConfig(Strict):
    """Evaluation: cut-offs, bootstrap over users."""

    ks: tuple[Positive, ...] = (10, 50)
    bootstrap: Positive = 200
    confidence: Fraction = 0.95
    max_requests: Positive = Field(3000, description="requests scored for retrieval, chosen by hash of the request id")


CALIBRATION_TARGET = (0.9, 1.1)
"""Predicted over actual that a model should reach; the report shows it, the gate's own limits decide."""


class GateConfig(Strict):
    """What a challenger must reach before it becomes champion."""

    min_auc: float = 0.7
    max_auc_loss: float = 0.005
    min_recall_over_popularity: float = Field(1.5, description="recall@10 over popularity's, all items")
    min_new_recall_over_popularity: float = Field(0.9, description="the same for items new to the user")
    max_recall_loss: float = Field(0.1, description="relative loss of recall@10 against the champion")
    calibration: Limits = Field((0.85, 1.15), description="limits for promotion; the target is CALIBRATION_TARGET")
    max_collision_rate: float = 0.25
    min_codes_used: float = Field(0.5, description="share of the codes of each level")
    max_churn: Fraction = Field(
        0.05,
        description="share of the items both know whose SID changed; known items keep theirs, so more means that codes were made anew, "
        "which breaks what consumers keep by SID and has to be meant",
    )
    min_items: Positive = 50


def _place_of_mirror(url: str) -> str:
    protocol, _, place = url.partition("://")
    if not protocol or not place:
        raise ValueError(f"a URL such as s3://bucket/index expected, found {url!r}")
    if "@" in place:
        raise ValueError("a URL without user or password expected; credentials belong into the environment")
    return url.rstrip("/")


class IndexConfig(Strict):
    """SID index generations."""

    keep: Positive = 5
    fresh_days: Positive = Field(14, description="days that a new item stays in the index before it must have events of its own")
    max_withdrawn: Fraction = Field(
        0.05,
        description="share of a whole generation's items that refreshes may take out of it; more looks like half an items snapshot, "
        "and is refused unless a person asks for it",
    )
    resolve_collisions: bool = Field(
        False,
        description="an item whose SID another one has gets the nearest last code that is free under its prefix; published SIDs stay",
    )
    mirrors: tuple[Annotated[str, AfterValidator(_place_of_mirror)], ...] = Field(
        (), description="URLs of stores that hold a copy for hosts that do not mount the index, as s3://bucket/index"
    )


class MlflowConfig(Strict):
    """Tracking server and registry."""

    tracking_uri: str = Field("", description="empty means SQLite under paths.home")
    experiment: str = "dig"
    model_name: str = "dig"


class NotifyConfig(Strict):
    """Who hears of a failed task, a missed deadline or a promotion that waits for approval: the log always, a webhook if named."""

    webhook: str = Field("", description="URL that gets a JSON POST; a secret in it belongs into $DIG_AIRFLOW__NOTIFY__WEBHOOK")
    timeout_seconds: Positive = 10


class AirflowConfig(Strict):
    """How the DAGs behave; what they run is the other sections' business."""

    owner: str = "dig"
    retries: Annotated[int, Field(ge=0)] = Field(2, description="of what can heal; a failed gate is never tried again")
    retry_minutes: Annotated[float, Field(gt=0)] = Field(2.0, description="wait before the first retry; doubles with each, up to 30")
    spark_slots: Positive = Field(1, description="Spark applications at once: slots of the pool dig_spark")
    train_slots: Positive = Field(1, description="trainings at once: slots of the pool dig_train")
    approval: bool = Field(False, description="a person approves what passed the gate before it takes effect")
    approval_hours: Positive = Field(24, description="after so long without an answer the promotion is refused")
    max_index_age_hours: Positive = Field(48, description="age of what CURRENT serves, beyond the day it is due, that raises an alert")
    notify: NotifyConfig = NotifyConfig()


class BackfillConfig(Strict):
    """Features of a range of days in one Spark application."""

    chunk_days: Positive = Field(14, description="days committed together; a run that is cut short goes on at the first missing day")


class StackConfig(Strict):
    """Servers that ``make up`` starts on this machine; 0 picks a free port once and keeps it."""

    postgres_port: Annotated[int, Field(ge=0, le=65535)] = 0
    redis_port: Annotated[int, Field(ge=0, le=65535)] = 0
    mlflow_port: Annotated[int, Field(ge=0, le=65535)] = 5000
    airflow_port: Annotated[int, Field(ge=0, le=65535)] = 8080
    parallelism: Positive = Field(2, description="tasks that the scheduler runs at once")


@dataclass(frozen=True, kw_only=True)
class FeatureDays:
    """Days that must be in the lake for examples of a range; all bounds are included.

    Attributes:
        events: first day of events and daily aggregates, as far back as the features of the first examples reach.
        catalogue: first day of ``item_features``: the day before the first examples, which show its items.
        examples: first day of crosses and examples.
        last: last day of everything.
    """

    events: date
    catalogue: date
    examples: date
    last: date


class Config(Strict):
    """All settings in force."""

    dataset: DatasetConfig
    paths: PathsConfig = PathsConfig()
    spark: SparkConfig = SparkConfig()
    window: WindowConfig = WindowConfig()
    tokenizer: Kind = Field(DIG, description="what makes semantic IDs: the ranker itself as it learns, or a tokenizer fitted before it")
    tokenizers: TokenizersConfig = TokenizersConfig()
    model: ModelConfig = Field(ModelConfig(), validate_default=True)  # the tokenizer decides some of it
    train: TrainConfig = TrainConfig()
    retrieve: RetrieveConfig = RetrieveConfig()
    checks: ChecksConfig = ChecksConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    gate: GateConfig = GateConfig()
    index: IndexConfig = IndexConfig()
    mlflow: MlflowConfig = MlflowConfig()
    airflow: AirflowConfig = AirflowConfig()
    backfill: BackfillConfig = BackfillConfig()
    stack: StackConfig = StackConfig()
    serve: ServeConfig = ServeConfig()

    @field_validator("model")
    @classmethod
    def _exact_means_are_of_prefixes(cls, model: ModelConfig) -> ModelConfig:
        # Not in ModelConfig itself: a bundle that was written so must still load.
        if model.bucket_key != "prefix" and model.u2t_inference == "exact":
            raise ValueError(
                f"bucket_key {model.bucket_key} with u2t_inference exact: the exact mean is over the items of a prefix, which is not what "
                "such a model learns from; expected u2t_inference mlp (or none), or bucket_key prefix"
            )
        return model

    @field_validator("tokenizers")
    @classmethod
    def _content_is_read(cls, tokenizers: TokenizersConfig, info: ValidationInfo) -> TokenizersConfig:
        kind = info.data.get("tokenizer", DIG)
        if kind != DIG and kind in WITHOUT_CONTENT and tokenizers.content != "fields":
            raise ValueError(
                f"content {tokenizers.content} with tokenizer {kind}, which learns vectors of its own: leave tokenizers.content out"
            )
        return tokenizers

    @field_validator("model")
    @classmethod
    def _assignment_follows_the_tokenizer(cls, model: ModelConfig, info: ValidationInfo) -> ModelConfig:
        kind = info.data.get("tokenizer", DIG)
        if kind == DIG:
            return model
        if "assignment" in model.model_fields_set and model.assignment != "given":
            raise ValueError(
                f"assignment {model.assignment} with tokenizer {kind}: SIDs that a tokenizer made are given to the model; leave "
                "model.assignment out, or set tokenizer=dig"
            )
        # L_commit would pull the ranker's embeddings towards codes that they did not choose.
        commit = model.loss.commit if "commit" in model.loss.model_fields_set else 0.0
        return model.model_copy(update={"assignment": "given", "loss": model.loss.model_copy(update={"commit": commit})})

    @field_validator("train")
    @classmethod
    def _sids_come_from_one_place(cls, train: TrainConfig, info: ValidationInfo) -> TrainConfig:
        kind = info.data.get("tokenizer", DIG)
        if train.given_sids and kind != DIG:
            raise ValueError(
                f"given_sids {train.given_sids} with tokenizer {kind}: SIDs come from a file or from a tokenizer; leave train.given_sids "
                "out, or set tokenizer=dig and model.assignment=given"
            )
        return train

    def run_window(self, run_date: date) -> Window:
        """The days that a run for ``run_date`` uses.

        Raises:
            ConfigError: the date lies outside the data set, or too early to train.
        """
        d = self.dataset
        if not d.first_date <= run_date <= d.last_date:
            raise ConfigError(f"date {run_date} is outside data set {d.name!r}, whose days run from {d.first_date} to {d.last_date}")
        try:
            return Window.of(
                run_date,
                eval_days=self.window.eval_days,
                train_days=self.window.train_days,
                validation_days=self.window.validation_days,
                lookback_days=d.lookback_days,
                first_date=d.first_date,
            )
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def feature_days(self, first: date, last: date) -> FeatureDays:
        """The days that examples of ``first`` to ``last`` are made from.

        Raises:
            ConfigError: the range is empty, reaches outside the data set, or is its first day alone.
        """
        d = self.dataset
        if first > last:
            raise ConfigError(f"from {first} to {last}: the range is empty; the first day must not be after the last")
        for day in (first, last):
            if not d.first_date <= day <= d.last_date:
                raise ConfigError(f"date {day} is outside data set {d.name!r}, whose days run from {d.first_date} to {d.last_date}")
        # The first day of the data has no catalogue of the day before it, hence no examples.
        examples = max(first, d.first_date + timedelta(days=1))
        if examples > last:
            raise ConfigError(
                f"examples of {last}: data start on {d.first_date}, and examples need the catalogue of the day before; "
                f"the earliest day possible is {examples}"
            )
        return FeatureDays(
            events=max(first - timedelta(days=d.lookback_days), d.first_date),
            catalogue=examples - timedelta(days=1),
            examples=examples,
            last=last,
        )

    def in_acceptance(self, run_date: date) -> bool:
        """Whether evaluation days of a run lie in the acceptance period: its figures are reported, and nothing is chosen by them."""
        first = self.dataset.acceptance_from
        return first is not None and self.run_window(run_date).eval_last >= first

    def tracking_uri(self) -> str:
        """MLflow tracking and registry URI."""
        return self.mlflow.tracking_uri or f"sqlite:///{Path(self.paths.home).resolve()}/mlflow/mlflow.db"

    def digest(self, *sections: str) -> str:
        """SHA-256 (hex) of the canonical JSON of the named sections, for lineage; for ``dataset`` see ``DatasetConfig.rows_digest``."""
        held = self.model_dump(mode="json", include=set(sections))
        if "model" in held:
            held["model"] = self.model.stored()
        return digest_of(held)


def _explain(error: ValidationError, layers: Layers) -> str:
    lines = []
    for problem in error.errors():
        # The discriminator of a union ('complete_journey', 'tables') is no key of the file.
        parts = [str(p) for p in problem["loc"] if str(p) not in ("complete_journey", "tables")]
        key, origin, found = ".".join(parts), "", f", found {problem['input']!r:.80}"
        if problem["type"] == "missing":
            said, found = "required, but missing", ""
        elif problem["type"] == "extra_forbidden":
            said, found = f"unknown key{hint(parts[-1], known_keys(Config, parts[:-1]))}", ""
        elif problem["type"] == "union_tag_invalid":
            key, said = f"{key}.kind", f"one of {problem['ctx']['expected_tags']} expected"
            found = f", found {problem['ctx']['tag']!r}"
        elif problem["type"] == "value_error":
            said, found, origin = str(problem["ctx"]["error"]), "", layers.origins_under(key)
        else:
            said = problem["msg"]
        lines.append(f"{origin or layers.origin_of(key, sections=True)}: {key}: {said}{found}")
    return "\n".join(lines)


def load_layers(path: str | Path, sets: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> tuple[Config, Layers]:
    """Settings in force and where each came from.

    Args:
        path: a file such as ``conf/local.yaml``.
        sets: ``key.sub=value`` overrides, values in YAML.
        environ: variables such as ``DIG_DATASET__SAMPLE_USERS=1.0`` (``__`` separates levels) and ``DIG_SET``, a JSON list of
            ``sets`` that come after them; ``os.environ`` by default.

    Raises:
        ConfigError: missing file, unknown key, wrong type, value out of range.
    """
    path = Path(path)
    place = read_yaml(path, "configuration")
    environ = os.environ if environ is None else environ
    late = from_environment(environ) + from_options([*inherited(environ), *sets])
    chosen = Layers()
    chosen.merge(place, str(path))
    for key, value, origin in late:
        if key.partition(".")[0] not in Config.model_fields:
            raise ConfigError(f"{origin}: {key}: unknown key{hint(key.partition('.')[0], Config.model_fields)}")
        chosen.put(key, value, origin)
    section = chosen.values.get("dataset")
    name = section.get("name") if isinstance(section, dict) else None
    if not isinstance(name, str):
        raise ConfigError(f"{path}: dataset.name: required, but missing; it names a file of conf/datasets")
    beside = path.parent / "datasets" / f"{name}.yaml"
    dataset_file = beside if beside.is_file() else CONF_DIR / "datasets" / f"{name}.yaml"
    layers = Layers()
    layers.merge({"dataset": read_yaml(dataset_file, f"data set {name!r}")}, str(dataset_file))
    layers.merge(place, str(path))
    for key, value, origin in late:
        layers.put(key, value, origin)
    try:
        # JSON in strict mode: a list may become a tuple and a text a date, but no text a number and no number a text.
        return Config.model_validate_json(json.dumps(layers.values, default=str), strict=True), layers
    except ValidationError as error:
        raise ConfigError(_explain(error, layers)) from None


def load(path: str | Path | None = None, sets: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> Config:
    """Settings in force; ``path`` defaults to ``$DIG_CONFIG``, then ``conf/local.yaml``. See ``load_layers``."""
    return load_layers(path or os.environ.get("DIG_CONFIG") or CONF_DIR / "local.yaml", sets, environ)[0]
