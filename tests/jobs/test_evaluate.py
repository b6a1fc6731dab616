from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import evaluation_world as ew
import numpy as np
import pytest
import torch

from dig_models.bundle import load_bundle
from dig_models.evaluate import ranking
from dig_models.evaluate.lists import Contender, Search, columns, recommend_all
from dig_models.evaluate.scoring import exposed_rows, leaf_means, score_rows
from dig_models.features import SECONDS_PER_DAY
from dig_models.retrieve.rerank import Retriever
from jobs import registry, runs
from jobs.config import load
from jobs.dates import days_between
from jobs.entry import JobError
from jobs.evaluate import evaluate, relevant_items
from jobs.registry import ModelRef


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    built = ew.build(tmp_path_factory.mktemp("evaluate"))
    ew.train(built)
    return built


@pytest.fixture(scope="module")
def bundle(world):
    return load_bundle(f"{world.config.paths.at('checkpoints')}/{ew.DAY}/bundle")


@pytest.fixture(scope="module")
def retriever(world, bundle):
    return Retriever.of(bundle.model, bundle.spec, bundle.items, world.store, codes_NL=bundle.codes_NL)


@pytest.fixture(scope="module")
def requests(world):
    window = world.config.run_window(ew.DAY)
    return world.requests(days_between(window.eval_first, window.eval_last))


@pytest.fixture
def no_champion(monkeypatch):
    monkeypatch.setattr(registry, "find", lambda config, alias: None)


@pytest.fixture
def champion(monkeypatch, world, bundle):
    """The same network, as if it had been registered for an earlier date from other data."""
    ref = ModelRef(name="dig", version="7", run_id="r", tags={"date": "2017-11-01", "lineage": "older"})
    monkeypatch.setattr(registry, "find", lambda config, alias: ref)
    monkeypatch.setattr(registry, "fetch", lambda config, of: f"{world.config.paths.at('checkpoints')}/{ew.DAY}/bundle")
    return ref


def test_the_figures_are_those_of_a_slow_reading_of_the_examples(world, requests, retriever, no_champion):
    figures = evaluate(world.config, ew.DAY)
    rows, scores = exposed_rows(requests), score_rows(retriever, requests)
    probability = 1 / (1 + np.exp(-scores.rank_R))
    assert figures["rows"] == len(rows.label_R)
    assert figures["ranking"]["auc"] == pytest.approx(ranking.auc(scores.rank_R, rows.label_R, rows.weight_R))
    assert figures["ranking"]["calibration"] == pytest.approx(probability.sum() / rows.label_R.sum())
    low, high = figures["ranking"]["auc_ci"]
    assert low < figures["ranking"]["auc"] < high
    assert figures["retrieval"]["all"]["relevant"] > figures["retrieval"]["new"]["relevant"] > 0
    assert figures["champion"] is figures["churn"] is figures["difference"] is None
    assert figures["acceptance"] is False
    json.dumps(figures, allow_nan=False)


def test_evaluation_is_the_same_twice(world, no_champion):
    assert evaluate(world.config, ew.DAY) == evaluate(world.config, ew.DAY)


def test_rows_are_scored_as_one_by_one(requests, retriever):
    rows, scores = exposed_rows(requests), score_rows(retriever, requests, chunk=7)
    first = np.flatnonzero(rows.request_R == 3)
    _, at_R = requests.rows_of(np.array([3]))
    exposed = requests.source_R[at_R] == 0
    for place, at in zip(first, at_R[exposed], strict=True):
        item = np.array([requests.item_R[at]])
        users = retriever.users(requests, np.array([3]))
        cross = torch.from_numpy(retriever.spec.transform(requests.cross_RW[[at]]))
        with torch.no_grad():
            logit = retriever.model.rank_logit(
                users, torch.zeros(1, dtype=torch.int64), retriever.embedding_ND[item], cross, torch.zeros(1, dtype=torch.int64)
            )
        assert scores.rank_R[place] == pytest.approx(float(logit), abs=1e-4)


