"""The ablation as a program, and the lake that it reads: from nothing, again, a quick one, and what ends it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import evaluation_world as ew
import pytest
import torch
from tiny_shop import write_tiny_place

from benchmarks import ablation
from benchmarks.ablation import QUICK
from benchmarks.ablation_lake import quick_lake
from benchmarks.ablation_rows import BASE, DIG, GRID, QUICK_ROWS, ROWS
from benchmarks.ablation_runs import Place, Run, possible
from benchmarks.judging import Part, ablation_home
from jobs.config import Config, load
from jobs.entry import JobError
from jobs.files import replace_text
from jobs.lake import MARKER, Lake, MissingPartition
from jobs.runs import write_json
from jobs.train_inputs import NoAffinity
from tests.jobs import train_world as tw
from tests.jobs.test_ablation_benchmark import upset
from tests.jobs.test_ablation_verdicts import FIGURES, row_of


def test_a_lake_that_was_built_anew_with_other_rows_is_not_answered_for_by_old_runs(tmp_path: Path) -> None:
    config = tw.build(tmp_path)
    sets = (f"paths.home={tmp_path}", *(f"model.{k}={v}" for k, v in ew.SMALL.items()), *tw.SETS)
    window, lake = config.run_window(tw.DAY), Lake(config.paths.at("lake"))

    def key(part: Part = "evaluation") -> str:
        place = Place(config=config, day=tw.DAY, settings=None, sets=sets, home=tmp_path / "ablation", part=part)
        return Run(place=place, row=ROWS["dig"], seed=1).key

    first, other = key(), key("validation")
    (marker,) = lake.require("examples", [window.fit_last])
    replace_text(lake.day_dir("examples", window.fit_last) / MARKER, replace(marker, code="other code").text())
    assert key() == first, "the same rows, made by other code"
    upset(config, [window.eval_last])
    second = key()
    assert second != first and key("validation") == other, "evaluation days are read where they are judged on"
    upset(config, [window.fit_last])
    assert key() not in (first, second) and key("validation") != other
    shutil.rmtree(lake.day_dir("item_features", window.train_last))
    with pytest.raises(MissingPartition, match=r"table item_features: 1 of .* days are missing"):
        key()


WITH_AFFINITY = ("affinity", "affinity_popular")


def test_movielens_has_every_row_but_those_with_the_affinity_whose_days_its_window_lacks(tmp_path: Path) -> None:
    settings, sets = Path("conf/movielens.yaml"), (f"paths.home={tmp_path}",)
    config = load(settings, sets)
    place = Place(config=config, day=config.dataset.default_date, settings=settings, sets=sets, home=tmp_path / "ablation")
    kept, left_out = possible(place, [ROWS[name] for name in WITH_AFFINITY])
    assert not kept and tuple(left_out) == WITH_AFFINITY
    assert all("1 days of events before the first example, 1997-09-21, at least 28 expected" in why for why in left_out.values())
    for row in (row for row in ROWS.values() if row.name not in WITH_AFFINITY):
        with pytest.raises(MissingPartition, match="table examples"):  # nothing but the lake is in its way
            possible(place, [row])
    on = replace(place, sets=(*sets, "model.affinity.enabled=true"))
    with pytest.raises(NoAffinity, match="1 days of events"):  # no row would have anything to be compared with
        possible(on, list(ROWS.values()))


def short_log(home: Path) -> list[str]:
    """The lake of ``train_world``, of a data set that begins on the eve of the first example; returns its settings."""
    first = tw.build(home).run_window(tw.DAY).train_first - timedelta(days=1)
    small = [f"model.{k}={v}" for k, v in ew.SMALL.items()]
    sets = [f"paths.home={home}", "evaluate.bootstrap=20", *small, *tw.SETS, f"dataset.first_date={first}"]
    config = load(sets=sets)
    for table in ("examples", "item_features", "cross_arrays"):
        tw.stamp(Lake(config.paths.at("lake")), table, config.dataset.rows_digest())
    return sets


def main_with(sets: Sequence[str], *options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program with one seed, in this process, whose number of threads is left as it was."""
    command = ["ablation", "--date", str(tw.DAY), "--seeds", "1", *options, *(part for one in sets for part in ("--set", one))]
    monkeypatch.setattr(sys, "argv", command)
    threads = torch.get_num_threads()
    try:
        ablation.main()
    finally:
        torch.set_num_threads(threads)


