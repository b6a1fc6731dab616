"""The churn benchmark on a small world, trained by the real jobs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from benchmarks import churn
from dig_models.train.warm import between
from jobs.config import ConfigError
from tests.jobs import train_world as tw

PROJECT = Path(__file__).resolve().parents[2]
DAYS = [tw.before(1), tw.DAY]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("churn")
    tw.build(home, days=tuple(DAYS))
    return home


def sets(home: Path) -> list[str]:
    small = [f"model.{k}={v}" for k, v in tw.ew.SMALL.items()]
    return [f"paths.home={home}", "evaluate.bootstrap=5", *small, *tw.SETS]


def call(home: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.churn", "--from", str(DAYS[0]), "--results", str(home / "results"), *options]
    command += [part for one in sets(home) for part in ("--set", one)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DIG_")}
    return subprocess.run(command, cwd=PROJECT, env=kept | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_four_settings_and_a_moving_one_are_compared_and_a_second_run_trains_nothing(home: Path) -> None:
    done = call(home, "--days", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((home / "results" / "churn.json").read_text())
    assert (home / "results" / "churn.png").stat().st_size > 10_000
    assert found["dates"] == [str(day) for day in DAYS]
    assert set(found["churn"]) == {f"{chain}, {kind}" for chain in ("cold", "keep", "move") for kind in ("aligned", "unaligned")}
    rate = found["mean_rate"]
    assert rate["keep, aligned"] == rate["keep, unaligned"] == 0.0
    assert rate["cold, aligned"] > 0 and rate["move, aligned"] > 0
    for chain in ("cold", "move"):
        first = [found["churn"][f"{chain}, {kind}"][0]["first"][0] for kind in ("aligned", "unaligned")]
        assert first[0] <= first[1], "the first level is aligned as well as it can be"
    for chain, entries in found["quality"].items():
        assert [entry["date"] for entry in entries] == found["dates"], chain
        assert all(0.3 < entry["auc"] < 1 and 0.3 < entry["recall_path_auc"] < 1 for entry in entries)
    first = [entries[0]["auc"] for entries in found["quality"].values()]
    assert len(set(first)) == 1, "all chains begin with one model"

    config = churn.load(None, sets(home))
    chain = churn.Chain.of("cold", config, DAYS[0], None, sets(home))
    same = between(chain.published(DAYS[0]), chain.published(DAYS[1]))
    assert same is not None and same.rate == found["churn"]["cold, aligned"][0]["rate"]

    folders = home / "benchmarks" / "churn" / str(DAYS[0])
    trained = list(folders.glob(f"*/checkpoints/{DAYS[1]}/bundle/model.safetensors"))
    written = {path: path.stat().st_mtime_ns for path in trained}
    assert len(written) == 3
    again = call(home, "--days", "2")
    assert again.returncode == 0 and again.stderr.count("trained already") == 4
    assert {path: path.stat().st_mtime_ns for path in trained} == written
    assert json.loads((home / "results" / "churn.json").read_text())["churn"] == found["churn"]


def test_one_day_and_dates_of_the_acceptance_period_are_refused(tmp_path: Path) -> None:
    config = tw.settings(tmp_path, "dataset.acceptance_from=2017-12-02")
    with pytest.raises(ConfigError, match="at least two days"):
        churn.consecutive(config, date(2017, 11, 15), 1, acceptance=False)
    with pytest.raises(ConfigError, match=r"2017-12-02: its evaluation days.*--acceptance"):
        churn.consecutive(config, date(2017, 12, 1), 3, acceptance=False)
    assert churn.consecutive(config, date(2017, 12, 1), 3, acceptance=True)[-1] == date(2017, 12, 3)


def test_the_figures_are_drawn() -> None:
    entries = [{"date": "2017-11-16", "rate": 0.5, "first": [0.25, 0.25]}]
    quality = [{"date": "2017-11-15", "auc": 0.8, "recall_path_auc": 0.7}]
    settings = [f"{chain}, {kind}" for chain in churn.CHAINS for kind in ("aligned", "unaligned")]
    drawn = churn.plot({"churn": dict.fromkeys(settings, entries), "quality": dict.fromkeys(churn.CHAINS, quality), "limit": churn.LIMIT})
    widths = [bar.get_width() for bar in drawn.get_axes()[0].patches]
    assert np.allclose(widths, 25.0) and len(widths) == 2 * len(settings)
