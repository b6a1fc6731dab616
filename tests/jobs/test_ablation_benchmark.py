"""The ablation: what its figures are, what is paired with what, what is done once, and a small one from nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import evaluation_world as ew
import numpy as np
import pytest
from tiny_shop import write_tiny_place

from benchmarks import ablation, ablation_runs, ablation_table
from benchmarks.ablation_rows import BASE, DIG, GRID, ROWS, Row, chosen
from benchmarks.ablation_runs import Place, Run, judge, runs_of
from dig_models.bundle import Bundle, load_bundle
from dig_models.evaluate import ranking
from dig_models.evaluate.scoring import exposed_rows, rank_rows
from dig_models.quantize.known import read_sids
from jobs import evaluate as evaluate_job
from jobs.dates import days_between
from tests.jobs import train_world as tw

NAMES = ("dig", "oracle_u2t", "mlp_u2t", "no_inference_u2t", "resolved")


def sets_of(home: Path) -> tuple[str, ...]:
    small = [f"model.{k}={v}" for k, v in ew.SMALL.items()]
    return (f"paths.home={home}", "evaluate.bootstrap=20", *small, "window.train_days=7", "window.validation_days=2")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> ew.World:
    home = tmp_path_factory.mktemp("ablation")
    made = ew.build(home, "window.train_days=7", "window.validation_days=2")
    ew.train(made, seed=made.config.train.seed)
    return made


@pytest.fixture(scope="module")
def place(world: ew.World) -> Place:
    home = Path(world.config.paths.home)
    return Place(config=world.config, day=ew.DAY, settings=None, sets=sets_of(home), home=home / "ablation")


@pytest.fixture(scope="module")
def bundle(world: ew.World) -> Bundle:
    return load_bundle(f"{world.config.paths.at('checkpoints')}/{ew.DAY}/bundle")


@pytest.fixture(scope="module")
def judged(place: Place, bundle: Bundle) -> dict[str, dict]:
    return {name: judge(place.config, ew.DAY, bundle, ROWS[name]) for name in NAMES}


def test_figures_are_those_of_the_daily_evaluation(world: ew.World, place: Place, judged: dict[str, dict]) -> None:
    daily = evaluate_job.evaluate(world.config, ew.DAY)
    figures = judged["dig"]["figures"]
    assert figures["rank_auc"] == pytest.approx(daily["ranking"]["auc"])
    assert figures["rank_gauc"] == pytest.approx(daily["ranking"]["gauc"])
    assert figures["path_auc"] == pytest.approx(daily["ranking"]["recall_path"]["exact"]["auc"])
    assert judged["mlp_u2t"]["figures"]["path_auc"] == pytest.approx(daily["ranking"]["recall_path"]["mlp"]["auc"])
    for variant in ("all", "new"):
        for name in ("recall@10", "ndcg@10"):
            assert figures[f"{name}_{variant}"] == pytest.approx(daily["retrieval"][variant]["dig"][name])
            assert figures[f"path_{name}_{variant}"] == pytest.approx(daily["retrieval"][variant]["dig_path"][name])
            for method in ("popularity", "own_frequency"):
                found = judged["dig"]["references"][method]["figures"][f"{name}_{variant}"]
                assert found == pytest.approx(daily["retrieval"][variant][method][name])


def test_gauc_of_a_replicate_is_that_of_its_users_taken_as_often_as_drawn(
    world: ew.World, place: Place, bundle: Bundle, judged: dict[str, dict]
) -> None:
    window = world.config.run_window(ew.DAY)
    requests = world.requests(days_between(window.eval_first, window.eval_last))
    rows, score = exposed_rows(requests), rank_rows(bundle.model, requests, bundle.items)
    draws = evaluate_job.Draws.over(world.config, requests.user_B)
    user = draws.of(rows.user_R)
    drawn = draws.draw_SU[3].astype(int)
    again = np.concatenate([np.flatnonzero(user == u) for u in range(len(drawn)) for _ in range(drawn[u])])
    owner = np.concatenate([np.full((user == u).sum(), 1000 * u + copy) for u in range(len(drawn)) for copy in range(drawn[u])])
    slow = ranking.gauc(score[again], rows.label_R[again], owner, rows.weight_R[again])
    assert judged["dig"]["samples"]["rank_gauc"][3] == pytest.approx(slow)


def test_rows_of_one_model_rank_alike_and_differ_only_in_what_they_change(judged: dict[str, dict]) -> None:
    assert judged["oracle_u2t"]["figures"] == judged["dig"]["figures"], "exact u2t is the default"
    for name in NAMES:
        assert judged[name]["figures"]["rank_auc"] == judged["dig"]["figures"]["rank_auc"]
    paths = {name: judged[name]["figures"]["path_auc"] for name in ("dig", "mlp_u2t", "no_inference_u2t")}
    assert len(set(paths.values())) == 3
    assert judged["resolved"]["sid"]["collision_rate"] <= judged["dig"]["sid"]["collision_rate"]


def records(judged: dict[str, dict], shift: float = 0.0) -> list[dict]:
    """Two seeds, the second one's figures and samples higher by a constant."""
    one = {"seed": 1, "train": {"seconds": 10.0, "tokenizer_seconds": 0.0}, **judged}
    move = lambda of: {k: v + 0.1 if not isinstance(v, list) else [x + 0.1 for x in v] for k, v in of.items()}  # noqa: E731
    return [one, one | {"seed": 2, "figures": move(one["figures"]), "samples": move(one["samples"])}]


