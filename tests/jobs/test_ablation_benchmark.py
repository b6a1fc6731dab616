"""The ablation: what its figures are, what is paired with what, what is done once, and a small one from nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args, get_origin

import evaluation_world as ew
import numpy as np
import pyarrow as pa
import pytest
from pydantic.fields import FieldInfo

from benchmarks import ablation, ablation_runs, ablation_samples, ablation_table, baselines
from benchmarks.ablation_rows import BASE, DIG, GRID, QUICK_ROWS, ROWS, TWO_STAGE, Row, chosen
from benchmarks.ablation_runs import Place, Run, judge, runs_of
from benchmarks.judging import Part
from dig_models.bundle import Bundle, load_bundle
from dig_models.config import LossWeights, ModelConfig
from dig_models.evaluate import ranking
from dig_models.evaluate.scoring import exposed_rows, rank_rows
from dig_models.quantize.known import KnownSids, read_sids
from dig_models.tokenizers.registry import KINDS
from dig_models.tokenizers.settings import WITHOUT_CONTENT
from jobs import evaluate as evaluate_job
from jobs.config import Config, ConfigError
from jobs.dates import days_between
from jobs.lake import Lake
from tests.jobs import train_world as tw

NAMES = ("dig", "oracle_u2t", "mlp_u2t", "no_inference_u2t", "sum_log", "resolved")


def sets_of(home: Path) -> tuple[str, ...]:
    small = [f"model.{k}={v}" for k, v in ew.SMALL.items()]
    return (f"paths.home={home}", "evaluate.bootstrap=20", *small, "window.train_days=7", "window.validation_days=2")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> ew.World:
    home = tmp_path_factory.mktemp("ablation")
    made = ew.build(home, "window.train_days=7", "window.validation_days=2")
    ew.train(made, seed=made.config.train.seed)
    lake = Lake(made.config.paths.at("lake"))  # what a training of this window would read
    for of in days_between(made.config.run_window(ew.DAY).train_first - timedelta(days=1), ew.DAY):
        ew.commit(lake, "item_features", of, made.table.append_column("ds", pa.array([of.isoformat()] * len(made.table))))
    for table in ("examples", "item_features", "cross_arrays"):
        tw.stamp(lake, table, made.config.dataset.rows_digest())
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


def test_on_validation_days_the_same_model_is_judged_by_their_rows_alone(
    world: ew.World, place: Place, bundle: Bundle, judged: dict[str, dict]
) -> None:
    window = world.config.run_window(ew.DAY)
    requests = world.requests(days_between(window.validation_first, window.train_last))
    rows = exposed_rows(requests)
    found = judge(place.config, ew.DAY, bundle, ROWS["dig"], "validation")
    assert found["rows"] == len(rows.label_R) != judged["dig"]["rows"]
    assert found["figures"]["rank_auc"] == pytest.approx(
        ranking.auc(rank_rows(bundle.model, requests, bundle.items), rows.label_R, rows.weight_R)
    )
    assert found["requests"] > 0 and found["figures"]["recall@10_all"] != judged["dig"]["figures"]["recall@10_all"]
    other = replace(place, part="validation")
    keys = {Run(place=p, row=ROWS["dig"], seed=1).key for p in (place, other)}
    homes = {Run(place=p, row=ROWS["dig"], seed=1).home for p in (place, other)}
    assert len(keys) == 2 and len(homes) == 1, "figures of their own by one model"


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
    summed, last = judged["sum_log"]["figures"], judged["dig"]["figures"]
    assert summed["path_auc"] == last["path_auc"] and summed["path_ndcg@10_all"] != last["path_ndcg@10_all"], (
        "paths alone are scored otherwise"
    )


def records(judged: dict[str, dict], shift: float = 0.0) -> list[dict]:
    """Two seeds, the second one's figures and samples higher by a constant."""
    one = {"seed": 1, "train": {"seconds": 10.0, "tokenizer_seconds": 0.0}, **judged}
    move = lambda of: {k: v + 0.1 if not isinstance(v, list) else [x + 0.1 for x in v] for k, v in of.items()}  # noqa: E731
    return [one, one | {"seed": 2, "figures": move(one["figures"]), "samples": move(one["samples"])}]


