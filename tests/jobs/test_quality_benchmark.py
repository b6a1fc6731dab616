from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from datetime import date

import evaluation_world as ew
import numpy as np
import pytest

from benchmarks import baseline_trees, judging, quality, tabular
from benchmarks.ablation_rows import ROWS
from benchmarks.ablation_runs import Place, Run, judge
from benchmarks.judging import MAX_AUC_LOSS
from dig_models.bundle import BundleError, load_bundle
from dig_models.evaluate import ranking
from dig_models.evaluate.scoring import exposed_rows, rank_rows
from jobs.config import Config, ConfigError, load
from jobs.dates import days_between
from jobs.entry import JobError
from jobs.lake import Lake

SEEDS = [5, 6]
GROWN: list[int] = []
"""Seeds that trees were trained with."""
SECTIONS = tuple(Config.model_fields)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The comparison on a small world; torchrun is left to its own tests: both networks are trained in this process."""
    world = ew.build(tmp_path_factory.mktemp("quality"), "window.train_days=7", "window.validation_days=2")
    ew.train(world, seed=world.config.train.seed)
    bundle = load_bundle(f"{world.config.paths.at('checkpoints')}/{ew.DAY}/bundle")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quality, "dig_or_base", lambda *args: bundle)
        patch.setattr(quality, "trees", lambda *args: GROWN.append(args[-1]) or baseline_trees.trees(*args))
        return quality.compare(world.config, ew.DAY, SEEDS, None, ("evaluate.bootstrap=20",)), world, bundle


@pytest.mark.slow
def test_all_rankers_are_judged_on_the_same_rows(found):
    figures, world, bundle = found
    window = world.config.run_window(ew.DAY)
    requests = baseline_trees.Data(world.config, bundle).requests(window.eval_first, window.eval_last)
    rows = exposed_rows(requests)
    assert figures["rows"] == len(rows.label_R)
    auc = ranking.auc(rank_rows(bundle.model, requests, bundle.items), rows.label_R, rows.weight_R)
    assert figures["methods"]["dig"]["auc"] == pytest.approx(auc)
    assert figures["methods"]["base"]["auc"] == pytest.approx(auc)


@pytest.mark.slow
def test_a_model_less_itself_is_exactly_zero_and_so_is_its_interval(found):
    same = {"auc": 0.0, "auc_ci": [0.0, 0.0], "auc_spread": 0.0, "auc_by_seed": [0.0, 0.0]}
    assert found[0]["differences"]["dig_minus_base"] == same
    assert found[0]["limits"]["auc_not_more_than_0.001_below_base"]


def test_the_loss_allowed_is_that_of_the_ablation_and_more_of_it_is_not_met():
    for loss, met in ((0.5, True), (1.0, True), (1.5, False)):
        gaps = {"dig_minus_base": {"auc": -loss * MAX_AUC_LOSS}, "dig_minus_trees": {"auc": 0.001}}
        assert quality.limits(gaps) == {f"auc_not_more_than_{MAX_AUC_LOSS}_below_base": met, "auc_above_trees": True}
    kept = json.loads((judging.RESULTS / "quality.json").read_text())
    assert kept["limits"] == quality.limits(kept["differences"]), "the figures that are kept are held against the limit in force"


@pytest.mark.slow
def test_trees_learn_from_the_training_days_with_every_seed(found):
    assert found[0]["methods"]["trees"]["auc"] > 0.7
    assert GROWN == SEEDS
    assert len(found[0]["methods"]["trees"]["auc_by_seed"]) == len(found[0]["differences"]["dig_minus_trees"]["auc_by_seed"]) == len(SEEDS)


@pytest.mark.slow
def test_the_interval_is_that_of_the_ablation(found):
    figures, world, bundle = found
    record = judge(world.config, ew.DAY, bundle, ROWS["base"])
    assert figures["methods"]["base"]["auc_ci"] == pytest.approx(np.quantile(record["samples"]["rank_auc"], [0.025, 0.975]).tolist())
    assert figures["users"] == record["users"]


@pytest.mark.slow
def test_the_result_says_what_made_it(found):
    assert (found[0]["settings"], found[0]["draws"], found[0]["seeds"]) == (["evaluate.bootstrap=20"], 20, SEEDS)
    assert found[0]["judged_on"] == {"part": "evaluation", "days": ["2017-11-09", "2017-11-15"]}


@pytest.mark.parametrize("kind", ["dig", "base"])
def test_a_training_shared_with_the_ablation_has_its_settings_whatever_is_in_force(tmp_path, monkeypatch, kind):
    asked = []
    monkeypatch.setattr(judging, "trained", lambda *args: asked.append(args))
    sets = (f"paths.home={tmp_path}", "tokenizer=rqvae", "mlflow.tracking_uri=http://mlflow:5000", "train.lr=0.5")
    config = load(sets=sets, environ={})
    judging.dig_or_base(config, ew.DAY, kind, 7, None, sets)
    ((day, home, settings, given),) = asked
    row = Run(
        place=Place(config=config, day=ew.DAY, settings=None, sets=sets, home=judging.ablation_home(config, ew.DAY)), row=ROWS[kind], seed=7
    )
    ours, theirs = load(settings, given, environ={}), row.config
    assert (day, home) == (ew.DAY, row.home) and ours == theirs
    assert ours.digest(*SECTIONS) == theirs.digest(*SECTIONS)
    assert (ours.tokenizer, ours.model.assignment, ours.model.loss.recall == 0) == ("dig", "online_rq", kind == "base")
    assert ours.mlflow.tracking_uri == f"sqlite:///{judging.ablation_home(config, ew.DAY)}/mlflow/mlflow.db"


def test_the_settings_of_a_shared_training_are_those_in_force_where_they_say_what_it_learns(tmp_path):
    config = load(sets=[f"paths.home={tmp_path}"], environ={})
    made = load(None, judging.changes_of(config, tmp_path, tmp_path / "own", config.train.seed, {}), environ={})
    assert made.train.model_copy(update={"warm_start": config.train.warm_start}) == config.train and not made.train.warm_start
    assert made.digest("model", "window", "tokenizer") == config.digest("model", "window", "tokenizer")


@pytest.fixture(scope="module")
def days(found):
    """Spec, items, and the requests of training, validation and evaluation days."""
    _, world, bundle = found
    window, data = world.config.run_window(ew.DAY), baseline_trees.Data(world.config, bundle)
    spans = ((window.train_first, window.fit_last), (window.validation_first, window.train_last), (window.eval_first, window.eval_last))
    return bundle.spec, bundle.items, *(data.requests(*span) for span in spans)


def test_the_trees_see_one_row_for_each_exposed_row(days):
    spec, items, fit, validation, test = days
    columns = tabular.TreeColumns.fit(spec, items, fit)
    for requests in (fit, validation, test):
        features = columns.of(requests)
        assert len(features) == len(exposed_rows(requests).label_R)
        assert max(columns.categorical) < features.shape[1]
        for column in columns.categorical:
            assert features[:, column].max() < tabular.CATEGORIES
    assert np.isfinite(columns.of(test)).all(), "every value was there before the evaluation days"
    kinds = {field.kind for field, _ in tabular.buckets(spec, items, fit)}
    assert kinds >= {"categorical", "text"} and len(columns.seen) + len(columns.categorical) == len(list(tabular.buckets(spec, items, fit)))


def test_a_share_is_that_of_the_training_rows_of_earlier_days_alone(days):
    spec, items, fit, _, test = days
    columns = tabular.TreeColumns.fit(spec, items, fit)
    place, wide = next((at, of) for at, (f, of) in enumerate(tabular.buckets(spec, items, fit)) if f.name == "item_id")
    assert place == 0 and place in columns.seen
    rows, first = exposed_rows(fit), tabular.numbers(spec, items, fit).shape[1]
    day_R, label_R, item_R = fit.ts_B[rows.request_R] // 86_400, rows.label_R, wide[:, 0]
    found = columns.of(fit)[:, first : first + 2]
    for at in (0, len(found) // 2, len(found) - 1):
        before = day_R < day_R[at]
        mine = before & (item_R == item_R[at])
        if not before.any():
            assert np.isnan(found[at]).all()
            continue
        share = (label_R[mine].sum() + tabular.SMOOTHING * label_R[before].mean()) / (mine.sum() + tabular.SMOOTHING)
        np.testing.assert_allclose(found[at], [share, mine.sum() / before.sum()], rtol=1e-4)
    turned = replace(fit, label_R=np.where(fit.ts_B[_owner(fit)] // 86_400 == day_R.max(), 1 - fit.label_R, fit.label_R).astype(np.int8))
    again = tabular.TreeColumns.fit(spec, items, turned)
    np.testing.assert_array_equal(again.of(fit), columns.of(fit))  # labels of the last day are in no training row
    assert not np.array_equal(again.of(test), columns.of(test))
    np.testing.assert_array_equal(columns.of(replace(test, label_R=1 - test.label_R)), columns.of(test))


def _owner(requests):
    return np.repeat(np.arange(len(requests)), np.diff(requests.row_start))


def test_logistic_regression_sees_every_bucket_of_every_field(days):
    spec, items, fit, _, test = days
    fit_RX, test_RX = tabular.linear(spec, items, fit, test)
    width = tabular.numbers(spec, items, fit).shape[1]
    fields = list(tabular.buckets(spec, items, test))
    assert fit_RX.shape[1] == test_RX.shape[1] == width + sum(field.buckets for field, _ in fields)
    np.testing.assert_allclose(fit_RX[:, :width].toarray().mean(axis=0), 0, atol=1e-3)
    at = width
    for field, bucket_RW in fields:
        part = test_RX[:, at : at + field.buckets].toarray()
        at += field.buckets
        for row in (0, len(part) - 1):
            assert set(np.flatnonzero(part[row])) == set(bucket_RW[row].tolist()) - {0} and set(part[row]) <= {0.0, 1.0}


def test_a_date_of_the_acceptance_period_is_refused_unless_it_is_asked_for(tmp_path):
    config = ew.settings(tmp_path, "dataset.acceptance_from=2017-12-02")
    first = date(2017, 12, 2)
    with pytest.raises(ConfigError, match=r"2017-12-02: its evaluation days reach into the acceptance period.*--acceptance"):
        judging.judged_date(config, first, acceptance=False)
    assert judging.judged_date(config, first, acceptance=True) == first
    assert judging.judged_date(config, date(2017, 12, 1), acceptance=False) == date(2017, 12, 1)
    assert judging.judged_date(config, None, acceptance=False) == config.dataset.default_date


def test_results_of_other_data_sets_have_names_of_their_own(tmp_path):
    config = ew.settings(tmp_path)
    assert judging.result_name(config, "quality") == "quality"
    other = config.model_copy(update={"dataset": config.dataset.model_copy(update={"name": "movielens_100k"})})
    assert judging.result_name(other, "quality") == "quality-movielens_100k"
    assert judging.result_name(config, "beam", "validation") == "beam-validation"
    assert judging.result_name(other, "beam", "validation") == "beam-movielens_100k-validation"


def test_validation_days_end_where_evaluation_days_begin_and_acceptance_is_of_the_days_judged(tmp_path):
    config, day = ew.settings(tmp_path, "dataset.acceptance_from=2017-12-02", "window.eval_days=7"), date(2017, 12, 5)
    window = config.run_window(day)
    parts = [judging.judged_days(config, day, part) for part in ("validation", "evaluation")]
    assert [*parts[0], *parts[1]] == days_between(window.validation_first, window.eval_last) and parts[0][-1] == window.train_last
    assert judging.facts(config, day, "evaluation")["acceptance"] and not judging.facts(config, day, "validation")["acceptance"]
    assert (
        judging.facts(config, day, "validation", ["paths.home=/x", "a=1"])["settings"] == ["a=1"]
        and judging.facts(config, day, "validation")["draws"] == 20
    )
    assert judging.facts(config, day, "validation")["judged_on"]["days"] == ["2017-11-26", "2017-11-28"]


def test_days_without_a_request_are_refused(tmp_path):
    world = ew.build(tmp_path)
    ew.train(world, steps=3)
    lake, first = Lake(world.config.paths.at("lake")), world.config.run_window(ew.DAY).eval_first
    empty = ew.examples(world, first).slice(0, 0)
    for of in judging.judged_days(world.config, ew.DAY, "validation"):
        ew.commit(lake, "examples", of, empty)
    with pytest.raises(JobError, match=r"2017-11-06 to 2017-11-08, the validation days of 2017-11-15, hold no request"):
        judging.Judged.open(world.config, ew.DAY, 5, part="validation")


@pytest.mark.slow
def test_the_figures_are_drawn(found):
    assert quality.plot(found[0]).get_axes()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (BundleError("bundle: not found"), "bundle: not found\n`make retrain`"),
        (JobError("table examples: 1 of 1 days are missing"), "table examples: 1 of 1 days are missing"),
        (subprocess.CalledProcessError(2, "jobs.launch"), "ended with status 2"),
    ],
)
def test_what_is_missing_ends_a_benchmark_with_a_message_and_no_traceback(
    error: Exception, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @judging.plainly
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and said in capsys.readouterr().err
