"""Registry, registration and the gate's verdict against a real MLflow store (SQLite in a temporary folder)."""

from __future__ import annotations

import shutil
from datetime import date
from pathlib import Path

import evaluation_world as ew
import pandas as pd
import pytest

from dig_models.bundle import load_bundle
from jobs import gate, registry, runs
from jobs.entry import JobError, ServiceAway
from jobs.evaluate import evaluate
from jobs.register import register

pytestmark = pytest.mark.slow
LOOSE = ("gate.min_auc=0", "gate.calibration=[0,1000]", "gate.min_recall_over_popularity=0", "gate.max_collision_rate=1")
LOOSER = (
    *LOOSE,
    *("gate.min_new_recall_over_popularity=0", "gate.min_codes_used=0"),
    *("gate.max_auc_loss=1", "gate.max_recall_loss=1", "gate.max_churn=1"),
)
NO_CHURN = {"items": 80, "rate": 0.0, "first": [0.0, 0.0, 0.0], "unaligned": None}
TRAIN = {"steps": 1, "examples": 1, "ancestor": None, "seconds": 1.0, "peak_rss_bytes": 1, "inputs": {}}
CURVES = {"curves": {"steps": [{"step": 1, "rank": 0.5}], "epochs": [{"epoch": 0, "rank_exposed_auc": 0.7}]}}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A world with one trained, evaluated bundle and an empty registry; copied by each test, so that none sees another's versions."""
    home = tmp_path_factory.mktemp("registry")
    world = ew.build(home)
    ew.train(world, steps=9, lineage="a" * 64)
    runs.save(world.config, ew.DAY, "train", TRAIN | CURVES)
    runs.save(world.config, ew.DAY, "evaluate", evaluate(world.config, ew.DAY))
    return home