def slowly_resampled(sample_NS: list[list[float]]) -> list[float]:
    """Each replicate's mean over the seeds that it drew."""
    seeds, samples = len(sample_NS), len(sample_NS[0])
    drawn_SN = np.random.default_rng((2017, 18)).integers(seeds, size=(samples, seeds))
    return [float(np.mean([sample_NS[n][s] for n in drawn])) for s, drawn in enumerate(drawn_SN)]


def test_the_table_averages_over_seeds_and_pairs_by_user_and_seed(judged: dict[str, dict]) -> None:
    found = ablation_table.summary({"dig": records(judged["dig"]), "mlp_u2t": records(judged["mlp_u2t"])}, 0.95)
    auc = judged["dig"]["figures"]["path_auc"]
    shown = found["rows"]["dig"]["figures"]["path_auc"]
    assert shown["mean"] == pytest.approx(auc + 0.05) and shown["spread"] == pytest.approx(0.1 / 2**0.5)
    assert shown["by_seed"] == pytest.approx([auc, auc + 0.1])
    samples = [run["samples"]["path_auc"] for run in records(judged["dig"])]
    assert shown["ci"] == pytest.approx(np.quantile(slowly_resampled(samples), [0.025, 0.975]).tolist())
    over_users = np.quantile(np.mean(samples, axis=0), [0.025, 0.975])
    assert shown["ci"][1] - shown["ci"][0] > over_users[1] - over_users[0] + 0.02, "seeds that differ by .1 widen the interval"
    gap = found["rows"]["mlp_u2t"]["differences"]["dig"]
    same = {"mean": 0.0, "ci": [0.0, 0.0], "spread": 0.0, "by_seed": [0.0, 0.0]}
    assert gap["rank_auc"] == same, "the same ranking, paired, differs by nothing"
    paired = np.array(judged["mlp_u2t"]["samples"]["path_auc"]) - np.array(judged["dig"]["samples"]["path_auc"])
    assert gap["path_auc"]["ci"] == pytest.approx(np.quantile(paired, [0.025, 0.975]).tolist()), "what both seeds share falls out"
    assert gap["path_auc"]["spread"] == pytest.approx(0.0, abs=1e-12)
    rows = [ROWS["dig"], ROWS["mlp_u2t"]]
    table = ablation_table.text(found, rows)
    assert "own most frequent" in table and table.removeprefix(ablation_table.LEGEND).count("MLP_u2t at inference") == 3
    assert "'without MLP_u2t at inference' with 'MLP_u2t at inference, as published'" in table
    auc_line = f"  path AUC     {gap['path_auc']['mean']:+.4f}"
    (line,) = (line for line in table.splitlines() if line.startswith(auc_line))
    assert line.endswith("sd 0.0000  by seed " + " ".join(f"{value:+.4f}" for value in gap["path_auc"]["by_seed"]))
    assert len(ablation_table.plot(found, rows, "title").axes) == len(ablation_table.PLOTTED)


def runs_with(*values: float) -> list[dict]:
    """Runs of one figure whose samples lie closely around each seed's value."""
    noise = np.random.default_rng(5).normal(0, 0.001, 400)
    return [{"figures": {"a": v}, "samples": {"a": (v + noise).tolist()}} for v in values]


@pytest.mark.parametrize(
    ("values", "starred"),
    [
        ((0.02, 0.03, 0.025), True),
        ((-0.02, -0.03, -0.025), True),
        ((0.06, 0.05, -0.02), False),  # users alone would not doubt the mean of .03; one seed does
        ((0.02,), False),  # one seed says nothing of the others
        ((0.0002, 0.0003, 0.0002), False),  # within the noise of the users
    ],
)
def test_a_star_needs_an_interval_without_zero_and_one_sign_on_all_seeds(values: tuple[float, ...], starred: bool) -> None:
    series = ablation_samples.Series.of(runs_with(*values), "a")
    assert ablation_samples.stands_out(series.told(0.95)) is starred
    users_alone = np.quantile(series.sample_NS.mean(axis=0), [0.025, 0.975])
    assert (users_alone[0] > 0 or users_alone[1] < 0) is (abs(np.mean(values)) > 0.01), "what the old interval said"


