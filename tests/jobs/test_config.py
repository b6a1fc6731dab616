"""The settings: layers and their order, strict types, one clear error for each mistake, and where every value came from."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest

from dig_models.config import ModelConfig
from jobs.config import CONF_DIR, Config, ConfigError, load, load_layers

DATASET = """
name: shop
source: {kind: tables, interactions: {path: events.parquet}}
first_date: 2020-01-01
last_date: 2020-12-31
default_date: 2020-06-01
item_fields: [{name: brand, column: brand_name, buckets: 8}]
user_fields: [{name: user_id}]
u2i: {keys: [{name: item, column: item_id}], windows: [7, 30]}
"""
PLACE = """
dataset: {name: shop}
paths: {home: /tmp/shop}
train:
  lr: 2e-3
"""


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "shop.yaml").write_text(DATASET)
    place = tmp_path / "local.yaml"
    place.write_text(PLACE)
    return place


def error_of(place: Path, *sets: str, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(place, sets, environ or {})
    return str(caught.value)


@pytest.mark.parametrize("name", ["local", "cluster"])
def test_the_settings_of_the_project_are_valid(name: str) -> None:
    config = load(CONF_DIR / f"{name}.yaml", environ={})
    assert config.dataset.name == "complete_journey"
    assert config.run_window(config.dataset.default_date).eval_last == config.dataset.default_date


def test_the_default_date_and_its_window_lie_before_the_acceptance_period() -> None:
    dataset = load(CONF_DIR / "local.yaml", environ={}).dataset
    assert dataset.acceptance_from is not None
    assert dataset.default_date < dataset.acceptance_from


def test_a_run_is_in_the_acceptance_period_once_its_last_evaluation_day_is(conf: Path) -> None:
    config = load(conf, ["dataset.acceptance_from=2020-07-01"], {})
    assert not config.in_acceptance(date(2020, 6, 30))
    assert config.in_acceptance(date(2020, 7, 1))
    assert not load(conf, environ={}).in_acceptance(date(2020, 12, 31))


def test_options_win_over_environment_over_place_over_data_set_over_defaults(conf: Path) -> None:
    environ = {"DIG_TRAIN__LR": "0.5", "DIG_DATASET__SAMPLE_USERS": "0.5"}
    assert load(conf, environ={}).train.lr == 2e-3
    assert load(conf, environ=environ).train.lr == 0.5
    assert load(conf, ["train.lr=0.25"], environ).train.lr == 0.25
    assert load(conf, ["train.lr=0.25"], environ).dataset.sample_users == 0.5
    assert load(conf, environ={}).dataset.sample_users == 1.0


def test_the_place_may_override_one_key_of_the_data_set(conf: Path) -> None:
    conf.write_text("dataset: {name: shop, history: {days: 5}}")
    history = load(conf, environ={}).dataset.history
    assert (history.days, history.length) == (5, 60)


def test_a_later_option_wins_over_an_earlier_one(conf: Path) -> None:
    assert load(conf, ["train.epochs=5", "train.epochs=7"], {}).train.epochs == 7


def test_the_data_set_can_be_chosen_by_option(conf: Path) -> None:
    (conf.parent / "datasets" / "other.yaml").write_text(DATASET.replace("name: shop", "name: other").replace("[7, 30]", "[3]"))
    assert load(conf, ["dataset.name=other"], {}).dataset.u2i.windows == (3,)


def test_a_data_set_of_the_project_serves_a_place_that_lies_elsewhere(tmp_path: Path) -> None:
    place = tmp_path / "mine.yaml"
    place.write_text("dataset: {name: complete_journey}")
    assert load(place, environ={}).dataset.source.kind == "complete_journey"


@pytest.mark.parametrize(
    ("text", "value"),
    [("2e-3", 0.002), ("1E4", 10000.0), (".5", 0.5), ("1.5", 1.5), ("3", 3.0), ("-1.0e-2", None)],
)
def test_numbers_are_read_as_people_write_them(conf: Path, text: str, value: float | None) -> None:
    if value is None:
        assert "greater than 0" in error_of(conf, f"train.lr={text}")
    else:
        assert load(conf, [f"train.lr={text}"], {}).train.lr == value


def test_lists_and_mappings_can_be_given_as_options(conf: Path) -> None:
    config = load(conf, ["dataset.u2i.windows=[3, 9]", "spark.conf={spark.executor.cores: '4'}"], {})
    assert config.dataset.u2i.windows == (3, 9)
    assert config.spark.conf == {"spark.executor.cores": "4"}


def test_an_empty_value_is_the_empty_text(conf: Path) -> None:
    assert load(conf, ["mlflow.tracking_uri="], {"DIG_PATHS__LAKE": ""}).mlflow.tracking_uri == ""


def test_a_value_may_hold_an_equals_sign(conf: Path) -> None:
    assert load(conf, ["mlflow.tracking_uri=http://m?a=b"], {}).mlflow.tracking_uri == "http://m?a=b"


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("dataset.smple_users=1", "--set dataset.smple_users: dataset.smple_users: unknown key; did you mean 'sample_users'?"),
        ("trian.lr=1", "--set trian.lr: trian.lr: unknown key; did you mean 'train'?"),
        ("nothing=1", "--set nothing: nothing: unknown key; known are dataset, paths"),
        ("dataset.source.interactions.pth=x", "unknown key; did you mean 'path'?"),
        ("dataset.item_fields=[{name: a, colum: b}]", "dataset.item_fields.0.colum: unknown key; did you mean 'column'?"),
        ("model.dim='32'", "--set model.dim: model.dim: Input should be a valid integer, found '32'"),
        ("model.dim=32.5", "model.dim: Input should be a valid integer, found 32.5"),
        ("train.epochs=true", "train.epochs: Input should be a valid integer, found True"),
        ("train.warm_start=1", "train.warm_start: Input should be a valid boolean, found 1"),
        ("train.lr=fast", "train.lr: Input should be a valid number, found 'fast'"),
        ("train.lr=.nan", "train.lr: Input should be a finite number"),
        ("checks.max_psi=.inf", "checks.max_psi: Input should be a finite number"),
        ("mlflow.model_name=12", "mlflow.model_name: Input should be a valid string, found 12"),
        ("dataset.sample_users=1.5", "dataset.sample_users: Input should be less than or equal to 1, found 1.5"),
        ("dataset.sample_users=0", "greater than 0"),
        ("dataset.first_date=soon", "dataset.first_date: Input should be a valid date"),
        ("dataset.first_date=2020-06-02", "first_date <= default_date <= last_date expected"),
        ("dataset.u2i.keys=[{name: type, column: type}]", "u2i.keys needs a key named 'item'"),
        ("dataset.u2i.windows=[7, 7]", "u2i.windows: each name once expected, found 7 more than once"),
        ("dataset.item_fields=[{name: a}, {name: a}]", "item_fields: each name once expected, found a more than once"),
        ("dataset.item_fields=[{name: a, buckets: 1}]", "greater than or equal to 2"),
        ("dataset.source.kind=sheet", "dataset.source.kind: one of 'complete_journey', 'tables' expected, found 'sheet'"),
        ("train.backend=mpi", "'gloo' or 'nccl', found 'mpi'"),
        ("window.train_days=3", "--set window.train_days: window: validation_days 3 are the tail of train_days 3"),
        ("gate.calibration=[2, 1]", "a lower and an upper limit expected, in that order, found [2.0, 1.0]"),
        ("gate.calibration=[1]", "gate.calibration.1: required, but missing"),
        ("paths.home=", "paths.home: String should have at least 1 character"),
        ("spark=", "spark: Input should be an object, found ''"),
        ("spark.conf={spark.cores: 4}", "spark.conf.spark.cores: Input should be a valid string, found 4"),
        ("dataset=5", "dataset.name: required, but missing"),
        ("dataset.name=nowhere", "data set 'nowhere' not found; files there: "),
        ("train.lr", "--set train.lr: expected key=value"),
        ("=5", "--set =5: expected key=value"),
    ],
)
def test_a_wrong_option_is_one_error_that_names_key_and_what_was_expected(conf: Path, option: str, said: str) -> None:
    assert said in error_of(conf, option)


def test_a_wrong_environment_variable_is_named(conf: Path) -> None:
    assert error_of(conf, environ={"DIG_TRAIN__EPOCHS": "many"}).startswith("environment DIG_TRAIN__EPOCHS: train.epochs: ")
    assert "environment DIG_TRIAN: trian: unknown key" in error_of(conf, environ={"DIG_TRIAN": "1"})


def test_other_variables_are_left_alone(conf: Path) -> None:
    assert load(conf, environ={"DIG_PROGRESS": "/tmp/p", "DIG_CONFIG": "/tmp/c", "DIGEST": "1", "PATH": "/bin"})


def test_every_mistake_is_told_at_once(conf: Path) -> None:
    assert len(error_of(conf, "train.lr=x", "train.epochs=y", "model.dmi=1").splitlines()) == 3


def test_a_wrong_value_in_a_file_names_the_file(conf: Path) -> None:
    conf.write_text(PLACE.replace("2e-3", "fast"))
    assert error_of(conf).startswith(f"{conf}: train.lr: ")
    conf.write_text(PLACE)
    dataset = conf.parent / "datasets" / "shop.yaml"
    dataset.write_text(DATASET.replace("buckets: 8", "buckets: eight"))
    assert error_of(conf).startswith(f"{dataset}: dataset.item_fields.0.buckets: ")


def test_a_missing_key_names_the_file_that_should_hold_it(conf: Path) -> None:
    dataset = conf.parent / "datasets" / "shop.yaml"
    dataset.write_text(DATASET.replace("first_date: 2020-01-01\n", ""))
    assert error_of(conf) == f"{dataset}: dataset.first_date: required, but missing"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected a mapping of settings, found NoneType"),
        ("- a\n- b", "expected a mapping of settings, found list"),
        ("train: {lr: 1", "not valid YAML"),
        ("train: {lr: 1}\ntrain: {lr: 2}", "key 'train' stands more than once"),
        ("train: {lr: 1, lr: 2}", "key 'lr' stands more than once"),
        ("train: {lr: 1}", "dataset.name: required, but missing"),
        ("dataset: {name: shop}\ntrain:", "train: Input should be an object, found None"),
        ("dataset: {name: shop}\n1: 2", "1: unknown key"),
    ],
)
def test_a_broken_file_is_one_error_that_names_it(conf: Path, text: str, said: str) -> None:
    conf.write_text(text)
    message = error_of(conf)
    assert str(conf) in message
    assert said in message


def test_a_file_in_another_encoding_is_refused(conf: Path) -> None:
    conf.write_bytes(b"dataset: {name: \xff}")
    assert f"{conf}: cannot be read" in error_of(conf)


def test_a_missing_file_says_what_is_there(conf: Path) -> None:
    message = error_of(conf.parent / "nowhere.yaml")
    assert message == f"{conf.parent / 'nowhere.yaml'}: configuration not found; files there: local"


def test_the_file_comes_from_dig_config_when_none_is_given(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIG_CONFIG", str(conf))
    assert load().dataset.name == "shop"


def test_every_leaf_is_shown_with_its_value_and_origin(conf: Path) -> None:
    config, layers = load_layers(conf, ["model.dim=16"], {"DIG_TRAIN__EPOCHS": "5"})
    leaves = {leaf.key: leaf for leaf in layers.leaves(config)}
    dataset = str(conf.parent / "datasets" / "shop.yaml")
    assert (leaves["model.dim"].value, leaves["model.dim"].origin) == (16, "--set model.dim")
    assert (leaves["train.epochs"].value, leaves["train.epochs"].origin) == (5, "environment DIG_TRAIN__EPOCHS")
    assert (leaves["train.lr"].value, leaves["train.lr"].origin) == (0.002, str(conf))
    assert (leaves["dataset.u2i.windows"].value, leaves["dataset.u2i.windows"].origin) == ([7, 30], dataset)
    assert leaves["dataset.name"].origin == str(conf)
    assert leaves["dataset.item_fields"].value == [{"name": "brand", "kind": "categorical", "buckets": 8, "column": "brand_name"}]


def test_a_default_is_shown_as_one_although_its_section_was_named(conf: Path) -> None:
    config, layers = load_layers(conf, [], {})
    origins = {leaf.key: leaf.origin for leaf in layers.leaves(config)}
    assert origins["paths.home"] == str(conf)
    assert origins["paths.lake"] == "default"
    assert origins["train.seed"] == "default"
    assert origins["dataset.history.length"] == "default"


def test_the_leaves_cover_every_setting(conf: Path) -> None:
    config, layers = load_layers(conf, [], {})
    keys = {leaf.key.split(".")[0] for leaf in layers.leaves(config)}
    assert keys == set(Config.model_fields)
    sections = {"loss", "affinity"}
    found = {leaf.key for leaf in layers.leaves(config)}
    assert found >= {f"model.{name}" for name in ModelConfig.model_fields if name not in sections}
    assert all(any(key.startswith(f"model.{name}.") for key in found) for name in sections)


def test_settings_cannot_be_changed_after_they_were_read(conf: Path) -> None:
    config = load(conf, environ={})
    with pytest.raises(ValueError, match="frozen"):
        config.train.lr = 1.0  # type: ignore[misc]


TABLES = """\
name: shop
source:
  kind: tables
  interactions: {path: /data/x.csv, format: csv}
