from __future__ import annotations

from datetime import date

import evaluation_world as ew
import pytest

from benchmarks import judging, quality
from dig_models.bundle import load_bundle
from dig_models.evaluate import ranking
from dig_models.evaluate.scoring import exposed_rows, rank_rows
from jobs.config import ConfigError


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The comparison on a small world; torchrun is left to its own tests: both networks are trained in this process."""
    world = ew.build(tmp_path_factory.mktemp("quality"), "window.train_days=7", "window.validation_days=2")
    ew.train(world, seed=world.config.train.seed)
    bundle = load_bundle(f"{world.config.paths.at('checkpoints')}/{ew.DAY}/bundle")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quality, "trained", lambda *args: bundle)
        return quality.compare(world.config, ew.DAY, [world.config.train.seed], None, ()), world, bundle


def test_all_rankers_are_judged_on_the_same_rows(found):
    figures, world, bundle = found
    window = world.config.run_window(ew.DAY)
    requests = quality.Data(world.config, bundle).requests(window.eval_first, window.eval_last)
    rows = exposed_rows(requests)
    assert figures["rows"] == len(rows.label_R)
    auc = ranking.auc(rank_rows(bundle.model, requests, bundle.items), rows.label_R, rows.weight_R)
    assert figures["methods"]["dig"]["auc"] == pytest.approx(auc)
    assert figures["methods"]["base"]["auc"] == pytest.approx(auc)


def test_a_model_less_itself_is_exactly_zero_and_so_is_its_interval(found):
    assert found[0]["differences"]["dig_minus_base"] == {"auc": 0.0, "auc_ci": (0.0, 0.0)}
    assert found[0]["limits"]["auc_not_more_than_0.002_below_base"]


def test_trees_learn_from_the_training_days(found):
    assert found[0]["methods"]["trees"]["auc"] > 0.7


def test_the_trees_see_one_row_for_each_exposed_row(found):
    _, world, bundle = found
    window = world.config.run_window(ew.DAY)
    data = quality.Data(world.config, bundle)
    requests = data.requests(window.eval_first, window.eval_last)
    features = data.features(requests)
    assert len(features) == len(exposed_rows(requests).label_R)
    assert max(data.categorical()) < features.shape[1]
    for column in data.categorical():
        assert features[:, column].max() < quality.CATEGORIES


def test_a_date_of_the_acceptance_period_is_refused_unless_it_is_asked_for(tmp_path):
    config = ew.settings(tmp_path, "dataset.acceptance_from=2017-12-02")
    first = date(2017, 12, 2)
    with pytest.raises(ConfigError, match=r"2017-12-02: its evaluation days reach into the acceptance period.*--acceptance"):
        judging.judged_date(config, first, acceptance=False)
    assert judging.judged_date(config, first, acceptance=True) == first
    assert judging.judged_date(config, date(2017, 12, 1), acceptance=False) == date(2017, 12, 1)
    assert judging.judged_date(config, None, acceptance=False) == config.dataset.default_date


def test_the_figures_are_drawn(found):
    assert quality.plot(found[0]).get_axes()