def test_an_interval_over_seeds_that_differ_is_as_wide_as_their_resampled_mean() -> None:
    rng = np.random.default_rng(1)
    sample_NS = np.array([[0.0], [1.0], [2.0]]) + rng.normal(0, 1e-6, (3, 4000))
    drawn = ablation_samples.resampled(sample_NS)
    share = [np.isclose(drawn, k / 3, atol=1e-3).mean() for k in range(7)]  # 27 draws: 1, 3, 6, 7, 6, 3, 1 of each sum
    np.testing.assert_allclose(share, np.array([1, 3, 6, 7, 6, 3, 1]) / 27, atol=0.03)
    np.testing.assert_array_equal(ablation_samples.resampled(sample_NS), drawn)


def test_ratios_are_of_means_and_have_each_seeds_own() -> None:
    one, two = (ablation_samples.Series.of(runs_with(*v), "a") for v in ((0.3, 0.5), (0.1, 0.3)))
    found = ablation_samples.ratio(one, two, 0.95)
    assert found["mean"] == pytest.approx(2.0) and found["by_seed"] == pytest.approx([3.0, 5 / 3])
    assert found["ci"][0] < 5 / 3 * 1.01 and found["ci"][1] > 2.99, "both seeds twice are among the draws"
    none = ablation_samples.Series.of([{"figures": {"a": 0.0}, "samples": {"a": [0.0] * 400}}] * 2, "a")
    assert ablation_samples.ratio(one, none, 0.95) == {"mean": None, "ci": [None, None], "by_seed": [None, None]}


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
    said: list[str] = []
    for seeds in ([1], [1, 2], [1, 2]):
        found = ablation.run_all(runs_of(place, rows, seeds), rows, lambda records: written.append(len(records["dig"])))
        assert [r["seed"] for r in found["mlp_u2t"]] == seeds
        said.append(capsys.readouterr().err)
    assert trainings == ["dig-1", "dig-1", "dig-2", "dig-2"], "once for dig and oracle, which mean the same, once for the other inference"
    assert written == [1, 1, 2, 1, 2]
    assert "run 1/3  dig, seed 1: rank_auc 0." in said[0] and "min left" in said[0].splitlines()[1]
    there = [line for line in said[1].splitlines() if "there already" in line]
    assert len(there) == 4 and [("min left" in line) for line in there] == [False] * 3 + [True], "no estimate before a run was made"
    assert said[2].count("there already") == 6 and "left" not in said[2]
    keys = {run.key for run in runs_of(place, GRID, [1, 2])}
    assert len(keys) == 2 * (len(GRID) - 1)
    other = Place(config=place.config, day=place.day, settings=None, sets=(*place.sets, "train.lr=0.5"), home=place.home)
    assert Run(place=other, row=ROWS["dig"], seed=1).key not in keys


def test_rows_of_one_model_share_its_training_and_not_their_figures(place: Place) -> None:
    runs = {name: Run(place=place, row=ROWS[name], seed=1) for name in ("dig", "sum_log", "published_u2t", "history_negatives_0")}
    assert runs["sum_log"].home == runs["dig"].home and len({run.key for run in runs.values()}) == len(runs)
    published = runs["published_u2t"].config.model
    assert (published.u2t_teacher, published.u2t_inference, published.u2t_mix) == ("batch_mean", "mlp", 1.0)
    assert [runs[name].config.train.history_negatives for name in ("dig", "history_negatives_0")] == [10, 0]
    summed = replace(place, sets=(*place.sets, "model.path_score=sum_log"))
    one, other = (Run(place=summed, row=ROWS[name], seed=1).key for name in ("dig", "sum_log"))
    assert one == other, "what is in force already is no other row"