@pytest.fixture
def config(made, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(made, home)
    return ew.settings(home, *LOOSER)


def enrol(config, day=ew.DAY):
    """Register and keep register.json, as the job's main does."""
    ref, new = register(config, day)
    runs.save(config, day, "register", {"name": ref.name, "version": ref.version})
    return ref, new


def retrained(config, day, lineage):
    """The same network as another day's training, evaluated again."""
    world_path = Path(config.paths.at("checkpoints"))
    target = world_path / day.isoformat() / "bundle"
    if day != ew.DAY:
        shutil.copytree(world_path / ew.DAY.isoformat() / "bundle", target)
        runs.save(config, day, "train", TRAIN | CURVES)
    settings = target / "model.json"
    old = load_bundle(target).info["lineage"]
    settings.write_text(settings.read_text().replace(old, lineage))
    kept = runs.read(config, ew.DAY, "evaluate")
    champion = registry.find(config, registry.CHAMPION)
    compared = None
    if champion:
        compared = {
            "version": champion.version,
            "date": champion.date.isoformat(),
            "ranking": kept["ranking"],
            "retrieval": kept["retrieval"],
        }
    runs.save(
        config,
        day,
        "evaluate",
        kept | {"lineage": lineage, "date": day.isoformat(), "champion": compared, "churn": NO_CHURN if champion else None},
    )


def crown(config, version, day):
    """What a promotion leaves in the registry."""
    registry.set_alias(config, registry.CHAMPION, version)
    registry.tag(config, version, registry.PROMOTED_ON, day.isoformat())


def aliases(config):
    return {name: ref.version for name in ("challenger", "champion", "previous") if (ref := registry.find(config, name))}


def test_an_empty_registry_has_no_champion_and_no_ancestor(tmp_path):
    config = ew.settings(tmp_path / "not" / "there" / "yet")
    assert registry.find(config, "champion") is None
    assert registry.ancestor(config, ew.DAY) is None
    assert registry.versions(config) == []
    assert (tmp_path / "not" / "there" / "yet" / "mlflow" / "mlflow.db").is_file()


def test_a_registered_model_predicts_from_raw_values(config):
    import mlflow

    ref, new = enrol(config)
    assert new
    assert ref.version == "1"
    assert ref.tags["lineage"] == "a" * 64
    assert ref.tags["train_window"] == "2017-09-28..2017-11-08"
    assert {"code", "feature_spec", "dataset", "eval_window"} <= set(ref.tags)
    bundle = load_bundle(registry.fetch(config, ref))
    mlflow.set_tracking_uri(config.tracking_uri())
    model = mlflow.pyfunc.load_model(f"models:/{ref.name}@challenger")
    sample = model.input_example if isinstance(model.input_example, pd.DataFrame) else pd.DataFrame(model.input_example)
    got = model.predict(sample)
    assert got["probability"].between(0, 1).all()
    assert got["sid"].tolist() == ["-".join(map(str, bundle.codes_NL[row])) for row in (1, 2)]
    stranger = sample.assign(u_age=None, c_store="never seen", item_id="no such item")
    assert model.predict(stranger)["sid"].tolist() == ["", ""]
    shown = {f.path for f in registry.client(config).list_artifacts(ref.run_id)}
    assert {"model_card.md", "plots", "lineage.json", "evaluate.json"} <= shown


def test_the_same_lineage_registered_again_is_the_same_version(config):
    first, _ = enrol(config)
    again, new = enrol(config)
    assert (again.version, new) == (first.version, False)
    assert len(registry.versions(config)) == 1


def test_a_model_trained_again_must_be_evaluated_again(config):
    runs.save(config, ew.DAY, "evaluate", runs.read(config, ew.DAY, "evaluate") | {"lineage": "b" * 64})
    with pytest.raises(JobError, match=r"jobs\.evaluate --date 2017-11-15"):
        register(config, ew.DAY)


def test_a_first_model_that_passes_is_judged_by_absolute_limits_and_nothing_moves(config):
    enrol(config)
    record = gate.verdict(config, ew.DAY)
    assert (record["outcome"], record["passed"], record["compared"]) == ("passed", True, False)
    assert record == runs.read(config, ew.DAY, "gate")
    assert aliases(config) == {"challenger": "1"}
    assert registry.get(config, "1").tags["gate"] == "passed"
    assert "promoted_on" not in registry.get(config, "1").tags


def test_a_champion_judged_again_stays_what_it_is(config):
    ref, _ = enrol(config)
    gate.verdict(config, ew.DAY)
    crown(config, ref.version, ew.DAY)
    assert gate.verdict(config, ew.DAY)["outcome"] == "champion"
    assert registry.get(config, ref.version).tags["gate"] == "passed"


def test_the_next_model_is_compared_with_the_champion_and_ancestors_follow_the_date(config):
    enrol(config)
    crown(config, "1", ew.DAY)
    later = date(2017, 11, 16)
    retrained(config, later, "b" * 64)
    enrol(config, later)
    assert gate.verdict(config, later)["compared"]
    assert registry.ancestor(config, ew.DAY) is None
    assert registry.ancestor(config, later).version == "1"
    crown(config, "2", later)
    assert registry.ancestor(config, date(2017, 11, 20)).version == "2"
    registry.tag(config, "2", registry.WITHDRAWN, ew.DAY.isoformat())
    assert registry.ancestor(config, date(2017, 11, 20)).version == "1"


def test_a_failed_gate_names_figure_and_limit_and_moves_nothing(config):
    enrol(config)
    crown(config, "1", ew.DAY)
    later = date(2017, 11, 16)
    retrained(config, later, "b" * 64)
    enrol(config, later)
    strict = config.model_copy(update={"gate": config.gate.model_copy(update={"max_collision_rate": 0.0001, "min_items": 81})})
    with pytest.raises(JobError, match=r"SID collision rate is 0\.\d+, expected at most 0\.0001 .*items in the catalogue is 80"):
        gate.verdict(strict, later)
    assert aliases(config) == {"challenger": "2", "champion": "1"}
    record = runs.read(config, later, "gate")
    assert not record["passed"]
    assert [rule["key"] for rule in record["rules"] if not rule["passed"]] == ["max_collision_rate", "min_items"]
    assert registry.get(config, "2").tags["gate"] == "refused"
    assert gate.verdict(config, later)["passed"], "another limit, another verdict"
    assert registry.get(config, "2").tags["gate"] == "passed"


def test_a_first_model_that_fails_leaves_no_champion(config):
    enrol(config)
    strict = config.model_copy(update={"gate": config.gate.model_copy(update={"min_auc": 1.01})})
    with pytest.raises(JobError, match="still no champion"):
        gate.verdict(strict, ew.DAY)
    assert aliases(config) == {"challenger": "1"}


def test_an_earlier_date_does_not_follow_a_later_champion_unless_asked(config):
    later = date(2017, 11, 16)
    retrained(config, later, "b" * 64)
    enrol(config, later)
    crown(config, "1", later)
    retrained(config, ew.DAY, "c" * 64)
    enrol(config)
    with pytest.raises(JobError, match="--allow-older"):
        gate.verdict(config, ew.DAY)
    assert gate.verdict(config, ew.DAY, allow_older=True)["passed"]


def test_figures_compared_with_another_champion_are_refused(config):
    enrol(config)
    crown(config, "1", ew.DAY)
    later = date(2017, 11, 16)
    retrained(config, later, "b" * 64)
    stale = runs.read(config, later, "evaluate") | {"champion": None, "churn": None}
    runs.save(config, later, "evaluate", stale)
    enrol(config, later)
    with pytest.raises(JobError, match=r"champion is version 1.*compares with none.*jobs\.evaluate"):
        gate.verdict(config, later)
    assert aliases(config)["champion"] == "1"


def test_aliases_are_lower_case(config):
    with pytest.raises(ValueError, match="lower case"):
        registry.set_alias(config, "Champion", "1")


def test_a_server_that_is_not_there_can_be_tried_again(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = ew.settings(tmp_path, "mlflow.tracking_uri=http://127.0.0.1:9")
    with pytest.raises(ServiceAway, match=r"http://127\.0\.0\.1:9: registry does not answer"):
        registry.find(away, registry.CHAMPION)


def test_a_version_that_is_not_there_is_named(config):
    enrol(config)
    with pytest.raises(JobError, match="no version '9'"):
        registry.get(config, "9")
    with pytest.raises(JobError, match=r"jobs\.register"):
        gate.verdict(config, date(2017, 11, 20))
