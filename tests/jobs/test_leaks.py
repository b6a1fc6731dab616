"""Nothing that lies at or after a request lifts any figure, on either path; and the tests would see it if it did."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import evaluation_world as ew
import leak_world as lw
import numpy as np
import pytest

from benchmarks import negatives
from dig_models.bundle import Bundle, load_bundle
from dig_models.evaluate import bootstrap, ranking
from dig_models.evaluate.scoring import Scores, exposed_rows, score_rows
from dig_models.retrieve.rerank import Retriever
from dig_models.train.data import RequestTable
from jobs import registry
from jobs.dates import days_between
from jobs.evaluate import evaluate

pytestmark = pytest.mark.slow
PATHS = ("rank_R", "exact_R", "mlp_R")
CONFIDENCE = 0.99


def bundle_of(world: ew.World) -> Bundle:
    return load_bundle(Path(world.config.paths.at("checkpoints")) / ew.DAY.isoformat() / "bundle")


def judged(world: ew.World) -> RequestTable:
    window = world.config.run_window(ew.DAY)
    return world.requests(days_between(window.eval_first, window.eval_last))


def scored(world: ew.World, bundle: Bundle, requests: RequestTable) -> Scores:
    return score_rows(Retriever.of(bundle.model, bundle.spec, bundle.items, world.store, codes_NL=bundle.codes_NL), requests)


def bought_lately(copies: int, second: int | None) -> np.ndarray:
    """What each user buys in the training and evaluation days, many times over: at one second, or a second before each purchase."""
    events = ew.simulate(ew.DAY, 0)
    recent = np.repeat(events[events[:, 2] // ew.SECONDS_PER_DAY > ew.epoch_day(ew.DAY) - 14], copies, axis=0)
    recent[:, 2] = recent[:, 2] - 1 if second is None else second
    return recent


@pytest.mark.usefixtures("_no_champion")
def test_a_signal_that_lies_in_the_future_alone_changes_no_figure(tmp_path: Path) -> None:
    figures = {}
    plants = {"none": None, "future": bought_lately(20, lw.LAST_SECOND), "a second before": bought_lately(20, None)}
    for name, told in plants.items():
        world = lw.build(tmp_path / name.replace(" ", "-"), ew.simulate(ew.DAY, 0), told)
        ew.train(world)
        figures[name] = evaluate(world.config, ew.DAY)
    assert figures["future"] == figures["none"]
    # The same signal where it may be seen is all that one needs: had it leaked, it would have been seen.
    early, plain = figures["a second before"], figures["none"]
    assert early["ranking"]["auc"] > plain["ranking"]["auc"] + 0.1
    assert early["ranking"]["recall_path"]["exact"]["auc"] > plain["ranking"]["recall_path"]["exact"]["auc"] + 0.05
    assert early["retrieval"]["all"]["own_frequency"]["recall@10"] > plain["retrieval"]["all"]["own_frequency"]["recall@10"] + 0.05


@pytest.fixture
def _no_champion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "find", lambda config, alias: None)


def within_users(score_R: np.ndarray, requests: RequestTable) -> tuple[float, tuple[float, float]]:
    """AUC inside users, weighted by their rows, and its bootstrap interval over users."""
    rows = exposed_rows(requests)
    users = ranking.auc_by_group(score_R, rows.label_R, rows.user_R, rows.weight_R)
    both = np.isfinite(users.auc_G)
    auc_U, weight_U = users.auc_G[both], users.weight_G[both]
    draw_SU = bootstrap.draws(len(auc_U), 1000, 0)
    samples = (draw_SU @ (auc_U * weight_U)) / (draw_SU @ weight_U)
    return float(np.average(auc_U, weights=weight_U)), bootstrap.interval(samples, CONFIDENCE)


@pytest.mark.parametrize("teacher", ["catalogue_sample", "batch_mean", "leave_one_out"])
def test_labels_shuffled_within_users_leave_nothing_to_know_on_either_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: str
) -> None:
    monkeypatch.setattr(ew, "SMALL", ew.SMALL | {"u2t_teacher": teacher})
    world = lw.build(tmp_path / "home", lw.shuffled_within_user(0))
    ew.train(world, steps=60)
    bundle, requests = bundle_of(world), judged(world)
    honest = scored(world, bundle, requests)
    for path in PATHS:
        auc, (low, high) = within_users(getattr(honest, path), requests)
        assert low <= 0.5 <= high, f"{teacher}, {path}: {auc:.3f} in [{low:.3f}, {high:.3f}]"
        assert high - low < 0.2, "the interval is too wide to see anything"


def test_a_request_that_sees_its_own_second_is_found_out_on_both_paths(tmp_path: Path) -> None:
    world = lw.build(tmp_path / "home", lw.shuffled_within_user(0))
    store = lw.seen_a_second_early(world, tmp_path / "early")
    leaky = replace(world, store=store, events=world.events)
    window = world.config.run_window(ew.DAY)
    lake = ew.Lake(world.config.paths.at("lake"))
    for day in days_between(window.eval_first - (window.eval_last - window.eval_first), window.eval_last):
        ew.commit(lake, "examples", day, ew.examples(leaky, day))
    ew.train(leaky, steps=60)
    bundle, requests = bundle_of(leaky), judged(leaky)
    seen = scored(leaky, bundle, requests)
    for path in ("rank_R", "exact_R"):
        auc, (low, _) = within_users(getattr(seen, path), requests)
        assert low > 0.55, f"{path}: {auc:.3f}"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    world = ew.build(tmp_path_factory.mktemp("negatives"))
    ew.train(world)
    return negatives.measure(world.config, bundle_of(world), judged(world), world.store, most=60)


def test_zero_crosses_tell_random_negatives_apart_no_better_by_the_default_teacher_than_by_what_serving_knows(told) -> None:
    paths = told["retrieval_path"]
    assert 0.5 < told["ranking_path"]["open"] < 1.0
    for level, exact in enumerate(paths["exact"]):
        assert paths["catalogue_sample"][level] <= exact + 0.05 or paths["catalogue_sample"][level] <= told["ranking_path"]["open"]
        assert paths["catalogue_sample"][level] <= told["ranking_path"]["open"] + 0.01
    assert told["rows"]["random_negatives"] > 1000


def test_a_teacher_that_averages_the_batch_gives_more_away_than_serving_knows(told) -> None:
    paths = told["retrieval_path"]
    assert paths["batch_mean"][-1] > paths["exact"][-1]