def test_exact_means_of_a_model_whose_buckets_are_no_prefixes_are_refused(place: Place) -> None:
    by_token = replace(place, sets=(*place.sets, "model.bucket_key=token", "model.u2t_inference=mlp"))
    assert Run(place=by_token, row=ROWS["dig"], seed=1).u2t == Run(place=place, row=ROWS["token_buckets"], seed=1).u2t == "mlp"
    with pytest.raises(
        ConfigError, match=r"row oracle_u2t: exact u2t is the mean over the items of a prefix, and model.bucket_key is token"
    ):
        _ = Run(place=by_token, row=ROWS["oracle_u2t"], seed=1).key
    with pytest.raises(ConfigError, match=r"model: bucket_key token with u2t_inference exact: .*expected u2t_inference mlp"):
        _ = Run(place=replace(place, sets=(*place.sets, "model.bucket_key=token")), row=ROWS["dig"], seed=1).key


def test_rows_are_chosen_by_name_with_what_they_are_compared_with() -> None:
    assert [row.name for row in chosen(["gumbel_sdud", "dig"])] == [BASE, DIG, "gumbel_sdud"]
    assert chosen([]) == list(GRID)
    with pytest.raises(ValueError, match=r"row 'nonsense': expected some of base, dig"):
        chosen(["nonsense"])


@pytest.mark.parametrize("settings", [None, Path("conf/movielens.yaml")])
def test_every_row_has_settings_that_exist(tmp_path: Path, settings: Path | None) -> None:
    config = ew.settings(tmp_path)
    place = Place(config=config, day=ew.DAY, settings=settings, sets=sets_of(tmp_path), home=tmp_path / "ablation")
    for row in ROWS.values():
        assert Run(place=place, row=row, seed=1).config.train.seed == 1


def choices_of(field: FieldInfo) -> set[object]:
    """What a switch may be: the options of a literal, on and off; nothing for a number."""
    return (
        {True, False} if field.annotation is bool else set(get_args(field.annotation)) if get_origin(field.annotation) is Literal else set()
    )


def test_every_choice_of_every_switch_of_the_method_is_in_force_or_has_a_row(place: Place) -> None:
    runs = [Run(place=place, row=row, seed=1) for row in ROWS.values()]
    switches = {name: choices for name, field in ModelConfig.model_fields.items() if (choices := choices_of(field))}
    assert {"assignment", "codebook", "u2t_teacher", "recon_stop", "gumbel_gradient"} <= set(switches)
    for name, choices in switches.items():
        tried = {getattr(run.config.model, name) for run in runs} | {
            getattr(run.row, name.removesuffix("_inference"), None) for run in runs
        }
        assert choices <= tried, name
    assert {run.config.model.affinity.enabled for run in runs} == {True, False}
    numbers = {name: {getattr(run.config.model, name) for run in runs} for name in ("item_id_dropout", "u2t_mix", "u2t_min_bucket")}
    assert numbers == {"item_id_dropout": {0.0, 0.1}, "u2t_mix": {0.0, 0.9, 1.0}, "u2t_min_bucket": {2, 8}}
    assert {(run.config.model.levels, run.config.model.codes) for run in runs} == {(3, 6), (2, 256), (4, 32)}
    losses = {(name, value) for run in runs for name, value in run.config.model.loss if value == 0}
    assert losses == {(name, 0.0) for name in LossWeights.model_fields}


def test_one_row_changes_one_thing_or_says_what_it_takes_with_it(place: Place) -> None:
    of = {name: Run(place=place, row=ROWS[name], seed=1).config.model for name in ("dig", "recon_stop_sid", "cut_off", "back_off_8")}
    assert of["recon_stop_sid"] == of["dig"].model_copy(update={"recon_stop": "sid"})
    assert of["cut_off"] == of["recon_stop_sid"].model_copy(update={"rank_gradient_to_encoder": False})
    assert of["back_off_8"].u2t_teacher == "leave_one_out", "no other teacher backs off"