def test_exact_u2t_of_a_leaf_is_the_mean_over_the_items_that_share_the_sid(requests, retriever, bundle):
    codes = retriever.trie.item_codes()
    leaf_of = {tuple(code): leaf for leaf, code in enumerate(retriever.trie.codes(retriever.trie.levels - 1).tolist())}
    fullest = max(range(1, len(codes)), key=lambda row: (codes == codes[row]).all(axis=1).sum())
    sharing = np.flatnonzero((codes == codes[fullest]).all(axis=1))
    assert len(sharing) > 1
    got = leaf_means(retriever, requests, np.array([2]), np.array([leaf_of[tuple(codes[fullest])]]))
    want = retriever.pairs(requests, np.full(len(sharing), 2), sharing).mean(axis=0)
    np.testing.assert_allclose(got[0], want, rtol=1e-5)


def search(rerank=200):
    return Search(beam=50, rerank=rerank, u2t="exact", path_score="last")


def test_lists_agree_with_the_retriever_that_serves(requests, retriever):
    index = np.array([0, 4, 9])
    lists, bought = recommend_all([Contender(name="dig", retriever=retriever, search=search())], requests, index, k=10, chunk=2)
    for variant, exclude in (("all", False), ("new", True)):
        for name, rerank in (("dig", 200), ("dig_path", 0)):
            want = retriever.retrieve(requests, index, k=10, beam=50, rerank=rerank, exclude_bought=exclude)
            np.testing.assert_array_equal(np.maximum(lists[variant][name], 0), want.item_GJ)
    for ranked, gone in zip(lists["new"]["own_frequency"], bought, strict=True):
        assert not np.isin(ranked, gone).any()


def test_no_method_lists_a_bought_item_among_the_new_ones_nor_an_item_twice(requests, retriever):
    index = np.arange(0, 40, 5)
    lists, bought = recommend_all([Contender(name="dig", retriever=retriever, search=search())], requests, index, k=20)
    for ranked_QK in lists["new"].values():
        for ranked, gone in zip(ranked_QK, bought, strict=True):
            real = ranked[ranked >= 0]
            assert len(np.unique(real)) == len(real) > 0
            assert not np.isin(real, gone).any()


def test_baselines_count_events_of_closed_windows(world, requests, retriever):
    lists, _ = recommend_all([Contender(name="dig", retriever=retriever, search=search())], requests, np.array([11]), k=5)
    when, who = int(requests.ts_B[11]), int(requests.user_B[11])
    midnight = when // SECONDS_PER_DAY * SECONDS_PER_DAY
    pop_window = next(w for w in world.spec.windows if world.spec.raw_cross_names[columns(world.spec)[0]] == f"pop_{w}")
    ts, user, item = world.events[:, 2], world.user_hash[world.events[:, 0]], world.item_hash[world.events[:, 1]]
    row = world.items.rows(item)
    recent = (ts < midnight) & (ts >= midnight - pop_window * SECONDS_PER_DAY)
    popularity = np.bincount(row[recent], minlength=len(world.items))
    own = np.bincount(row[(user == who) & (ts < when) & (ts >= midnight - max(world.spec.windows) * SECONDS_PER_DAY)], minlength=81)
    want = sorted(range(1, 81), key=lambda i: (-popularity[i], i))[:5]
    assert lists["all"]["popularity"][0].tolist() == want
    known = sorted(np.flatnonzero(own), key=lambda i: (-own[i], -popularity[i], i))[:5]
    assert lists["all"]["own_frequency"][0].tolist()[: len(known)] == known


def test_relevant_items_are_the_distinct_items_bought(world, requests):
    relevant = relevant_items(requests, np.array([5]), None)[0]
    when, who = int(requests.ts_B[5]), int(requests.user_B[5])
    bought = world.events[(world.user_hash[world.events[:, 0]] == who) & (world.events[:, 2] == when), 1]
    assert set(relevant) == set(world.items.rows(world.item_hash[bought]))
    assert relevant_items(requests, np.array([5]), [relevant])[0].tolist() == []


def test_at_most_so_many_requests_are_retrieved_for_chosen_by_hash(world, no_champion):
    few = world.config.model_copy(update={"evaluate": world.config.evaluate.model_copy(update={"max_requests": 7})})
    assert evaluate(few, ew.DAY)["retrieval"]["all"]["requests"] == 7