def keep_runs(config: Config, sets: Sequence[str], names: Sequence[str]) -> None:
    """Leave what finished runs of rows leave."""
    (record,) = row_of(0.0, (1.0,), [1.0], 0.1, dict.fromkeys(("popularity", "own_frequency"), FIGURES))
    record |= {"rows": 7, "users": 5, "requests": 3, "code": "one"}
    draws = f"evaluate.bootstrap={ablation.LEAST_DRAWS}"
    place = Place(config=config, day=tw.DAY, settings=None, sets=(draws, *sets), home=ablation_home(config, tw.DAY))
    for name in names:
        file = Run(place=place, row=ROWS[name], seed=1).file
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, record)


def test_all_rows_are_those_that_the_data_set_can_have_and_one_that_is_named_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sets, results = short_log(tmp_path), tmp_path / "results"
    there = [BASE, DIG, "popular_negatives"]
    monkeypatch.setattr(ablation, "ROWS", {name: ROWS[name] for name in (*there, *WITH_AFFINITY)})  # as many as a fast test can draw
    keep_runs(load(sets=sets), sets, there)
    main_with(sets, "--all", "--results", str(results), monkeypatch=monkeypatch)
    shown, why = capsys.readouterr(), "model.affinity: 1 days of events before the first example"
    found = json.loads((results / "ablation.json").read_text())
    assert set(found["rows"]) == set(there) and shown.err.count("there already") == len(there)
    assert set(found["left_out"]) == set(WITH_AFFINITY) and all(of.startswith(why) for of in found["left_out"].values())
    assert f"row affinity left out: {why}" in shown.err and f"row affinity_popular left out: {why}" in shown.err
    assert "NOTE: left out, for the data set cannot have them: affinity, affinity_popular\n" in shown.out

    main_with(sets, "--rows", "popular_negatives", "--results", str(results), monkeypatch=monkeypatch)
    assert json.loads((results / "ablation.json").read_text())["left_out"] == {} and "left out" not in "".join(capsys.readouterr())
    with pytest.raises(SystemExit) as ended:
        main_with(sets, "--rows", "affinity", "--results", str(results), monkeypatch=monkeypatch)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith(why) and "left out" not in said


def test_a_quick_run_does_the_rows_of_the_papers_grid() -> None:
    named = {"base", "cut_off", "no_training_u2t", "no_inference_u2t", "coupled_ste", "rqvae", "rkmeans", "oracle_u2t"}
    compared = {DIG, "mlp_u2t"}  # with these, by the model of DIG
    assert set(QUICK_ROWS) == named | compared and QUICK_ROWS[:2] == (BASE, DIG)
    assert len({ROWS[name].model for name in QUICK_ROWS}) == 7, "trainings"
    assert all(ROWS[name] in GRID for name in QUICK_ROWS)


def test_a_quick_run_has_a_lake_of_its_own_where_the_common_one_is_not_whole(tmp_path: Path) -> None:
    home = f"paths.home={tmp_path}"
    whole, quick = load(sets=[home]), load(sets=[home, *QUICK])
    day, own = whole.dataset.default_date, tmp_path / "benchmarks" / "ablation-quick" / "lake"
    assert whole.run_window(day).train_first < quick.run_window(day).train_first < quick.run_window(day).validation_first
    assert quick_lake(whole, quick, day) == own
    Lake(whole.paths.at("lake")).claim("another")
    with pytest.raises(JobError, match="holds the data set another"):
        quick_lake(whole, quick, day)
    short = load(sets=[home, "window.train_days=4"])
    assert quick_lake(short, quick, day) == own, "a common lake that is whole, but for a shorter window, is not asked"


@pytest.mark.slow
def test_a_quick_run_from_nothing_and_one_on_the_lake_of_the_daily_run_have_the_same_figures(tmp_path: Path, tiny_data: Path) -> None:
    conf = write_tiny_place(tmp_path, tiny_data, window={"eval_days": 3, "train_days": 14, "validation_days": 2})
    common, own = tmp_path / "home" / "lake", tmp_path / "home" / "benchmarks" / "ablation-quick" / "lake"
    results, given = tmp_path / "results", ["--config", str(conf)]
    command = [sys.executable, "-m", "benchmarks.ablation", "--quick", "--features", "--rows", "dig", "--results", str(results), *given]

    def figures() -> tuple[dict[str, Any], str]:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows = json.loads((results / "ablation-quick-tiny.json").read_text())["rows"]
        figures = {name: {f: of for f, of in row["figures"].items() if not f.endswith("_new")} for name, row in rows.items()}
        return figures, done.stderr  # what is new to a user depends on how far back the arrays reach

    first, _ = figures()
    assert first["dig"]["recall@10_all"]["mean"] > 0 and not common.exists()
    assert len(Lake(str(own)).days("examples")) == 12, "no more than its window"
    again, said = figures()
    assert again == first and said.count("there already") == 2
    settings = load(conf)
    window = settings.run_window(settings.dataset.default_date)
    days = ["--from", str(window.train_first), "--to", str(window.run_date)]
    subprocess.run([sys.executable, "-m", "jobs.backfill", *days, *given], check=True)
    shutil.rmtree(own)
    on_common, _ = figures()
    assert on_common == first and not own.exists(), "the arrays of the whole window answer for the shorter one"
    assert len(Lake(str(common)).days("examples")) == 17