def test_a_row_that_says_what_is_in_force_is_no_further_run(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Place, "inputs", lambda self, config: "one lake")  # this one has no days before the first example
    off, on = (replace(place, sets=(*place.sets, f"model.affinity.enabled={value}")) for value in ("false", "true"))
    for at, same, other in ((off, "no_affinity", "affinity"), (on, "affinity", "no_affinity")):
        keys = {name: Run(place=at, row=ROWS[name], seed=1).key for name in ("dig", same, other)}
        assert keys["dig"] == keys[same] != keys[other]


def test_all_rows_are_asked_for_at_once_but_not_beside_some_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    parser = ablation._parser()
    assert ablation.rows_asked(parser.parse_args(["--all"])) == list(ROWS.values())
    assert ablation.rows_asked(parser.parse_args(["--all", "--quick"])) == list(ROWS.values())
    assert ablation.rows_asked(parser.parse_args([])) == list(GRID)
    assert [row.name for row in ablation.rows_asked(parser.parse_args(["--quick"]))] == list(QUICK_ROWS)
    assert [row.name for row in ablation.rows_asked(parser.parse_args(["--rows", "affinity"]))] == [BASE, DIG, "affinity"]
    with pytest.raises(SystemExit):
        parser.parse_args(["--all", "--rows", "affinity"])
    assert "not allowed with argument" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["evaluation", "validation"])
def test_the_baselines_are_asked_for_the_date_days_settings_and_seeds_of_the_table(place: Place, part: Part, tmp_path: Path) -> None:
    settings = tmp_path / "own.yaml"
    command = ablation.baselines_command(replace(place, part=part, settings=settings), [7, 18], tmp_path)
    assert command[1:3] == ["-m", "benchmarks.baselines"]
    args = baselines._parser().parse_args(command[3:])
    assert (args.date, args.config, args.set, args.seeds) == (place.day, settings, list(place.sets), [7, 18])
    assert (args.validation, args.acceptance, args.results) == (part == "validation", False, tmp_path)
    assert args.methods == list(baselines.METHODS)
    kept = replace(place, config=ew.settings(tmp_path, "dataset.acceptance_from=2017-11-15"))
    assert baselines._parser().parse_args(ablation.baselines_command(kept, [7], tmp_path)[3:]).acceptance


