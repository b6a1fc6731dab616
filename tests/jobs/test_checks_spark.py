"""Data gates on staged Spark frames: what passes, what stops a commit, what is said and kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame, SparkSession

from jobs.checks import CheckReport, GateFailed, check
from jobs.checks.profile import day_profiles
from jobs.checks.tables import GATES, gate_of
from jobs.config import Config
from jobs.lake import Lake
from tests.jobs.gate_world import FIRST, SCHEMAS, Row, commit, config_of, days, frame, rows_of, start_of

pytestmark = pytest.mark.slow
NAN, INF = float("nan"), float("inf")


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(config_of(tmp_path).paths.at("lake"))


def gate(spark: SparkSession, lake: Lake, table: str, staged: DataFrame, count: int, config: Config | None = None) -> CheckReport:
    config = config or config_of(lake.root.parent)
    return check(table, staged, days(count), config=config, lake=lake, spark=spark)


def good(table: str, count: int, rows: int = 24) -> list[Row]:
    return [row for day in days(count) for row in rows_of(table, day, rows)]


def spoil(rows: list[Row], **changed: Any) -> list[Row]:
    """The same rows with the first one changed."""
    return [rows[0] | changed, *rows[1:]]


def message_of(failed: pytest.ExceptionInfo[GateFailed]) -> str:
    return str(failed.value)


@pytest.mark.parametrize("table", sorted(GATES))
def test_good_days_pass_and_their_figures_are_ready_for_the_markers(spark: SparkSession, lake: Lake, table: str) -> None:
    report = gate(spark, lake, table, frame(spark, table, good(table, 7)), 7)
    assert report.findings == []
    assert report.short_history == days(4)
    assert {day: figures["rows"] for day, figures in report.stats.items()} == dict.fromkeys(days(7), 24.0)
    assert {key.split(".")[1] for key in report.stats[days(1)[0]] if key.startswith("hist.")} == set(
        gate_of(table, config_of(lake.root)).feature_names
    )


Spoiler = Callable[[Row], Row]
BAD_EXAMPLES: dict[str, Spoiler] = {
    "user_hash hash of user_id": lambda r: {"user_hash": 1},
    "ts within ds": lambda r: {"ts": r["ts"] + 86_400},
    "u_age in 0..7": lambda r: {"u_age": 8},
    "c_store in 0..7": lambda r: {"c_store": None},
    "hist_item at most 3 long": lambda r: {"hist_item": [1, 2, 3, 4], "hist_ts": [9, 8, 7, 6]},
    "hist_ts as long as hist_item": lambda r: {"hist_item": [1]},
    "hist_ts strictly before ts, at most 5 days": lambda r: {"hist_ts": [r["ts"], r["ts"] - 1]},
    "hist_ts newest first": lambda r: {"hist_ts": r["hist_ts"][::-1]},
    "label as long as item": lambda r: {"label": [0, 0]},
    "weight no null elements": lambda r: {"weight": [1.0, None, 1.0]},
    "cross 9 values for each item": lambda r: {"cross": r["cross"][:-1]},
    "item distinct within source": lambda r: {"item": [2, 2, 3]},
    "label 0 or 1": lambda r: {"label": [2, 0, 1]},
    "source 0 (exposed) or 1 (organic)": lambda r: {"source": [0, 0, 2]},
    "label 1 where the source is organic": lambda r: {"label": [0, 0, 0]},
    "weight finite and at least 1": lambda r: {"weight": [NAN, 10.0, 1.0]},
    "cross finite and at least -1": lambda r: {"cross": [*r["cross"][:-1], INF]},
}


def test_each_rule_of_examples_finds_its_bad_row_on_its_day(spark: SparkSession, lake: Lake) -> None:
    when = days(len(BAD_EXAMPLES))
    rows = []
    for day, change in zip(when, BAD_EXAMPLES.values(), strict=True):
        first, *rest = rows_of("examples", day, 3)
        rows += [first | change(first), *rest]
    found = day_profiles(gate_of("examples", config_of(lake.root)), frame(spark, "examples", rows))
    for day, rule in zip(when, BAD_EXAMPLES, strict=True):
        assert found[day.isoformat()].bad[rule] == 1, rule
        others = {name for name, n in found[day.isoformat()].bad.items() if n} - {rule}
        assert others <= {"hist_ts strictly before ts, at most 5 days"}, (rule, others)


BAD_ROWS: list[tuple[str, str, Row]] = [
    ("interactions", "user_id not null or empty", {"user_id": None}),
    ("interactions", "item_id not null or empty", {"item_id": ""}),
    ("interactions", "ts not null", {"ts": None}),
    ("interactions", "quantity finite", {"quantity": NAN}),
    ("interactions", "quantity not null", {"quantity": None}),
    ("interactions", "quantity greater than 0", {"quantity": 0.0}),
    ("interactions", "value finite", {"value": INF}),
    ("requests", "user_id not null or empty", {"user_id": None}),
    ("offers", "item_id not null or empty", {"item_id": None}),
    ("items", "price finite", {"price": INF}),
    ("item_features", "item_hash hash of item_id", {"item_hash": 5}),
    ("item_features", "f_kind in 0..15", {"f_kind": 16}),
    ("item_features", "f_words in 0..31", {"f_words": [3, 32]}),
    ("item_features", "x_price finite", {"x_price": NAN}),
    ("item_features", "k_kind not null", {"k_kind": None}),
    ("item_features", "pop_9 at least pop_3", {"pop_3": 5.0}),
    ("u2i_crosses", "key_name one of item, kind", {"key_name": "brand"}),
    ("u2i_crosses", "n_3 at least 0", {"n_3": -1.0}),
    ("u2i_crosses", "n_9 greater than 0", {"n_3": 0.0, "n_9": 0.0}),
    ("u2i_crosses", "last_ts before the start of ds, at most 9 days", {"last_ts": start_of(days(99)[-1])}),
]


@pytest.mark.parametrize("table", sorted({table for table, _, _ in BAD_ROWS}))
def test_each_rule_of_a_table_finds_its_bad_row_on_its_day(spark: SparkSession, lake: Lake, table: str) -> None:
    cases = [(rule, changed) for name, rule, changed in BAD_ROWS if name == table]
    when = days(len(cases))
    rows = [row for day, (_, changed) in zip(when, cases, strict=True) for row in spoil(rows_of(table, day, 4), **changed)]
    found = day_profiles(gate_of(table, config_of(lake.root)), frame(spark, table, rows))
    for day, (rule, _) in zip(when, cases, strict=True):
        assert found[day.isoformat()].bad[rule] == 1, rule


def test_a_failed_gate_names_table_day_column_rule_and_values_and_keeps_the_bad_rows(spark: SparkSession, lake: Lake) -> None:
    rows = good("interactions", 3)
    rows[30] |= {"user_id": None}
    rows[31] |= {"quantity": NAN}
    rows[60] = rows[61]
    with pytest.raises(GateFailed) as failed:
        gate(spark, lake, "interactions", frame(spark, "interactions", rows), 3)
    text = message_of(failed)
    assert "table interactions, 2020-03-01, 2020-03-02, 2020-03-03: 3 critical expectations not met; nothing was committed" in text
    assert "user_id: expected not null or empty; 2020-03-02: 1 bad rows" in text
    assert "user_id=null, request_id='r3', item_id='i6'" in text
    assert "quantity: expected finite; 2020-03-02: 1 bad rows" in text and "quantity=nan" in text
    assert "request_id, item_id: expected unique within the day; 2020-03-03: 1 rows too many" in text
    assert "request_id='r6', item_id='i13'" in text
    home = lake.root.parent / "quarantine" / "interactions"
    kept = pq.read_table(home / "ds=2020-03-02" / "bad.parquet", partitioning=None).to_pylist()
    assert {(r["item_id"], r["_reason"]) for r in kept} == {("i6", "user_id not null or empty"), ("i7", "quantity finite")}
    assert pq.read_table(home / "ds=2020-03-03" / "bad.parquet", partitioning=None).num_rows == 2
    assert not (home / "ds=2020-03-01").exists()
    assert len(json.loads((home / "findings-2020-03-03.json").read_text())) == 3
    assert failed.value.report.docs and failed.value.report.docs.is_file()


def test_the_quarantine_of_a_day_is_bounded(spark: SparkSession, lake: Lake) -> None:
    rows = [row | {"user_id": None} for row in good("interactions", 1)]
    with pytest.raises(GateFailed) as failed:
        gate(
            spark,
            lake,
            "interactions",
            frame(spark, "interactions", rows),
            1,
            config_of(lake.root.parent, quarantine_rows=4, bad_values_shown=2),
        )
    kept = lake.root.parent / "quarantine" / "interactions" / "ds=2020-03-01" / "bad.parquet"
    assert pq.read_table(kept, partitioning=None).num_rows == 4
    assert message_of(failed).count("for example") == 2


def test_infinite_and_missing_numbers_are_counted_and_not_an_error_of_the_profile(spark: SparkSession, lake: Lake) -> None:
    values = [INF, -INF, NAN, None, 0.0, 1e300, -1e-300]
    rows = [row | {"value": value} for row, value in zip(rows_of("interactions", days(1)[0], len(values)), values, strict=True)]
    found = day_profiles(gate_of("interactions", config_of(lake.root)), frame(spark, "interactions", rows))[FIRST.isoformat()]
    assert {int(i): int(found.hist["value"][i]) for i in found.hist["value"].nonzero()[0]} == {0: 1, 1: 1, 2: 1, 63: 2, 65: 1, 125: 1}


def test_timestamps_outside_the_day_stop_the_commit(spark: SparkSession, lake: Lake) -> None:
    rows = good("requests", 2)
    rows[0] |= {"ts": rows[-1]["ts"]}
    with pytest.raises(GateFailed, match=r"ts: expected within ds; 2020-03-01: 1 bad rows\n    for example ts=2020-03-02 23:23:00"):
        gate(spark, lake, "requests", frame(spark, "requests", rows), 2)


def test_a_failed_gate_leaves_the_old_partition_and_marker_alone(spark: SparkSession, lake: Lake) -> None:
    first = days(1)
    commit(spark, lake, "interactions", good("interactions", 1), first, {})
    before = lake.marker("interactions", first[0])
    bad = spoil(good("interactions", 1, 30), item_id=None)
    with lake.stage("interactions", "again") as stage:
        stage.write(frame(spark, "interactions", bad), first)
        with pytest.raises(GateFailed):
            gate(spark, lake, "interactions", stage.frame(spark, first), 1)
    assert lake.marker("interactions", first[0]) == before
    assert lake.read(spark, "interactions", first).count() == 24
    assert not (lake.root / "_staging" / "again").exists()


def test_a_missing_and_a_retyped_column_stop_the_commit_by_name(spark: SparkSession, lake: Lake) -> None:
    schema = SCHEMAS["offers"].replace("shown string, ", "")
    rows = [{k: v for k, v in row.items() if k != "shown"} for row in good("offers", 1)]
    with pytest.raises(GateFailed, match=r"shown: expected present; missing"):
        gate(spark, lake, "offers", frame(spark, "offers", rows, schema), 1)
    retyped = frame(spark, "interactions", good("interactions", 1)).selectExpr("* except (quantity)", "cast(quantity as int) quantity")
    with pytest.raises(GateFailed, match=r"quantity: expected of type double; found int"):
        gate(spark, lake, "interactions", retyped, 1)


def test_an_added_column_is_only_warned_of(spark: SparkSession, lake: Lake) -> None:
    report = gate(spark, lake, "users", frame(spark, "users", good("users", 1)).selectExpr("*", "1 as extra"), 1)
    assert [(f.severity, f.column, f.observed[""]) for f in report.findings] == [("warning", "(columns)", "found also extra")]


def test_an_unseen_category_of_an_offer_is_only_warned_of(spark: SparkSession, lake: Lake) -> None:
    report = gate(spark, lake, "offers", frame(spark, "offers", spoil(good("offers", 1), shown="window")), 1)
    assert [(f.severity, f.column, f.observed) for f in report.findings] == [("warning", "shown", {"2020-03-01": "1 bad rows"})]


def test_days_made_with_other_settings_are_no_trailing_days(spark: SparkSession, lake: Lake) -> None:
    rows = good("interactions", 5)
    found = day_profiles(gate_of("interactions", config_of(lake.root)), frame(spark, "interactions", rows))
    stats = {day: found[day.isoformat()].stats() for day in days(5)}
    commit(spark, lake, "interactions", rows, days(5), stats, config="a larger sample")
    report = last_day(spark, lake, "interactions", 6, rows_of("interactions", days(6)[-1], 4))
    assert report.critical == [] and report.short_history == days(6)[-1:]


def trailing(spark: SparkSession, lake: Lake, table: str, count: int, **changed: Any) -> None:
    """Commit good days with their profiles, then delete their data: nothing but markers may be read of them."""
    rows = [row | changed for row in good(table, count)]
    staged = frame(spark, table, rows)
    found = day_profiles(gate_of(table, config_of(lake.root)), staged)
    commit(spark, lake, table, rows, days(count), {day: found[day.isoformat()].stats() for day in days(count)})
    for file in (lake.root / table).rglob("*.parquet"):
        file.unlink()


def last_day(spark: SparkSession, lake: Lake, table: str, count: int, rows: list[Row]) -> CheckReport:
    config = config_of(lake.root.parent)
    return check(table, frame(spark, table, rows), days(count)[-1:], config=config, lake=lake, spark=spark)


def test_a_collapsed_row_count_stops_the_commit_reading_only_markers_of_the_trailing_days(spark: SparkSession, lake: Lake) -> None:
    trailing(spark, lake, "interactions", 5)
    with pytest.raises(GateFailed, match=r"\(rows\): expected rows over trailing median; 2020-03-06: 0.1667 times the trailing median"):
        last_day(spark, lake, "interactions", 6, rows_of("interactions", days(6)[-1], 4))


def test_too_little_history_is_recorded_and_not_failed(spark: SparkSession, lake: Lake) -> None:
    trailing(spark, lake, "interactions", 3)
    report = last_day(spark, lake, "interactions", 4, rows_of("interactions", days(4)[-1], 4))
    assert report.critical == [] and report.short_history == days(4)[-1:]


def test_drift_of_a_feature_stops_the_commit(spark: SparkSession, lake: Lake) -> None:
    trailing(spark, lake, "interactions", 9, value=1.5)
    rows = [row | {"value": 900.0} for row in rows_of("interactions", days(10)[-1])]
    config = config_of(lake.root.parent, trailing_days=9)
    with pytest.raises(GateFailed, match=r"value: expected PSI against the trailing days at most 2; 2020-03-10: \d"):
        check("interactions", frame(spark, "interactions", rows), days(10)[-1:], config=config, lake=lake, spark=spark)


def test_earlier_days_of_a_range_are_trailing_days_of_later_ones(spark: SparkSession, lake: Lake) -> None:
    rows = good("users", 5) + rows_of("users", days(6)[-1], 3)
    with pytest.raises(GateFailed, match=r"\(rows\): expected rows over trailing median; 2020-03-06: 0.125"):
        gate(spark, lake, "users", frame(spark, "users", rows), 6)


def test_a_shifted_label_rate_stops_the_commit(spark: SparkSession, lake: Lake) -> None:
    rows = good("examples", 5) + [row | {"label": [1, 1, 1]} for row in rows_of("examples", days(6)[-1])]
    with pytest.raises(GateFailed, match=r"label: expected label rate over trailing median; 2020-03-06: [34]\d\.?\d* times"):
        gate(spark, lake, "examples", frame(spark, "examples", rows), 6)


def test_a_day_without_positives_is_warned_of_at_first_and_critical_with_history(spark: SparkSession, lake: Lake) -> None:
    none = [
        row | {"label": [0, 0], "item": [1, 2], "source": [0, 0], "weight": [1.0, 1.0], "cross": row["cross"][:18]}
        for row in good("examples", 6)
    ]
    report = gate(spark, lake, "examples", frame(spark, "examples", none[:24]), 1)
    assert [(f.severity, f.rule, f.observed) for f in report.findings] == [
        ("warning", "label at least one positive", {"2020-03-01": "0 positives"})
    ]
    with pytest.raises(GateFailed, match=r"label: expected label rate over trailing median; 2020-03-06: 0 times"):
        gate(spark, lake, "examples", frame(spark, "examples", good("examples", 5) + none[-24:]), 6)


def test_a_late_source_stops_the_commit_and_a_quiet_day_does_not(spark: SparkSession, lake: Lake) -> None:
    first, second, third = days(3)
    quiet = frame(spark, "interactions", rows_of("interactions", first) + rows_of("interactions", third))
    report = gate(spark, lake, "interactions", quiet, 3)
    assert [(f.severity, f.observed) for f in report.findings] == [("warning", {second.isoformat(): "0 rows"})]
    late = frame(spark, "interactions", rows_of("interactions", first))
    with pytest.raises(GateFailed, match=r"\(rows\): expected has rows; 2020-03-02: 0 rows"):
        gate(spark, lake, "interactions", late, 2)
    assert gate(spark, lake, "interactions", late, 2, config_of(lake.root.parent, quiet_days=[second])).findings == []


def test_examples_may_be_empty_only_where_there_were_no_requests(spark: SparkSession, lake: Lake) -> None:
    when = days(2)
    staged = frame(spark, "examples", rows_of("examples", when[0]))
    commit(spark, lake, "requests", rows_of("requests", when[0]), when, {})
    assert gate(spark, lake, "examples", staged, 2).critical == []
    commit(spark, lake, "requests", good("requests", 2), when, {})
    with pytest.raises(GateFailed, match=r"\(rows\): expected has rows; 2020-03-02: 0 rows"):
        gate(spark, lake, "examples", staged, 2)


def test_a_day_of_new_users_alone_has_no_crosses_and_passes_unless_there_should_be_more(spark: SparkSession, lake: Lake) -> None:
    when = days(8)
    commit(spark, lake, "requests", good("requests", 8), when, {})
    staged = frame(spark, "u2i_crosses", rows_of("u2i_crosses", when[0]))
    report = gate(spark, lake, "u2i_crosses", staged, 2)
    assert [(f.severity, f.says, f.observed) for f in report.findings] == [("warning", "has rows", {when[1].isoformat(): "0 rows"})]
    staged = frame(spark, "u2i_crosses", [row for day in when[:-1] for row in rows_of("u2i_crosses", day)])
    with pytest.raises(GateFailed, match=r"\(rows\): expected has rows; 2020-03-08: 0 rows"):
        gate(spark, lake, "u2i_crosses", staged, 8)
    loose = config_of(lake.root.parent, row_count_ratio=(0.0, 1000.0))
    assert gate(spark, lake, "u2i_crosses", staged, 8, loose).critical == []


def test_gates_that_are_off_still_leave_profiles_for_later(spark: SparkSession, lake: Lake) -> None:
    bad = spoil(good("users", 1), user_id=None)
    report = gate(spark, lake, "users", frame(spark, "users", bad), 1, config_of(lake.root.parent, enabled=False))
    assert report.findings == [] and report.docs is None
    assert report.stats[days(1)[0]]["rows"] == 24.0


def test_a_day_has_the_same_profile_alone_and_in_a_range_also_when_sampled(
    spark: SparkSession, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.checks.profile.LARGE_DAY", 100)
    spec = gate_of("users", config_of(lake.root))
    rows = rows_of("users", days(1)[0], 400) + rows_of("users", days(2)[-1], 50)
    both, alone = day_profiles(spec, frame(spark, "users", rows)), day_profiles(spec, frame(spark, "users", rows[:400]))
    assert both[days(1)[0].isoformat()].stats() == alone[days(1)[0].isoformat()].stats()
    assert 20 < both[days(1)[0].isoformat()].hist["age"].sum() < 80
    assert both[days(2)[-1].isoformat()].hist["age"].sum() == 50


def test_every_duplicate_of_a_large_day_is_counted_and_keys_with_nulls_are_not_taken_for_each_other(
    spark: SparkSession, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.checks.profile.LARGE_DAY", 100)
    spec = gate_of("offers", config_of(lake.root))
    rows = rows_of("offers", days(1)[0], 400)
    nulls = [rows[0] | {"offer_key": "x", "item_id": None}, rows[0] | {"offer_key": None, "item_id": "x"}]
    found = day_profiles(spec, frame(spark, "offers", [*rows, *rows[100:116], rows[100], *nulls]))
    assert found[days(1)[0].isoformat()].bad[spec.keys[0].name] == 17


def test_data_docs_of_all_tables_are_listed(spark: SparkSession, lake: Lake) -> None:
    for table in ("users", "offers"):
        gate(spark, lake, table, frame(spark, table, good(table, 1)), 1)
    page = (lake.root.parent / "docs" / "index.html").read_text()
    assert 'href="users/index.html"' in page and 'href="offers/index.html"' in page
    shutil.rmtree(lake.root.parent / "docs")