def test_the_table_averages_over_seeds_and_pairs_by_user(judged: dict[str, dict]) -> None:
    found = ablation_table.summary({"dig": records(judged["dig"]), "mlp_u2t": records(judged["mlp_u2t"])}, 0.95)
    auc = judged["dig"]["figures"]["path_auc"]
    shown = found["rows"]["dig"]["figures"]["path_auc"]
    assert shown["mean"] == pytest.approx(auc + 0.05) and shown["spread"] == pytest.approx(0.1 / 2**0.5)
    assert shown["ci"] == pytest.approx([x + 0.05 for x in np.quantile(judged["dig"]["samples"]["path_auc"], [0.025, 0.975])])
    gap = found["rows"]["mlp_u2t"]["differences"]["dig"]
    assert gap["rank_auc"] == {"mean": 0.0, "ci": [0.0, 0.0]}, "the same ranking, paired, differs by nothing"
    paired = np.array(judged["mlp_u2t"]["samples"]["path_auc"]) - np.array(judged["dig"]["samples"]["path_auc"])
    assert gap["path_auc"]["ci"] == pytest.approx(np.quantile(paired, [0.025, 0.975]).tolist())
    rows = [ROWS["dig"], ROWS["mlp_u2t"]]
    table = ablation_table.text(found, rows)
    assert "own most frequent" in table and table.count("MLP_u2t at inference") == 3
    assert len(ablation_table.plot(found, rows, "title").axes) == len(ablation_table.PLOTTED)


def test_a_figure_that_some_seed_has_not_is_left_out(judged: dict[str, dict]) -> None:
    broken = records(judged["dig"])
    broken[1] = broken[1] | {"figures": broken[1]["figures"] | {"recall@10_new": None}}
    found = ablation_table.summary({"dig": broken}, 0.95)
    assert "recall@10_new" not in found["rows"]["dig"]["figures"]
    assert "-" in ablation_table.text(found, [ROWS["dig"]])