@pytest.mark.slow
def test_the_whole_thing_from_nothing_and_again(tmp_path: Path) -> None:
    tw.build(tmp_path)
    sets = [f"paths.home={tmp_path}", "evaluate.bootstrap=20", *(f"model.{k}={v}" for k, v in ew.SMALL.items()), *tw.SETS]
    command = [sys.executable, "-m", "benchmarks.ablation", "--date", str(tw.DAY), "--seeds", "1", "--results", str(tmp_path / "results")]
    command += ["--rows", "rqvae", "mlp_u2t", *(part for one in sets for part in ("--set", one))]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "two-stage: RQ-VAE SIDs" in first.stdout and "Base: the ranker alone" in first.stdout
    found = json.loads((tmp_path / "results" / "ablation.json").read_text())
    assert set(found["rows"]) == {"base", "dig", "rqvae", "mlp_u2t"} and found["ratios"]["rqvae"]
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert again.stdout == first.stdout and again.stderr.count("there already") == 4


@pytest.mark.slow
def test_what_the_lake_lacks_is_built_from_the_raw_tables_if_asked_for(tmp_path: Path, tiny_data: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.ablation", "--seeds", "1", "--rows", "dig", "--results", str(tmp_path / "results")]
    command += ["--config", str(write_tiny_place(tmp_path, tiny_data))]
    subprocess.run([*command, "--features"], check=True)
    found = json.loads((tmp_path / "results" / "ablation-tiny.json").read_text())
    assert set(found["rows"]) == {"base", "dig"} and found["judged"]["requests"] > 0
    again = subprocess.run([*command, "--features"], capture_output=True, text=True, check=True)
    assert "everything was up to date" in again.stderr and again.stderr.count("there already") == 2


@pytest.mark.slow
def test_features_that_cannot_be_built_end_the_run(tmp_path: Path, tiny_data: Path) -> None:
    conf = write_tiny_place(tmp_path, tiny_data)
    command = [sys.executable, "-m", "benchmarks.ablation", "--features", "--config", str(conf), "--results", str(tmp_path / "results")]
    ended = subprocess.run(
        [*command, "--set", f"dataset.source.users.path={tmp_path}/none.csv"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2 and "the features were not built" in ended.stderr and "none.csv" in ended.stderr
    assert "Traceback" not in ended.stderr and not (tmp_path / "results").exists()


@pytest.mark.slow
def test_a_training_that_fails_ends_the_run_with_the_place_of_its_log(tmp_path: Path) -> None:
    config = tw.build(tmp_path)
    window, lake = config.run_window(tw.DAY), Lake(config.paths.at("lake"))
    (broken,) = lake.folder("examples", window.fit_last).glob("*.parquet")
    broken.write_bytes(broken.read_bytes()[:-100])
    ended = ablation_of(tmp_path)
    assert ended.returncode == 2 and "its train.log under" in ended.stderr and "Traceback" not in ended.stderr
    (log,) = tmp_path.rglob("train.log")
    assert str(broken) in log.read_text()
    assert not list(tmp_path.rglob("runs/*.json")) and not (tmp_path / "results").exists()


def ablation_of(home: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The ablation of two rows with one seed on the lake of ``train_world``."""
    sets = [f"paths.home={home}", "evaluate.bootstrap=20", *(f"model.{k}={v}" for k, v in ew.SMALL.items()), *tw.SETS]
    command = [sys.executable, "-m", "benchmarks.ablation", "--date", str(tw.DAY), "--seeds", "1", "--results", str(home / "results")]
    command += ["--rows", "dig", *options, *(part for one in sets for part in ("--set", one))]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_lake_without_the_days_ends_the_run_before_a_training_starts(tmp_path: Path) -> None:
    ended = ablation_of(tmp_path)
    assert ended.returncode == 2 and "table examples: 8 of 8 days are missing" in ended.stderr and "--features" in ended.stderr
    assert "Traceback" not in ended.stderr and not list(tmp_path.rglob("train.log"))
