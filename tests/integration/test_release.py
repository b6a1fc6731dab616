"""From a trained model to the report through the jobs' own command lines: evaluate, register, gate, index, promote, summary, report."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from dig_models.features import hash_id
from jobs import evaluate, gate, index, promote, promotion, promotion_log, register, registry, report, runs, summary
from jobs.config import CONF_DIR
from jobs.entry import run
from tests.jobs import evaluation_world as ew

pytestmark = pytest.mark.slow
STEPS = {
    **{"evaluate": evaluate, "register": register, "gate": gate},
    **{"index": index, "promote": promote, "summary": summary, "report": report},
}
CURVES = {"curves": {"steps": [{"step": 1, "rank": 0.5}], "epochs": [{"epoch": 0, "rank_exposed_auc": 0.7}]}}
TRAIN = {"steps": 9, "examples": 999, "ancestor": None, "examples_per_s": 9.0, "wait_share": 0.1, "seconds": 3.0, "peak_rss_bytes": 10**9}
GATE = {
    "min_auc": 0,
    "calibration": [0, 1000],
    "min_recall_over_popularity": 0,
    "min_new_recall_over_popularity": 0,
    "max_collision_rate": 1,
    "min_codes_used": 0,
    "min_items": 10,
}


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A world on which every step ran through its command line; the settings come from a file, as for a user."""
    home = tmp_path_factory.mktemp("release")
    world = ew.build(home / "home")
    ew.train(world, steps=12, lineage="a" * 64)
    ew.publishable(world)
    runs.save(world.config, ew.DAY, "train", TRAIN | CURVES)
    place = yaml.safe_load((CONF_DIR / "local.yaml").read_text())
    place |= {"paths": {"home": str(home / "home")}, "model": ew.SMALL, "gate": GATE, "evaluate": {"bootstrap": 20}}
    settings = home / "place.yaml"
    settings.write_text(yaml.safe_dump(place))
    return world, settings


def step(name, settings, *more):
    module = STEPS[name]
    return run(
        name, module.main, ["--config", str(settings), "--date", ew.DAY.isoformat(), *more], options=getattr(module, "_options", None)
    )


def test_every_step_runs_and_a_second_time_gives_the_same_version_and_generation(released):
    world, settings = released
    kept = []
    for _ in range(2):
        assert [step(name, settings) for name in STEPS] == [0] * len(STEPS)
        kept.append(runs.read(world.config, ew.DAY, "summary"))
    assert kept[0] == kept[1]
    assert kept[0]["model"] == {"name": "dig", "version": "1", "alias": "champion"}
    assert kept[0]["index"]["items"] == ew.ITEMS
    latest = runs.run_dir(world.config, ew.DAY).parent / "latest"
    assert json.loads((latest / "summary.json").read_text()) == kept[0]
    html = (latest / "report.html").read_text()
    shown = re.findall(r">User (user-\d+)<", html)
    assert len(shown) == 3
    assert shown == sorted(shown, key=hash_id)
    assert "Product" in html
    assert "https:" not in html


def test_the_champion_judged_and_promoted_again_stays_and_nothing_moves(released):
    world, settings = released
    champion, log = registry.find(world.config, registry.CHAMPION), promotion_log.entries(index.index_root(world.config))
    assert step("gate", settings, "--set", "gate.min_auc=1.01") == 0
    assert runs.read(world.config, ew.DAY, "gate")["outcome"] == "champion"
    assert step("promote", settings) == 0
    assert registry.find(world.config, registry.CHAMPION) == champion
    assert promotion_log.entries(index.index_root(world.config)) == log
    assert [entry.reason for entry in log] == ["passed the gate"]


def test_a_version_can_be_promoted_by_number_and_by_generation_but_not_without_a_reason(released, caplog):
    world, settings = released
    ways = (["--version", "1"], ["--generation", promotion.in_force(world.config).generation])
    for way in ways:
        assert run("promote", promote.main, ["--config", str(settings), *way], dated=False, options=promote._options) == 2
        assert "--reason is required" in caplog.text
        more = ["--reason", "because", "--who", "ann"]
        assert run("promote", promote.main, ["--config", str(settings), *way, *more], dated=False, options=promote._options) == 0
    assert run("promote", promote.main, ["--config", str(settings), "--rollback", *more], dated=False, options=promote._options) == 2
    assert "nothing to roll back to" in caplog.text
    assert run("promote", promote.main, ["--config", str(settings), "--version", "7", *more], dated=False, options=promote._options) == 2
    assert "has no version '7'" in caplog.text
    assert run("promote", promote.main, ["--config", str(settings)], dated=False, options=promote._options) == 2
    assert "give just one of --date D, --version N, --generation ID, --rollback" in caplog.text


@pytest.mark.parametrize("name", ["evaluate", "register", "gate", "promote", "summary", "report"])
def test_a_step_out_of_turn_says_what_to_run_first(name, tmp_path, caplog):
    settings = tmp_path / "place.yaml"
    settings.write_text(yaml.safe_dump({"dataset": {"name": "complete_journey"}, "paths": {"home": str(tmp_path / "home")}}))
    assert step(name, settings) == 2
    assert re.search(r"run python -m jobs\.\w+ --date 2017-11-15", caplog.text)