def test_what_is_there_is_not_done_again_and_the_seed_the_date_and_every_setting_decide(
    place: Place, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trainings: list[str] = []

    def train(day: object, home: Path, settings: object, sets: list[str], log: object = None) -> Bundle:
        trainings.append(home.name)
        report = home / "checkpoints" / ew.DAY.isoformat() / "train.json"
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(json.dumps({"seconds": 1.0, "steps": 2, "examples": 3, "lineage": "l"}))
        return bundle

    monkeypatch.setattr(ablation_runs, "trained", train)
    rows = [ROWS["dig"], ROWS["oracle_u2t"], ROWS["mlp_u2t"]]
    written: list[int] = []
    for _ in range(2):
        found = ablation.run_all(runs_of(place, rows, [1, 2]), rows, lambda records: written.append(len(records["dig"])))
        assert [r["seed"] for r in found["mlp_u2t"]] == [1, 2]
    assert trainings == ["dig-1", "dig-1", "dig-2", "dig-2"], "once for dig and oracle, which mean the same, once for the other inference"
    assert written == [1, 2, 1, 2]
    said = capsys.readouterr().err
    assert "run 1/6  dig, seed 1: rank_auc 0." in said and "there already" in said and "min left" in said
    keys = {run.key for run in runs_of(place, GRID, [1, 2])}
    assert len(keys) == 2 * (len(GRID) - 1)
    other = Place(config=place.config, day=place.day, settings=None, sets=(*place.sets, "train.lr=0.5"), home=place.home)
    assert Run(place=other, row=ROWS["dig"], seed=1).key not in keys


def test_rows_are_chosen_by_name_with_what_they_are_compared_with() -> None:
    assert [row.name for row in chosen(["gumbel_sdud", "dig"])] == [BASE, DIG, "gumbel_sdud"]
    assert chosen([]) == list(GRID)
    with pytest.raises(ValueError, match=r"row 'nonsense': expected some of base, dig"):
        chosen(["nonsense"])


def test_every_row_has_settings_that_exist(tmp_path: Path) -> None:
    config = ew.settings(tmp_path)
    place = Place(config=config, day=ew.DAY, settings=None, sets=sets_of(tmp_path), home=tmp_path / "ablation")
    for row in ROWS.values():
        assert Run(place=place, row=row, seed=1).config.train.seed == 1


def test_runs_of_different_rows_are_not_put_into_one_table(place: Place, judged: dict[str, dict], tmp_path: Path) -> None:
    whole = [{**r, "code": "a"} for r in records(judged["dig"])]
    with pytest.raises(ValueError, match="judged on different rows"):
        ablation.report(place, [ROWS["dig"]], {"dig": [whole[0], whole[1] | {"rows": 7}]}, tmp_path, "x")
    table = ablation.report(place, [ROWS["dig"]], {"dig": [whole[0], whole[1] | {"code": "b"}]}, tmp_path, "x")
    assert "made by 2 versions of the code" in table and (tmp_path / "x.txt").read_text() == table
    assert {p.name for p in tmp_path.iterdir()} == {"x.json", "x.txt", "x.png"}


def test_sids_made_beforehand_come_from_the_items_of_the_window_for_every_item_known(tmp_path: Path) -> None:
    config = tw.build(tmp_path)
    sets = (f"paths.home={tmp_path}", *(f"model.{k}={v}" for k, v in ew.SMALL.items()), *tw.SETS)
    place = Place(config=config, day=tw.DAY, settings=None, sets=sets, home=tmp_path / "ablation")
    for name in ("rqvae", "rkmeans"):
        given, seconds = Run(place=place, row=ROWS[name], seed=1)._with_sids()
        path = Path(given[-1].removeprefix("train.given_sids="))
        assert len(read_sids(path, levels=3, codes=6)) == ew.ITEMS and seconds > 0
    plain = Run(place=place, row=Row(name="dig", label=""), seed=1)
    assert plain._with_sids() == (plain.sets, 0.0)


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
    found = json.loads((tmp_path / "results" / "ablation.json").read_text())
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
    command = [sys.executable, "-m", "benchmarks.ablation", "--date", str(tw.DAY), "--seeds", "1", "--results", str(tmp_path / "results")]
    ended = subprocess.run([*command, "--set", f"paths.home={tmp_path}"], capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and "its train.log under" in ended.stderr and "Traceback" not in ended.stderr
    (log,) = tmp_path.rglob("train.log")
    assert "table examples" in log.read_text()
    assert not list(tmp_path.rglob("runs/*.json")) and not (tmp_path / "results").exists()
