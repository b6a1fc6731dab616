"""Data gates without Spark: rules that follow from settings, profiles, drift, and the judgement of Great Expectations."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest

from jobs.checks import docs
from jobs.checks.profile import DayProfile, compare, psi, psi_noise
from jobs.checks.rules import BINS
from jobs.checks.suites import days_suite, judge, rows_suite, schema_suite
from jobs.checks.tables import GATES, gate_of
from jobs.config import CONF_DIR, ConfigError, load
from tests.jobs.gate_world import SCHEMAS, config_of


def bins(**counts: float) -> np.ndarray:
    out = np.zeros(BINS)
    for name, n in counts.items():
        out[int(name[1:])] = n
    return out


def profile_of(rows: int, **hist: np.ndarray) -> DayProfile:
    return DayProfile(rows=rows, hist=hist)


# ---- rules


@pytest.mark.parametrize("table", sorted(GATES))
def test_a_gate_declares_the_columns_of_its_table(table: str, tmp_path: Path) -> None:
    declared = gate_of(table, config_of(tmp_path)).types
    assert set(declared) == {part.split()[0] for part in SCHEMAS[table].split(", ")}


def test_columns_follow_the_data_set_of_the_settings() -> None:
    config = load(CONF_DIR / "local.yaml", [], {})
    spec = config.dataset.spec()
    examples = gate_of("examples", config)
    assert {f"u_{f.name}" for f in spec.user_fields} | {f"c_{f.name}" for f in spec.context_fields} <= set(examples.types)
    assert examples.feature_names[-spec.cross_width_raw :] == spec.raw_cross_names
    assert {"display_location", "mailer_location"} <= set(gate_of("offers", config).types)


@pytest.mark.parametrize("table", sorted(GATES))
def test_rule_names_are_unique_because_findings_are_found_by_them(table: str) -> None:
    gate = gate_of(table, load(CONF_DIR / "local.yaml", [], {}))
    names = [r.name for r in gate.rules] + [k.name for k in gate.keys]
    assert len(names) == len(set(names))


def test_a_table_without_a_gate_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'user_state' has no data gate; tables with one are interactions"):
        gate_of("user_state", config_of(tmp_path))


def test_only_large_days_are_sampled(tmp_path: Path) -> None:
    key = gate_of("offers", config_of(tmp_path)).keys[0]
    assert key.share([]) == "true"
    assert "NOT IN ('2020-03-02')" in key.share(["2020-03-02"])


# ---- profiles


def test_a_profile_survives_its_marker() -> None:
    before = DayProfile(rows=7, figures={"positives": 3.0}, hist={"a.b": bins(b2=4, b127=1), "c": bins(b0=7)})
    after = DayProfile.from_stats(7, before.stats())
    assert (after.rows, after.figures["positives"]) == (7, 3.0)
    assert {name: h.tolist() for name, h in after.hist.items()} == {name: h.tolist() for name, h in before.hist.items()}


def test_label_rate_weighs_downsampled_negatives_back() -> None:
    assert DayProfile(figures={"exposed_weight": 40.0, "exposed_positives": 2.0}).label_rate == 0.05
    assert DayProfile(figures={}).label_rate is None


def test_psi_is_the_published_sum() -> None:
    now, before = bins(b1=30, b2=70), bins(b1=50, b2=50)
    p, q = np.array([30.5, 70.5]) / 101, np.array([50.5, 50.5]) / 101
    assert psi(now, before) == pytest.approx(float(((p - q) * np.log(p / q)).sum()))
    assert psi(now, now) == 0.0


def test_a_new_category_weighs_the_same_however_many_rows_there_are() -> None:
    few, many = (float(psi(bins(b1=92 * n, b2=8 * n), bins(b1=100 * n))) for n in (100, 100_000))
    assert few == pytest.approx(many, rel=0.01) and 0.2 < many < 0.5


def test_psi_of_equal_distributions_stays_under_its_noise_bound() -> None:
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(15))
    over = 0
    for _ in range(300):
        now, before = (np.pad(rng.multinomial(n, shares), (0, BINS - 15)).astype(float) for n in (60, 900))
        over += psi(now, before) > psi_noise(now, before, rows=60, rows_before=900)
    assert over <= 3


def test_a_shift_of_a_large_day_exceeds_the_noise() -> None:
    now, before = bins(b1=900, b2=100), bins(b1=1400, b2=12600)
    assert psi(now, before) - psi_noise(now, before, rows=1000, rows_before=14000) > 1.0


# ---- comparison with trailing days


def over(profiles: list[DayProfile]) -> dict[date, DayProfile]:
    """Profiles of consecutive days."""
    return {date(2020, 3, 1) + timedelta(days=i): p for i, p in enumerate(profiles)}


def history(count: int, rows: int = 100) -> list[DayProfile]:
    return [profile_of(rows, kind=bins(b2=rows / 2, b3=rows / 2)) for _ in range(count)]


def test_few_trailing_days_are_no_history(tmp_path: Path) -> None:
    gate = gate_of("items", config_of(tmp_path))
    found = compare(gate, profile_of(1, kind=bins(b9=1)), over([*history(3), *(DayProfile() for _ in range(9))]), min_days=4)
    assert (found.history, found.rows, found.psi["kind"]) == (3, None, None)


def test_drift_needs_days_a_week_apart_but_volume_does_not(tmp_path: Path) -> None:
    gate = gate_of("items", config_of(tmp_path))
    found = compare(gate, profile_of(100, kind=bins(b9=100)), over(history(8)), min_days=4)
    assert (found.history, found.rows, found.psi["kind"]) == (8, 1.0, None)


def test_drift_is_measured_beyond_sampling_noise(tmp_path: Path) -> None:
    gate = gate_of("items", config_of(tmp_path))
    same = compare(gate, profile_of(100, kind=bins(b2=55, b3=45)), over(history(10)), min_days=4)
    other = compare(gate, profile_of(100, kind=bins(b2=2, b9=98)), over(history(10)), min_days=4)
    assert same.psi["kind"] == 0.0
    assert other.psi["kind"] is not None and other.psi["kind"] > 2.0
    assert other.rows == 1.0


def test_lists_that_are_all_empty_and_labels_that_vanish_are_drift(tmp_path: Path) -> None:
    items = gate_of("item_features", config_of(tmp_path))
    first = next(f.name for f in items.features if not f.many)
    full, empty = (profile_of(100, **{first: bins(b2=100)}, **more) for more in ({"f_words": bins(b2=60, b3=40)}, {}))
    found = compare(items, empty, over([full] * 10), min_days=4).psi["f_words"]
    assert found is not None and found > 2.0
    assert compare(items, full, over([empty] * 10), min_days=4).psi["f_words"] is None
    exposed = DayProfile(rows=9, figures={"exposed_weight": 40.0, "exposed_positives": 2.0})
    examples, none = gate_of("examples", config_of(tmp_path)), DayProfile(rows=9, figures={"exposed_weight": 0.0})
    assert compare(examples, none, over([exposed] * 10), min_days=4).label_rate == 0.0
    assert compare(examples, none, over([none] * 10), min_days=4).label_rate is None


def test_a_calendar_feature_does_not_drift_when_the_day_changes(tmp_path: Path) -> None:
    gate = gate_of("requests", config_of(tmp_path))
    weekdays = [profile_of(50, weekday=bins(**{f"b{2 + i % 7}": 50})) for i in range(17)]
    assert compare(gate, weekdays[-1], over(weekdays[:-1]), min_days=4).psi["weekday"] is None


def test_a_new_promotion_differs_as_usual_and_what_no_week_had_drifts(tmp_path: Path) -> None:
    gate = gate_of("requests", config_of(tmp_path))
    rng = np.random.default_rng(1)
    weeks = [rng.dirichlet(np.full(8, 2.0)) * 900 for _ in range(4)]
    trailing = over([profile_of(900, store_id=np.pad(weeks[i // 7], (2, BINS - 10))) for i in range(28)])
    new_week = profile_of(900, store_id=np.pad(rng.dirichlet(np.full(8, 2.0)) * 900, (2, BINS - 10)))
    lost = compare(gate, profile_of(900, store_id=bins(b0=900)), trailing, min_days=7).psi["store_id"]
    usual = compare(gate, new_week, trailing, min_days=7).psi["store_id"]
    assert usual is not None and usual < 0.25
    assert lost is not None and lost > 2.0


def test_one_odd_trailing_day_does_not_hide_drift(tmp_path: Path) -> None:
    gate = gate_of("requests", config_of(tmp_path))
    trailing = [profile_of(50, store_id=bins(b3=50)) for _ in range(15)]
    trailing[4] = profile_of(50, store_id=bins(b7=50))
    found = compare(gate, profile_of(50, store_id=bins(b7=50)), over(trailing), min_days=4).psi["store_id"]
    assert found is not None and found > 1.0


def test_array_elements_count_as_one_observation_a_row(tmp_path: Path) -> None:
    gate = gate_of("examples", config_of(tmp_path))
    wide = gate.wide.names[0] if gate.wide else ""
    plain = gate.features[0].name

    def day(first: float, second: float) -> DayProfile:
        return profile_of(6, **{wide: bins(b2=first, b9=second), plain: bins(b3=6)})

    # 600 elements differ, but they come from 6 requests: no evidence of drift.
    assert compare(gate, day(400, 200), over([day(250, 350) for _ in range(10)]), min_days=4).psi[wide] == 0.0


# ---- judgement


@pytest.mark.slow
def test_great_expectations_names_rule_day_and_value_and_writes_docs(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    gate = gate_of("offers", config)
    bad = gate.rules[0].name
    profiles = {"2020-03-01": DayProfile(rows=5), "2020-03-02": DayProfile(rows=5, bad={bad: 2})}
    context = docs.open_context(config, "offers")
    findings = judge(context, "offers", [rows_suite(gate, profiles)], date(2020, 3, 2))
    assert [(f.rule, f.severity, f.observed) for f in findings] == [(bad, "critical", {"2020-03-02": "2 bad rows"})]
    page = docs.write(config, context, "offers")
    assert page.is_file()
    written = "".join(p.read_text() for p in page.parent.rglob("validations/**/*.html"))
    assert "offer_key: not null or empty" in written
    assert 'href="offers/index.html"' in (tmp_path / "docs" / "index.html").read_text()


@pytest.mark.slow
def test_old_runs_leave_the_docs_when_there_are_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs, "KEPT_RUNS", 1)
    config = config_of(tmp_path)
    for day in (date(2020, 3, 1), date(2020, 3, 2), date(2020, 3, 3)):
        context = docs.open_context(config, "offers")
        judge(context, "offers", [rows_suite(gate_of("offers", config), {day.isoformat(): DayProfile(rows=1)})], day)
        docs.write(config, context, "offers")
    docs.open_context(config, "offers")
    assert [p.name for p in (tmp_path / "docs" / "offers" / "validations" / "offers_rows").iterdir()] == ["2020-03-03"]


def test_schema_findings_name_the_column_and_both_types(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    found = {"offer_key": "string", "item_id": "bigint", "ds": "string", "extra": "int"}
    findings = judge(docs.open_context(config, "offers"), "offers", [schema_suite(gate_of("offers", config), found)], date(2020, 3, 1))
    assert {(f.rule, f.severity, f.observed[""]) for f in findings} == {
        ("item_id of type string", "critical", "found bigint"),
        ("shown present", "critical", "missing"),
        ("(columns) none beside the declared ones", "warning", "found also extra"),
    }


def test_nothing_is_compared_and_nothing_fails_without_history(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    gate = gate_of("examples", config)
    day = DayProfile(rows=3, figures={"positives": 1.0, "exposed_weight": 9.0, "exposed_positives": 1.0})
    compared = {"2020-03-01": compare(gate, day, {}, min_days=4)}
    suite = days_suite(gate, {"2020-03-01": day}, compared, {"2020-03-01": "critical"}, config.checks)
    assert judge(docs.open_context(config, "examples"), "examples", [suite], date(2020, 3, 1)) == []


def test_docs_on_a_url_are_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    config = config.model_copy(update={"paths": config.paths.model_copy(update={"docs": "s3://bucket/docs"})})
    with pytest.raises(ConfigError, match=r"paths\.docs: s3://bucket/docs: a folder"):
        docs.place(config, "docs")