def test_a_champion_is_scored_on_the_same_rows_and_an_equal_one_differs_in_nothing(world, champion):
    figures = evaluate(world.config, ew.DAY)
    assert figures["champion"]["version"] == "7"
    assert figures["champion"]["ranking"] == figures["ranking"]
    assert figures["difference"]["auc"] == 0.0
    assert figures["difference"]["auc_ci"] == [0.0, 0.0]
    assert figures["churn"]["rate"] == 0.0 and figures["churn"]["unaligned"] is None
    assert figures["champion"]["retrieval"]["all"]["dig"] == figures["retrieval"]["all"]["dig"]


def test_a_rerun_is_compared_with_what_the_champion_replaced(world, monkeypatch):
    lineage = load_bundle(f"{world.config.paths.at('checkpoints')}/{ew.DAY}/bundle").info["lineage"]
    itself = ModelRef(name="dig", version="8", run_id="r", tags={"date": str(ew.DAY), "lineage": lineage})
    monkeypatch.setattr(registry, "find", lambda config, alias: itself)
    monkeypatch.setattr(registry, "ancestor", lambda config, day: None)
    assert evaluate(world.config, ew.DAY)["champion"] is None


@pytest.mark.slow
def test_a_champion_of_another_feature_spec_is_named_but_not_compared(champion, tmp_path):
    changed = ew.build(tmp_path, "dataset.history.length=59")
    ew.train(changed, steps=6)
    figures = evaluate(changed.config, ew.DAY)
    assert "feature spec" in figures["champion"]["reason"]
    assert "ranking" not in figures["champion"]
    assert figures["churn"] is None


def test_a_champion_that_this_code_cannot_load_is_named_but_not_compared(world, monkeypatch, tmp_path):
    own = Path(world.config.paths.at("checkpoints")) / str(ew.DAY) / "bundle"
    shutil.copytree(own, tmp_path / "old")
    settings = json.loads((tmp_path / "old" / "model.json").read_text())
    settings["model"]["encoder_hidden"] = 48
    (tmp_path / "old" / "model.json").write_text(json.dumps(settings))
    old = ModelRef(name="dig", version="3", run_id="r", tags={"date": str(ew.DAY), "lineage": "older"})
    monkeypatch.setattr(registry, "find", lambda config, alias: old)
    monkeypatch.setattr(registry, "fetch", lambda config, ref: tmp_path / "old")
    figures = evaluate(world.config, ew.DAY)
    assert "another version of the code" in figures["champion"]["reason"]
    assert figures["churn"] is None and figures["ranking"]["auc"] is not None


def test_what_later_jobs_kept_of_another_model_goes_and_of_the_same_one_stays(tmp_path):
    config = load("conf/local.yaml", [f"paths.home={tmp_path}"], {})
    later = ("register", "gate", "index", "promote", "summary")
    runs.save(config, ew.DAY, "evaluate", {"lineage": "one"})
    for name in later:
        runs.save(config, ew.DAY, name, {})
    folder = runs.run_dir(config, ew.DAY)
    (folder / "report.html").write_text("of model one")
    runs.supersede(config, ew.DAY, "one")
    assert (folder / "report.html").is_file() and all((folder / f"{name}.json").is_file() for name in later)
    runs.supersede(config, ew.DAY, "two")
    assert not list(folder.iterdir())


@pytest.mark.slow
def test_days_without_positives_give_nulls_not_a_crash(tmp_path, no_champion):
    world = ew.build(tmp_path)
    ew.train(world, steps=6)
    ew.without_positives(world)
    figures = evaluate(world.config, ew.DAY)
    assert figures["positives"] == 0
    assert figures["ranking"]["auc"] is figures["ranking"]["calibration"] is None
    assert figures["retrieval"]["all"]["dig"]["recall@10"] is None
    json.dumps(figures, allow_nan=False)


def test_no_trained_model_says_what_to_run(tmp_path):
    with pytest.raises(JobError, match=r"jobs\.train --date 2017-11-15"):
        evaluate(ew.settings(tmp_path), ew.DAY)


def test_progress_runs_to_its_end(world, no_champion, tmp_path, monkeypatch):
    monkeypatch.setenv("DIG_PROGRESS", str(tmp_path / "progress"))
    evaluate(world.config, ew.DAY)
    lines = [json.loads(line) for line in (tmp_path / "progress").read_text().splitlines()]
    assert lines[0]["done"] == 0
    assert lines[-1]["done"] == lines[-1]["total"] == lines[0]["total"]
    assert all(a["done"] <= b["done"] for a, b in pairwise(lines))
