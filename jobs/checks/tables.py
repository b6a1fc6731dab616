"""What a good partition of each table looks like, derived from the settings: nothing here is kept by hand per data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

from dig_models.features import SECONDS_PER_DAY, SOURCE_EXPOSED, SOURCE_ORGANIC, FeatureSpec, FieldSpec
from jobs.checks.rules import Feature, Gate, Key, Rule, Severity, Wide, bucket_bin, choice_bin, listed, number_bin, quoted, text_bin
from jobs.config import Config, SourceField

TEXT, LONG, INT, DOUBLE = ("string",), ("bigint",), ("int",), ("double",)
TIME = ("timestamp", "timestamp_ntz")
DAY_START = f"(CAST(unix_date(try_cast(ds AS DATE)) AS BIGINT) * {SECONDS_PER_DAY})"


def gate_of(table: str, config: Config) -> Gate:
    """The gate of a table.

    Raises:
        ValueError: the table has no gate.
    """
    if table not in GATES:
        raise ValueError(f"table {table!r} has no data gate; tables with one are {', '.join(GATES)}")
    return GATES[table](config)


def _interactions(config: Config) -> Gate:
    nulls = config.checks.max_null_fraction
    return Gate(
        table="interactions",
        types={"request_id": TEXT, "user_id": TEXT, "item_id": TEXT, "ts": TIME, "quantity": DOUBLE, "value": DOUBLE, "ds": TEXT},
        rules=(
            *(_present(c) for c in ("request_id", "user_id", "item_id")),
            *_local_time(),
            *(r for c in ("quantity", "value") for r in (_finite(c), Rule(column=c, says="not null", bad=f"{c} IS NULL", share=nulls))),
            Rule(column="quantity", says="greater than 0", bad="quantity <= 0"),
            Rule(column="value", says="at least 0", bad="value < 0", severity="warning"),
        ),
        keys=(Key(columns=("request_id", "item_id")),),
        features=(
            Feature(name="item_id", bins=text_bin("item_id")),
            Feature(name="quantity", bins=number_bin("quantity")),
            Feature(name="value", bins=number_bin("value")),
        ),
        raw=True,
        must_have_rows=True,
    )


def _requests(config: Config) -> Gate:
    own = ("request_id", "user_id", "ts", "offer_key", "ds")
    context = {f.source_column: f for f in config.dataset.context_fields if f.source_column not in own}
    return Gate(
        table="requests",
        types={"request_id": TEXT, "user_id": TEXT, "ts": TIME, "offer_key": TEXT, **_raw_types(context), "ds": TEXT},
        rules=(*(_present(c) for c in ("request_id", "user_id")), *_local_time(), *_raw_rules(context)),
        keys=(Key(columns=("request_id",)),),
        features=_raw_features(context),
        raw=True,
        must_have_rows=True,
    )


def _items(config: Config) -> Gate:
    dataset = config.dataset
    fields: dict[str, SourceField | None] = dict.fromkeys((*dataset.item_name, *(k.column for k in dataset.u2i.keys)))
    fields |= {f.source_column: f for f in dataset.item_fields}
    fields.pop("item_id", None)
    return Gate(
        table="items",
        types={"item_id": TEXT, **_raw_types(fields), "name": TEXT, "ds": TEXT},
        rules=(_present("item_id"), *_raw_rules(fields)),
        keys=(Key(columns=("item_id",)),),
        features=_raw_features(fields),
        raw=True,
    )


def _users(config: Config) -> Gate:
    fields = {f.source_column: f for f in config.dataset.user_fields if f.source_column != "user_id"}
    return Gate(
        table="users",
        types={"user_id": TEXT, **_raw_types(fields), "ds": TEXT},
        rules=(_present("user_id"), *_raw_rules(fields)),
        keys=(Key(columns=("user_id",)),),
        features=_raw_features(fields),
        raw=True,
    )


def _offers(config: Config) -> Gate:
    columns = config.dataset.offers
    return Gate(
        table="offers",
        types={"offer_key": TEXT, "item_id": TEXT, **{o.source_column: TEXT for o in columns}, "ds": TEXT},
        rules=(
            *(_present(c) for c in ("offer_key", "item_id")),
            *(
                Rule(
                    column=o.source_column,
                    says=f"one of the declared values {', '.join(o.values)} (or null, '', '0': not offered); others count as not offered",
                    bad=f"{quoted(o.source_column)} NOT IN ({listed((*o.values, '', '0'))})",
                    severity="warning",
                )
                for o in columns
            ),
        ),
        keys=(Key(columns=("offer_key", "item_id")),),
        features=tuple(Feature(name=o.source_column, bins=choice_bin(quoted(o.source_column), o.values)) for o in columns),
        raw=True,
    )


def _item_features(config: Config) -> Gate:
    spec = config.dataset.spec()
    numeric = [f.column for f in spec.item_fields if f.kind == "numeric"]
    buckets = [f for f in spec.item_fields if not f.is_number]
    pops = [f"pop_{w}" for w in spec.windows]
    return Gate(
        table="item_features",
        types={
            **{"item_id": TEXT, "item_hash": LONG, "name": TEXT, "ds": TEXT},
            **{f.column: ("array<int>",) if f.kind in ("multi", "text") else INT for f in buckets},
            **dict.fromkeys((*numeric, *pops), DOUBLE),
            **{f"k_{k}": LONG for k in spec.u2i_keys},
        },
        rules=(
            *(_present(c) for c in ("item_id", "name")),
            _hash_of("item_hash", "item_id"),
            *(r for f in buckets for r in _buckets(f, f.column)),
            *(_finite(c) for c in (*numeric, *pops)),
            *(Rule(column=f"k_{k}", says="not null", bad=f"{quoted(f'k_{k}')} IS NULL") for k in spec.u2i_keys),
            *_windows(pops),
        ),
        keys=(Key(columns=("item_id",)), Key(columns=("item_hash",))),
        features=(
            *(Feature(name=f.column, bins=_field_bins(f, f.column), many=f.kind in ("multi", "text")) for f in buckets),
            *(Feature(name=c, bins=number_bin(quoted(c))) for c in (*numeric, *pops)),
        ),
    )


def _u2i_crosses(config: Config) -> Gate:
    spec = config.dataset.spec()
    counts = [f"n_{w}" for w in spec.windows]
    first = f"({DAY_START} - {max(spec.windows) * SECONDS_PER_DAY})"
    return Gate(
        table="u2i_crosses",
        types={
            **{"user_id": TEXT, "user_hash": LONG, "key_name": TEXT, "key": LONG},
            **{**dict.fromkeys(counts, DOUBLE), "last_ts": LONG, "ds": TEXT},
        },
        rules=(
            _present("user_id"),
            _hash_of("user_hash", "user_id"),
            Rule(
                column="key_name",
                says=f"one of {', '.join(spec.u2i_keys)}",
                bad=f"key_name IS NULL OR key_name NOT IN ({listed(spec.u2i_keys)})",
            ),
            Rule(column="key", says="not null", bad="`key` IS NULL"),
            *(_finite(c) for c in counts),
            *_windows(counts),
            Rule(column=f"n_{max(spec.windows)}", says="greater than 0", bad=f"n_{max(spec.windows)} <= 0"),
            Rule(
                column="last_ts",
                says=f"before the start of ds, at most {max(spec.windows)} days",
                bad=f"last_ts IS NULL OR last_ts >= {DAY_START} OR last_ts < {first}",
            ),
        ),
        keys=(Key(columns=("user_id", "key_name", "key")),),
        features=(
            Feature(name="key_name", bins=choice_bin("key_name", spec.u2i_keys)),
            *(Feature(name=c, bins=number_bin(c)) for c in counts),
            Feature(name="days_since_last", bins=number_bin(f"(CAST({DAY_START} - last_ts AS DOUBLE) / {SECONDS_PER_DAY})")),
        ),
        source="requests",
        newcomers=True,
    )


def _examples(config: Config) -> Gate:
    spec = config.dataset.spec()
    fields = [(f, f"u_{f.name}") for f in spec.user_fields] + [(f, f"c_{f.name}") for f in spec.context_fields]
    exposed = f"r.source = {SOURCE_EXPOSED}"
    rows = "arrays_zip(label, source, weight)"
    return Gate(
        table="examples",
        types={
            **{"request_id": TEXT, "user_id": TEXT, "user_hash": LONG, "ts": LONG, "offer_key": TEXT, "offer_hash": LONG, "ds": TEXT},
            **{column: INT for _, column in fields},
            **{"hist_item": ("array<bigint>",), "hist_ts": ("array<bigint>",), "item": ("array<bigint>",)},
            **{"label": ("array<tinyint>",), "source": ("array<tinyint>",), "weight": ("array<float>",), "cross": ("array<float>",)},
        },
        rules=(
            *(_present(c) for c in ("request_id", "user_id")),
            _hash_of("user_hash", "user_id"),
            Rule(column="ts", says="within ds", bad=f"ts IS NULL OR ts < {DAY_START} OR ts >= {DAY_START} + {SECONDS_PER_DAY}"),
            *(r for f, column in fields for r in _buckets(f, column)),
            *_history(spec),
            *_rows(spec),
        ),
        keys=(Key(columns=("request_id",)),),
        features=(
            *(Feature(name=column, bins=bucket_bin(quoted(column))) for _, column in fields),
            Feature(name="hist_item", bins=number_bin("CAST(size(hist_item) AS DOUBLE)")),
            Feature(name="item", bins=number_bin("CAST(size(item) AS DOUBLE)")),
        ),
        wide=Wide(column="cross", names=spec.raw_cross_names, choices=len(spec.offers)),
        figures={
            "pairs": "sum(CAST(size(item) AS BIGINT))",
            "positives": "sum(aggregate(label, 0L, (a, x) -> a + x))",
            "exposed_weight": f"sum(aggregate({rows}, 0D, (a, r) -> a + IF({exposed}, CAST(r.weight AS DOUBLE), 0D)))",
            "exposed_positives": f"sum(aggregate({rows}, 0D, (a, r) -> a + IF({exposed}, CAST(r.label * r.weight AS DOUBLE), 0D)))",
        },
        source="requests",
    )


def _recommendations(config: Config) -> Gate:
    k = config.serve.batch.k
    return Gate(
        table="recommendations",
        types={"user_id": TEXT, "place": INT, "item_id": TEXT, "sid": TEXT, "probability": DOUBLE, "generation": TEXT, "ds": TEXT},
        rules=(
            *(_present(c) for c in ("user_id", "item_id", "generation")),
            Rule(column="place", says=f"in 1..{k}", bad=f"place IS NULL OR place < 1 OR place > {k}"),
            Rule(column="sid", says="codes such as 12-0-63", bad=r"sid IS NULL OR NOT sid RLIKE '^[0-9]+(-[0-9]+)*$'"),
            Rule(
                column="probability",
                says="a probability",
                bad="probability IS NULL OR isnan(probability) OR probability < 0 OR probability > 1",
            ),
            Rule(column="generation", says="of ds", bad="NOT startswith(generation, ds)"),
        ),
        keys=(Key(columns=("user_id", "place")), Key(columns=("user_id", "item_id"))),
        features=(Feature(name="item_id", bins=text_bin("item_id")), Feature(name="probability", bins=number_bin("probability"))),
        must_have_rows=True,
    )


def _history(spec: FeatureSpec) -> tuple[Rule, ...]:
    window = spec.history_days * SECONDS_PER_DAY
    return (
        Rule(
            column="hist_item",
            says=f"at most {spec.history_length} long",
            bad=f"hist_item IS NULL OR size(hist_item) > {spec.history_length}",
        ),
        Rule(column="hist_ts", says="as long as hist_item", bad="hist_ts IS NULL OR size(hist_ts) <> size(hist_item)"),
        Rule(
            column="hist_ts",
            says=f"strictly before ts, at most {spec.history_days} days",
            bad=f"array_max(hist_ts) >= ts OR array_min(hist_ts) < {DAY_START} - {window}",
        ),
        Rule(column="hist_ts", says="newest first", bad="hist_ts <> sort_array(hist_ts, false)"),
    )


def _rows(spec: FeatureSpec) -> tuple[Rule, ...]:
    width = spec.cross_width_raw
    parallel = [
        Rule(column=c, says="as long as item", bad=f"`{c}` IS NULL OR item IS NULL OR size(`{c}`) <> size(item)")
        for c in ("label", "source", "weight")
    ]
    holes = [
        Rule(column=c, says="no null elements", bad=f"size(array_compact(`{c}`)) < size(`{c}`)")
        for c in ("item", "label", "source", "weight", "cross")
    ]
    return (
        *parallel,
        Rule(column="cross", says=f"{width} values for each item", bad=f"cross IS NULL OR size(cross) <> {width} * size(item)"),
        *holes,
        Rule(column="item", says="distinct within source", bad="size(array_distinct(arrays_zip(item, source))) < size(item)"),
        Rule(column="label", says="0 or 1", bad="array_min(label) < 0 OR array_max(label) > 1"),
        Rule(
            column="source",
            says=f"{SOURCE_EXPOSED} (exposed) or {SOURCE_ORGANIC} (organic)",
            bad=f"array_min(source) < {SOURCE_EXPOSED} OR array_max(source) > {SOURCE_ORGANIC}",
        ),
        Rule(
            column="label",
            says="1 where the source is organic",
            bad=f"exists(arrays_zip(label, source), r -> r.source = {SOURCE_ORGANIC} AND r.label <> 1)",
        ),
        # Spark orders NaN above every number, so the maximum shows it.
        Rule(column="weight", says="finite and at least 1", bad="array_min(weight) < 1 OR array_max(weight) > 1e9"),
        Rule(column="cross", says="finite and at least -1", bad="array_min(cross) < -1 OR array_max(cross) > 1e30"),
    )


def _raw_types(fields: Mapping[str, SourceField | None]) -> dict[str, tuple[str, ...]]:
    kinds = {"numeric": (*DOUBLE, *TEXT), "multi": ()}  # numbers may still be text in the lake; features that cannot read them are null
    return {column: kinds.get(f.kind, TEXT) if f else TEXT for column, f in fields.items()}


def _raw_rules(fields: Mapping[str, SourceField | None]) -> tuple[Rule, ...]:
    """Raw numbers that are not finite are missing ones to the features."""
    numeric = (column for column, f in fields.items() if f and f.kind == "numeric")
    return tuple(_finite(column, f"try_cast({quoted(column)} AS DOUBLE)", "warning") for column in numeric)


def _raw_features(fields: Mapping[str, SourceField | None]) -> tuple[Feature, ...]:
    numbers = tuple(
        Feature(name=c, bins=number_bin(f"try_cast({quoted(c)} AS DOUBLE)")) for c, f in fields.items() if f and f.kind == "numeric"
    )
    texts = tuple(Feature(name=c, bins=text_bin(quoted(c))) for c, f in fields.items() if f and f.kind in ("categorical", "text"))
    return (*texts, *numbers)


def _present(column: str) -> Rule:
    return Rule(column=column, says="not null or empty", bad=f"{quoted(column)} IS NULL OR {quoted(column)} = ''")


def _finite(column: str, value: str = "", severity: Severity = "critical") -> Rule:
    x = value or quoted(column)
    return Rule(column=column, says="finite", bad=f"isnan({x}) OR abs({x}) = double('Infinity')", severity=severity)


def _hash_of(column: str, text: str) -> Rule:
    return Rule(column=column, says=f"hash of {text}", bad=f"{column} IS NULL OR {column} <> xxhash64({text})")


def _local_time() -> tuple[Rule, ...]:
    return (
        Rule(column="ts", says="not null", bad="ts IS NULL"),
        Rule(column="ts", says="within ds", bad="CAST(CAST(ts AS DATE) AS STRING) <> ds"),
    )


def _buckets(spec: FieldSpec, column: str) -> tuple[Rule, ...]:
    says = f"in 0..{spec.buckets - 1}"
    if spec.kind in ("multi", "text"):
        low, high = f"array_min({quoted(column)})", f"array_max({quoted(column)})"
        return (Rule(column=column, says=says, bad=f"{quoted(column)} IS NULL OR {low} < 0 OR {high} >= {spec.buckets}"),)
    return (Rule(column=column, says=says, bad=f"{quoted(column)} IS NULL OR {quoted(column)} < 0 OR {quoted(column)} >= {spec.buckets}"),)


def _windows(columns: list[str]) -> tuple[Rule, ...]:
    """Counts of growing windows: not negative, and never less in a longer window."""
    ordered = sorted(columns, key=lambda c: int(c.rpartition("_")[2]))
    floor = Rule(column=ordered[0], says="at least 0", bad=f"{ordered[0]} IS NULL OR {ordered[0]} < 0")
    # Sums of doubles in another order may differ in the last digits.
    grow = [
        Rule(column=longer, says=f"at least {shorter}", bad=f"{longer} IS NULL OR {longer} < {shorter} - 1e-6")
        for shorter, longer in pairwise(ordered)
    ]
    return (floor, *grow)


def _field_bins(spec: FieldSpec, column: str) -> str:
    return f"transform({quoted(column)}, x -> {bucket_bin('x')})" if spec.kind in ("multi", "text") else bucket_bin(quoted(column))


GATES: dict[str, Callable[[Config], Gate]] = {
    "interactions": _interactions,
    "requests": _requests,
    "offers": _offers,
    "items": _items,
    "users": _users,
    "item_features": _item_features,
    "u2i_crosses": _u2i_crosses,
    "examples": _examples,
    "recommendations": _recommendations,
}