def test_a_quick_run_has_no_baselines(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ablation._parser().parse_args(["--quick", "--baselines"])
    assert "not allowed with argument" in capsys.readouterr().err


def test_runs_of_different_rows_are_not_put_into_one_table(place: Place, judged: dict[str, dict], tmp_path: Path) -> None:
    whole = [{**r, "code": "a"} for r in records(judged["dig"])]
    with pytest.raises(ValueError, match="judged on different rows"):
        ablation.report(place, [ROWS["dig"]], {"dig": [whole[0], whole[1] | {"rows": 7}]}, tmp_path, "x")
    table = ablation.report(place, [ROWS["dig"]], {"dig": [whole[0], whole[1] | {"code": "b"}]}, tmp_path, "x")
    assert "made by 2 versions of the code" in table and (tmp_path / "x.txt").read_text() == table
    assert {p.name for p in tmp_path.iterdir()} == {"x.json", "x.txt", "x.png"}
    assert table.startswith("complete_journey, 2017-11-15, evaluation days 2017-11-09 to 2017-11-15, ")
    other = ablation.report(replace(place, part="validation"), [ROWS["dig"]], {"dig": whole}, tmp_path, "y")
    assert other.startswith("complete_journey, 2017-11-15, validation days 2017-11-07 to 2017-11-08, ")
    assert json.loads((tmp_path / "y.json").read_text())["judged_on"] == {"part": "validation", "days": ["2017-11-07", "2017-11-08"]}


@pytest.mark.slow
def test_sids_made_beforehand_come_from_the_items_of_the_window_for_every_item_known(tmp_path: Path) -> None:
    config = tw.build(tmp_path)
    short = [f"tokenizers.{kind}.epochs=1" for kind in KINDS if hasattr(config.tokenizers.of(kind), "epochs")]
    sets = (f"paths.home={tmp_path}", *(f"model.{k}={v}" for k, v in ew.SMALL.items()), *tw.SETS, *short)
    place = Place(config=config, day=tw.DAY, settings=None, sets=sets, home=tmp_path / "ablation")
    for name in (kind for kind in KINDS if kind in TWO_STAGE and find_spec(f"dig_models.tokenizers.{KINDS[kind].split('.')[0]}")):
        given, seconds = Run(place=place, row=ROWS[name], seed=1)._with_sids()
        path = Path(given[-1].removeprefix("train.given_sids="))
        assert len(read_sids(path, levels=3, codes=6)) == ew.ITEMS and seconds > 0
    shared, apart = (sids_made(place, name) for name in ("rkmeans", "rkmeans_resolved"))
    assert len(np.unique(apart.code_XL, axis=0)) > len(np.unique(shared.code_XL, axis=0))
    assert np.array_equal(apart.code_XL[:, :-1], shared.code_XL[:, :-1]), "collisions are resolved in the last code alone"
    plain = Run(place=place, row=Row(name="dig", label=""), seed=1)
    assert plain._with_sids() == (plain.sets, 0.0)


def sids_made(place: Place, row: str) -> KnownSids:
    """What a row's training is given."""
    given, _ = Run(place=place, row=ROWS[row], seed=1)._with_sids()
    return read_sids(Path(given[-1].removeprefix("train.given_sids=")), levels=3, codes=6)


def upset(config: Config, days: list[date]) -> None:
    """Commit examples of days again with every label turned."""
    lake = Lake(config.paths.at("lake"))
    for day in days:
        table = lake.read_arrow("examples", [day])
        turned = [[1 - one for one in labels] for labels in table.column("label").to_pylist()]
        at = table.column_names.index("label")
        ew.commit(lake, "examples", day, table.set_column(at, "label", pa.array(turned, pa.list_(pa.int8()))))
    tw.stamp(lake, "examples", config.dataset.rows_digest())


@pytest.mark.slow
def test_co_occurrence_is_that_of_the_days_that_move_weights(tmp_path: Path) -> None:
    config = tw.build(tmp_path)
    sets = (f"paths.home={tmp_path}", *(f"model.{k}={v}" for k, v in ew.SMALL.items()), *tw.SETS)
    place = Place(config=config, day=tw.DAY, settings=None, sets=sets, home=tmp_path / "ablation")
    window, names = config.run_window(tw.DAY), ("rkmeans_cooc", "rqvae_cooc")
    before = {name: sids_made(place, name).code_XL for name in names}
    assert not np.array_equal(before["rkmeans_cooc"], sids_made(place, "rkmeans").code_XL)

    upset(config, days_between(window.validation_first, window.eval_last))
    for name in names:
        np.testing.assert_array_equal(sids_made(place, name).code_XL, before[name])
    upset(config, [window.fit_last])
    for name in names:
        assert not np.array_equal(sids_made(place, name).code_XL, before[name]), "else the test could not see a leak"


def test_two_stage_rows_know_their_vectors_and_keep_the_names_that_older_runs_have(place: Place) -> None:
    assert {"rqvae", "rkmeans", "rqvae_cooc", "rkmeans_cooc", "rqvae_resolved", "rkmeans_cooc_resolved"} <= set(TWO_STAGE)
    keys = {Run(place=place, row=ROWS[name], seed=1).key for name in TWO_STAGE}
    kinds = set(KINDS) - {"dig"}
    assert len(keys) == len(TWO_STAGE) == sum(2 if kind in WITHOUT_CONTENT else 4 for kind in kinds)
    assert {ROWS[name].tokenizer for name in TWO_STAGE} == kinds == kinds & set(ROWS), "each kind has a row of its name"
    for name in TWO_STAGE:
        row = ROWS[name]
        assert row.model == name and (row.content == "co_occurrence") == ("_cooc" in name) and row.resolve == name.endswith("_resolved")