first_date: 2020-01-01
last_date: 2020-12-31
default_date: 2020-06-01
item_fields: [{name: brand, buckets: 8}]
user_fields: [{name: age, buckets: 8}]
u2i: {keys: [{name: item, column: item_id}]}
"""


def test_overrides_that_a_run_hands_on_keep_their_capitals_and_their_origin(conf: Path) -> None:
    (conf.parent / "datasets" / "shop.yaml").write_text(TABLES)
    sets = ["dataset.source.interactions.options.dateFormat=dd.MM", "train.lr=2e-3"]
    told = {"DIG_SET": json.dumps(sets), "DIG_TRAIN__LR": "0.5"}
    config, layers = load_layers(conf, [], told)
    assert config == load(conf, sets, {})
    leaves = {leaf.key: leaf for leaf in layers.leaves(config)}
    assert leaves["dataset.source.interactions.options.dateFormat"].value == "dd.MM"
    assert (leaves["train.lr"].value, leaves["train.lr"].origin) == (0.002, "--set train.lr")
    assert load(conf, ["train.lr=1e-3"], told).train.lr == 0.001


@pytest.mark.parametrize("text", ["{}", "[1]", "train.lr=1"])
def test_overrides_handed_on_in_another_form_are_refused(conf: Path, text: str) -> None:
    assert error_of(conf, environ={"DIG_SET": text}).startswith("environment DIG_SET: expected a JSON list")


def test_a_digest_changes_with_its_sections_alone(conf: Path) -> None:
    before, after = load(conf, environ={}), load(conf, ["train.lr=0.1"], {})
    assert before.digest("train") != after.digest("train")
    assert before.digest("dataset", "model") == after.digest("dataset", "model")


LATER = ("dataset.last_date=2030-12-31", "dataset.default_date=2030-12-31", "dataset.acceptance_from=2030-12-01")


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("later", LATER[:1] + LATER[2:])
def test_dates_after_the_first_decide_no_rows(conf: Path, raw: bool, later: str) -> None:
    before = load(conf, environ={}).dataset
    assert load(conf, [later], {}).dataset.rows_digest(raw=raw) == before.rows_digest(raw=raw)
    assert load(conf, LATER, {}).dataset.rows_digest(raw=raw) == before.rows_digest(raw=raw)


@pytest.mark.parametrize(
    "other",
    [
        "dataset.sampling.exposed_negative_rate=0.5",
        "dataset.sampling.seed=1",
        "dataset.u2i.windows=[7, 31]",
        "dataset.history.days=9",
        "dataset.catalogue.min_events=9",
        "dataset.sample_users=0.5",
        "dataset.first_date=2000-01-01",
        "dataset.source.utc_offset_hours=1",
    ],
)
def test_settings_of_features_decide_rows(conf: Path, other: str) -> None:
    assert load(conf, [other], {}).dataset.rows_digest() != load(conf, environ={}).dataset.rows_digest()


def test_where_raw_files_lie_decides_no_rows_but_which_columns_they_have_does() -> None:
    def digests(*sets: str) -> set[str]:
        dataset = load(CONF_DIR / "local.yaml", sets, {}).dataset
        return {dataset.rows_digest(), dataset.rows_digest(raw=True)}

    assert digests("dataset.source.path=/elsewhere") == digests()
    assert not digests("dataset.source.utc_offset_hours=-4") & digests()


def test_places_lie_under_home_unless_said_otherwise(conf: Path, tmp_path: Path) -> None:
    paths = load(conf, [f"paths.index={tmp_path}/elsewhere"], {}).paths
    assert paths.at("lake") == "/tmp/shop/lake"
    assert paths.at("index") == f"{tmp_path}/elsewhere"
    assert load(conf, ["paths.home=s3://bucket/dig/"], {}).paths.at("lake") == "s3://bucket/dig/lake"


def test_a_run_outside_the_data_set_is_refused(conf: Path) -> None:
    config = load(conf, environ={})
    with pytest.raises(ConfigError, match="date 2021-01-01 is outside data set 'shop', whose days run from 2020-01-01 to 2020-12-31"):
        config.run_window(date(2021, 1, 1))


def test_a_run_too_early_to_train_names_the_first_date_possible(conf: Path) -> None:
    config = load(conf, environ={})
    with pytest.raises(ConfigError, match="the earliest date possible is 2020-01-1") as caught:
        config.run_window(date(2020, 1, 5))
    earliest = date.fromisoformat(str(caught.value).rsplit(" ", 1)[1])
    assert config.run_window(earliest).fit_last == config.run_window(earliest).train_first
    with pytest.raises(ConfigError):
        config.run_window(date.fromordinal(earliest.toordinal() - 1))


def test_popularity_as_an_item_field_decides_no_rows_but_what_a_model_reads(conf: Path) -> None:
    before, after = (load(conf, sets, {}).dataset for sets in ([], ["dataset.item_popularity=[30]"]))
    assert after.rows_digest() == before.rows_digest()
    one, other = before.spec(), after.spec()
    assert other.digest != one.digest and other.lake_digest == one.lake_digest == one.digest
    assert [f.column for f in other.item_fields if f.is_number] == ["pop_30"]


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["dataset.item_popularity=[8]"], r"item_popularity: windows among u2i.windows \[7, 30, 90\] expected, found 8"),
        (["dataset.item_popularity=[7, 7]"], "item_popularity: each name once expected, found 7"),
        (['dataset.item_fields=[{"name": "pop_7", "kind": "popularity"}]'], "popularity is not a declared field"),
        (['dataset.item_fields=[{"name": "pop_7"}]', "dataset.item_popularity=[7]"], "each name once expected, found pop_7"),
    ],
)
def test_popularity_that_cannot_be_is_refused(sets: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(CONF_DIR / "local.yaml", sets, {})
