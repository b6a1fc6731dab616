"""The baselines on a small world: same rows and requests, runs that are kept, and networks that learn what there is to learn."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import evaluation_world as ew
import numpy as np
import pytest
import torch

from benchmarks import ablation_table, baseline_trees
from benchmarks import baseline_runs as br
from benchmarks import baselines as bl
from benchmarks import baselines_table as bt
from benchmarks.ablation_rows import ROWS
from benchmarks.ablation_runs import judge
from benchmarks.baseline_fit import (
    Curve,
    Days,
    SasRecRetriever,
    TowerRetriever,
    best_epoch,
    bought_alone,
    logistic,
    oldest_first,
    ranker,
    with_positives,
)
from benchmarks.baseline_models import Ranker, SasRec
from benchmarks.baseline_trees import Data
from benchmarks.judging import Judged
from benchmarks.tabular import TreeColumns, linear, numbers
from dig_models.affinity import Neighbours
from dig_models.batch import Batch
from dig_models.bundle import Bundle, load_bundle
from dig_models.config import AffinityConfig, TrainConfig
from dig_models.dig import Dig
from dig_models.evaluate import ranking
from dig_models.evaluate.lists import recommend_all
from dig_models.evaluate.scoring import exposed_rows
from dig_models.features import SOURCE_EXPOSED
from dig_models.nn.norm import commit_moments
from dig_models.train import optim
from jobs.dates import days_between

TRAIN = TrainConfig(requests_per_batch=8, random_negatives=8, lr=5e-3)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> ew.World:
    built = ew.build(tmp_path_factory.mktemp("baselines"), "evaluate.bootstrap=50", "evaluate.max_requests=40")
    ew.train(built, steps=12)
    return built


@pytest.fixture(scope="module")
def judged(world: ew.World) -> Judged:
    return Judged.open(world.config, ew.DAY, 40)


@pytest.fixture(scope="module")
def days(world: ew.World, judged: Judged) -> Days:
    window = world.config.run_window(ew.DAY)
    before = [world.requests(days_between(first, last)) for first, last in (
        (window.eval_first - timedelta(days=7), window.train_last - timedelta(days=2)),
        (window.train_last - timedelta(days=1), window.train_last),
    )]  # fmt: skip
    return Days(
        spec=judged.bundle.spec, items=judged.bundle.items, store=judged.store, fit=before[0], validation=before[1],
        train=TRAIN, keep_rate=1.0, seed=3, epochs=2, cap=4, patience=2,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["din", "dcn"])
def test_a_ranker_ranks_and_gives_the_same_scores_again(kind: str, days: Days, judged: Judged) -> None:
    score_R, curve = ranker(kind, days, judged.requests)  # type: ignore[arg-type]
    rows = exposed_rows(judged.requests)
    assert score_R.shape == rows.label_R.shape
    assert ranking.auc(score_R, rows.label_R) > 0.6  # favourites are bought again
    again_R, curve_again = ranker(kind, days, judged.requests)  # type: ignore[arg-type]
    np.testing.assert_array_equal(score_R, again_R)
    assert curve == curve_again and len(curve.figures) == days.epochs == curve.cap


@pytest.mark.parametrize("kind", ["din", "dcn"])
def test_an_offer_that_training_never_saw_says_nothing_to_a_ranker(kind: str, days: Days) -> None:
    model = Ranker(kind, days.spec, days.items, days.crosses)  # type: ignore[arg-type]
    for batch in days.batches(days.fit, days.shuffled(0), 32):
        model(replace(batch, cross_RC=batch.cross_RC * (torch.arange(days.crosses) != 1)))
        commit_moments([model.norm])
    model.eval()
    seen, new = (torch.where(torch.arange(days.crosses) == 1, value, batch.cross_RC) for value in (0.0, 1.0))
    scores = [model(replace(batch, cross_RC=cross_RC)) for cross_RC in (seen, new)]
    torch.testing.assert_close(*scores, rtol=0, atol=0)
    assert not torch.equal(scores[0], model(replace(batch, cross_RC=seen + (torch.arange(days.crosses) == 0))))


@pytest.fixture(scope="module")
def reading(days: Days, judged: Judged) -> Bundle:
    """A model that reads the affinity."""
    _, at_R = days.fit.rows_of(np.arange(len(days.fit), dtype=np.int64))
    user_R = np.repeat(days.fit.user_B, np.diff(days.fit.row_start))
    hash_N, bought_R = days.items.hash_N, days.fit.label_R[at_R] > 0
    model = Dig(judged.bundle.model.config.model_copy(update={"affinity": AffinityConfig(enabled=True)}), days.spec)
    model.set_items(days.items)
    model.neighbours = Neighbours.fit(hash_N[1:], user_R[bought_R], hash_N[days.fit.item_R[at_R][bought_R]], ridge=2.0, keep=20)
    return Bundle(model.eval(), days.spec, days.items, model.code_NL.numpy().copy(), {})


def test_baselines_see_the_affinity_that_the_model_reads_as_its_last_cross(
    world: ew.World, days: Days, judged: Judged, reading: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Data, "requests", lambda self, first, last: days.fit)
    asked = br.World(
        config=world.config, day=ew.DAY, judged=replace(judged, bundle=reading), epochs=2, cap=2, patience=1, settings=(None, ())
    )
    learning, (affinity, columns) = asked.days(3), (asked.data.affinity, days.spec.cross_width)
    assert learning.affinity is affinity is reading.model.affinity is not None and learning.crosses == columns + 1
    assert Data(world.config, judged.bundle).affinity is None
    rows = [batch.cross_RC[batch.source_R == SOURCE_EXPOSED].numpy() for batch in learning.batches(days.fit, np.arange(len(days.fit)), 64)]
    want_RC = np.concatenate(rows)
    assert want_RC.shape[1] == columns + 1 and want_RC[:, -1].std() > 0
    np.testing.assert_array_equal(numbers(days.spec, days.items, days.fit, affinity)[:, : columns + 1], want_RC)
    trees = TreeColumns.fit(days.spec, days.items, days.fit, affinity)
    without = TreeColumns.fit(days.spec, days.items, days.fit)
    np.testing.assert_array_equal(trees.of(days.fit)[:, columns], want_RC[:, -1])
    np.testing.assert_array_equal(np.delete(trees.of(days.fit), columns, axis=1), without.of(days.fit))
    assert trees.categorical == [at + 1 for at in without.categorical]
    fit, test = linear(days.spec, days.items, days.fit, judged.requests, affinity)
    assert fit.shape[1] == test.shape[1] == linear(days.spec, days.items, days.fit, judged.requests)[0].shape[1] + 1
    score_R, _ = ranker("dcn", replace(days, affinity=affinity, epochs=1), judged.requests)
    assert len(score_R) == len(exposed_rows(judged.requests).label_R) and np.isfinite(score_R).all()


def test_trees_without_shares_read_what_a_row_is_and_nothing_of_earlier_labels(
    world: ew.World, days: Days, judged: Judged, monkeypatch: pytest.MonkeyPatch
) -> None:
    turned = replace(days.fit, label_R=1.0 - days.fit.label_R)
    by_label = {
        shares: [TreeColumns.fit(days.spec, days.items, of, shares=shares).of(days.fit) for of in (days.fit, turned)]
        for shares in (True, False)
    }
    np.testing.assert_array_equal(*by_label[False])  # only shares count labels
    assert not np.array_equal(*by_label[True], equal_nan=True)
    widths = [by_label[shares][0].shape[1] for shares in (True, False)]
    seen = TreeColumns.fit(days.spec, days.items, days.fit).seen
    assert seen and widths[1] == widths[0] - 2 * len(seen)
    asked = list[int]()
    grower = baseline_trees.HistGradientBoostingClassifier
    fit = grower.fit
    monkeypatch.setattr(Data, "requests", lambda self, first, last: days.fit)
    monkeypatch.setattr(grower, "fit", lambda self, x, *rest, **more: asked.append(x.shape[1]) or fit(self, x, *rest, **more))
    data = Data(world.config, judged.bundle)
    scores = [baseline_trees.trees(world.config, ew.DAY, data, judged.requests, 3, shares=shares) for shares in (True, False)]
    assert asked == widths
    assert not np.array_equal(*scores)


def planned(days: Days, figures: list[float], *, patient: bool) -> tuple[Curve, float, list[list[float]]]:
    """A one-weight model whose judge says ``figures``: the curve, the epoch that its weight was kept from, and the rates by epoch."""
    model = torch.nn.Linear(1, 1, bias=False)
    optimizer: list[torch.optim.Optimizer] = []
    weights: list[float] = []
    rates: list[list[float]] = []

    def batches(epoch: int) -> Iterator[Batch]:
        rates.append([])
        for _ in range(3):
            yield batch

    def loss(batch: Batch) -> torch.Tensor:
        rates[-1].append(optimizer[0].param_groups[0]["lr"])
        return model(torch.ones(1, 1)).square().sum()

    def judge() -> float:
        weights.append(float(model.weight.detach()))
        return figures[len(weights) - 1]

    batch = next(days.batches(days.fit, np.arange(1), 1))
    build = optim.build
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optim, "build", lambda *asked: optimizer.append(build(*asked)) or optimizer[0])
        curve = best_epoch(model, days, batches, 3, loss, judge, patient=patient)
    return curve, weights.index(float(model.weight.detach())) + 1, rates


def test_a_patient_training_ends_when_nothing_is_gained_and_keeps_its_best_epoch(days: Days) -> None:
    asked = replace(days, cap=30, patience=6)
    curve, kept, rates = planned(asked, [0.1, 0.3, 0.4, *[0.2] * 27], patient=True)
    assert curve.chosen == kept == 3 and len(curve.figures) == 9 and not curve.last_won
    assert curve.row() == {"chosen": 3, "taken": 9, "cap": 30, "last_won": False, "curve": [0.1, 0.3, 0.4, *[0.2] * 6]}
    high = TRAIN.lr
    assert rates[0] == pytest.approx([high / 3, high * 2 / 3, high])  # the first epoch warms up
    assert rates[1:6] == [[high] * 3] * 5, "then the rate stays, however many epochs there may be"
    assert rates[6] == pytest.approx([0.3 * high] * 3), "until gains stop"


def test_a_training_whose_last_epoch_allowed_is_its_best_says_so(days: Days) -> None:
    curve, kept, _ = planned(replace(days, cap=4, patience=2), [0.1, 0.2, 0.15, 0.3], patient=True)
    assert curve.last_won and curve.chosen == kept == 4
    curve, kept, rates = planned(replace(days, epochs=3), [0.1, 0.3, 0.2], patient=False)
    assert not curve.last_won and curve.chosen == kept == 2 and len(rates) == 3
    assert rates[2][-1] < 0.2 * rates[1][0], "half a cosine over all epochs"
    with pytest.raises(ValueError, match="validation after epoch 1: nan found"):
        planned(days, [float("nan")] * 9, patient=True)


@pytest.mark.parametrize("kind", [TowerRetriever, SasRecRetriever])
def test_a_retriever_learns_from_what_was_bought_alone(kind: type[TowerRetriever] | type[SasRecRetriever], days: Days) -> None:
    alone = bought_alone(days.fit)
    assert 0 < len(alone.item_R) < len(days.fit.item_R) and (alone.label_R > 0).all() and len(alone) == len(days.fit)
    for b in range(len(alone)):
        rows = slice(days.fit.row_start[b], days.fit.row_start[b + 1])
        bought = days.fit.item_R[rows][days.fit.label_R[rows] > 0]
        np.testing.assert_array_equal(alone.item_R[alone.row_start[b] : alone.row_start[b + 1]], bought)
    one, other = kind(days), kind(replace(days, fit=alone))
    assert one.curve == other.curve and 1 <= len(one.curve.figures) <= days.cap
    assert one.curve.figures[one.curve.chosen - 1] == max(one.curve.figures)


def test_logistic_regression_ranks_by_all_fields(days: Days, judged: Judged) -> None:
    fit, test = linear(days.spec, days.items, days.fit, judged.requests)
    score_R = logistic(fit, exposed_rows(days.fit).label_R, test, 0)
    rows = exposed_rows(judged.requests)
    assert score_R.shape == rows.label_R.shape and ranking.auc(score_R, rows.label_R) > 0.6


@pytest.mark.parametrize("kind", [TowerRetriever, SasRecRetriever])
def test_a_retriever_lists_distinct_items_and_never_an_excluded_one(
    kind: type[TowerRetriever] | type[SasRecRetriever], days: Days, judged: Judged
) -> None:
    retriever = kind(days)
    for variant in ("all", "new"):
        gone = judged.excluded(variant)
        list_QK = retriever.lists(judged.requests, judged.index_Q, gone, 10)
        assert list_QK.shape == (len(judged.index_Q), 10)
        for row, excluded in zip(list_QK, gone, strict=True):
            real = row[row >= 0]
            assert len(set(real.tolist())) == len(real)
            assert 0 not in real
            assert not np.isin(real, excluded).any()
    recall = np.nanmean(judged.values("all", retriever.lists(judged.requests, judged.index_Q, judged.excluded("all"), 10))["recall@10"])
    assert recall > 10 / ew.ITEMS  # better than ten items at random


def test_the_state_of_a_sequence_depends_on_its_events_alone(days: Days) -> None:
    torch.manual_seed(0)
    model = SasRec(days.spec, days.items).eval()
    history_BH = torch.tensor([[5, 3, 9, 0, 0], [0, 0, 0, 0, 0], [5, 3, 0, 9, 0]])  # newest first; the last has an unknown item between
    sequence_BH = oldest_first(history_BH)
    assert sequence_BH.tolist() == [[0, 0, 9, 3, 5], [0, 0, 0, 0, 0], [0, 0, 9, 3, 5]]
    with torch.no_grad():
        state_BHD = model.states(sequence_BH)
        short_BHD = model.states(sequence_BH[:, 2:])
        changed = sequence_BH.clone()
        changed[0, 4] = 7
        other_BHD = model.states(changed)
    assert torch.isfinite(state_BHD).all()
    torch.testing.assert_close(state_BHD[0, -4:], short_BHD[0, -4:])  # padding says nothing
    torch.testing.assert_close(state_BHD[0], state_BHD[2])
    torch.testing.assert_close(state_BHD[0, :-1], other_BHD[0, :-1])  # and the newest event is not seen by those before it
    assert not torch.allclose(state_BHD[0, -1], other_BHD[0, -1])


def test_plain_methods_give_the_lists_of_the_evaluation(world: ew.World, judged: Judged) -> None:
    asked = br.World(config=world.config, day=ew.DAY, judged=judged, epochs=1, cap=2, patience=1, settings=(None, ()))
    from dig_models.evaluate.lists import Contender, Search

    contender = Contender(name="dig", retriever=judged.retriever, search=Search(beam=5, rerank=20, u2t="exact", path_score="last"))
    lists, _ = recommend_all([contender], judged.requests, judged.index_Q, k=10)
    for method, name in (("popularity", "popularity"), ("own", "own_frequency")):
        found = br.METHODS[method](asked, 0).arrays
        for variant in ("all", "new"):
            np.testing.assert_array_equal(found[variant], lists[variant][name])
        assert found["score_R"].shape == exposed_rows(judged.requests).label_R.shape


def asked_of(world: ew.World, judged: Judged, epochs: int = 1) -> br.World:
    return br.World(config=world.config, day=ew.DAY, judged=judged, epochs=epochs, cap=2, patience=1, settings=(None, ()))


def test_the_time_left_goes_by_the_runs_that_were_made(world: ew.World, judged: Judged, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = asked_of(world, judged, epochs=7)
    br.run_one(asked, "own", 1)
    made = dict.fromkeys(("logistic", "din"), lambda world, seed: br.Made({"score_R": np.zeros(2)}))
    monkeypatch.setattr(br, "METHODS", br.METHODS | made)
    clock = iter(np.arange(100) * 120.0)
    monkeypatch.setattr(br, "time", SimpleNamespace(perf_counter=lambda: float(next(clock))))  # two minutes a run
    told: list[str] = []
    bl.run_all(asked, ["own", "logistic", "din"], [1, 2], told.append)
    assert told == [
        "1/5 own seed 1: there already",
        "2/5 logistic seed 1: 120.0 s; about 6 min left",
        "3/5 logistic seed 2: 120.0 s; about 4 min left",
        "4/5 din seed 1: 120.0 s; about 2 min left",
        "5/5 din seed 2: 120.0 s; about 0 min left",
    ]


def shaken(bundle: Bundle, seed: int) -> Bundle:
    """The model with noise on every weight: another training, which judges otherwise."""
    model = copy.deepcopy(bundle.model)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        for weight in model.parameters():
            weight += 0.3 * weight.std(correction=0) * torch.randn_like(weight)
    return replace(bundle, model=model)


def test_intervals_are_those_of_the_ablation_over_users_and_seeds(world: ew.World, judged: Judged, monkeypatch: pytest.MonkeyPatch) -> None:
    bundles = {(kind, seed): shaken(judged.bundle, at) for at, (kind, seed) in enumerate(product(("dig", "base"), (1, 2)))}
    monkeypatch.setattr(br.World, "bundle", lambda self, kind, seed: bundles[kind, seed])
    asked, methods = asked_of(world, judged), ("dig", "base", "popularity")
    runs = {m: [br.METHODS[m](asked, seed).arrays for seed in ((1,) if m in br.UNSEEDED else (1, 2))] for m in methods}
    found = bt.summary(judged, runs, "dig")
    told = {"train": {"seconds": 1.0, "tokenizer_seconds": 0.0}}
    records = {k: [told | {"seed": s} | judge(world.config, ew.DAY, bundles[k, s], ROWS["dig"]) for s in (1, 2)] for k in ("dig", "base")}
    want = ablation_table.summary(records, world.config.evaluate.confidence)
    gap = want["rows"]["dig"]["differences"]["base"]["rank_auc"]
    assert {f"auc_{name}": gap[name] for name in ("ci", "spread", "by_seed")} | {"auc": gap["mean"]} == found["dig_minus"]["base"]
    users_alone = np.mean([r["samples"]["rank_auc"] for r in records["dig"]], axis=0)
    assert found["methods"]["dig"]["auc_ci"] != pytest.approx(judged.draws.interval(users_alone)), "the luck of the seeds is in it"
    shown, over = want["rows"]["dig"]["figures"], want["over_references"]["popularity"]["differences"]
    for variant, name in product(("all", "new"), ("recall@10", "ndcg@10")):
        assert (
            found["methods"]["dig"][f"{variant}.{name}"] == shown[f"{name}_{variant}"] and len(shown[f"{name}_{variant}"]["by_seed"]) == 2
        )
        assert found["dig_minus"]["popularity"][f"{variant}.{name}"] == over[f"{name}_{variant}"], "once, but beside every seed"
    assert len(found["methods"]["popularity"]["all.recall@10"]["by_seed"]) == 1
    about = {"seeds": {m: len(of) for m, of in runs.items()}, "dataset": "d", "date": "t", "confidence": 0.95, "runs": []}
    text = bt.table(found | about | {"judged_on": {"part": "evaluation", "days": ["a", "b"]}})
    low, high = found["dig_minus"]["base"]["auc_ci"]
    assert f"| base | 2 | {found['methods']['base']['auc']:.4f} [{-high:+.4f}, {-low:+.4f}] |" in text
    assert "In brackets: the method less dig, paired by user and seed, 95% interval over users and seeds." in text


@pytest.mark.slow
def test_runs_are_kept_taken_up_again_and_compared_by_user(world: ew.World, judged: Judged, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = load_bundle(Path(world.config.paths.at("checkpoints")) / ew.DAY.isoformat() / "bundle")
    monkeypatch.setattr(br.World, "bundle", lambda self, kind, seed: bundle)  # training it is another test's matter
    asked = br.World(config=world.config, day=ew.DAY, judged=judged, epochs=1, cap=2, patience=1, settings=(None, ()))
    told: list[str] = []
    found = bl.compare(asked, ["dig", "base", "popularity", "own"], [1, 2], told.append)
    assert len(told) == 6  # two seeds of two methods, and two methods without chance
    assert found["seeds"] == {"dig": 2, "base": 2, "popularity": 1, "own": 1}
    assert found["dig_minus"]["base"]["auc"] == 0.0  # here it is the same network
    assert {"auc", "all.recall@10", "new.ndcg@10"} <= found["methods"]["dig"].keys()
    low, high = found["dig_minus"]["popularity"]["all.recall@10"]["ci"]
    gap = found["methods"]["dig"]["all.recall@10"]["mean"] - found["methods"]["popularity"]["all.recall@10"]["mean"]
    assert low <= gap <= high

    def never(world: br.World, seed: int) -> br.Made:
        raise AssertionError("a finished run was made again")

    monkeypatch.setattr(br, "METHODS", dict.fromkeys(br.METHODS, never))
    told.clear()
    assert bl.compare(asked, ["dig", "base", "popularity", "own"], [1, 2], told.append) == found
    assert told[-1] == "6/6 own seed 1: there already", "nothing was made, so nothing says how long the rest takes"
    assert "| popularity | 1 |" in bt.table(found)
    assert bt.plot(found).axes
    changed = br.World(config=world.config, day=ew.DAY, judged=judged, epochs=2, cap=2, patience=1, settings=(None, ()))
    with pytest.raises(AssertionError, match="made again"):
        br.run_one(changed, "own", 1)


def test_runs_on_validation_days_are_kept_beside_the_others(world: ew.World, judged: Judged) -> None:
    parts = {"evaluation": judged, "validation": Judged.open(world.config, ew.DAY, 40, part="validation")}
    lengths = {}
    for part, of in [*parts.items(), *parts.items()]:
        asked = br.World(config=world.config, day=ew.DAY, judged=of, epochs=9, cap=2, patience=1, settings=(None, ()))
        arrays, _ = br.run_one(asked, "own", 5)
        assert lengths.setdefault(part, len(arrays["score_R"])) == len(arrays["score_R"]) == len(exposed_rows(of.requests).label_R)
    assert lengths["evaluation"] != lengths["validation"]
    folder = Path(world.config.paths.home).resolve() / "benchmarks" / "baselines" / ew.DAY.isoformat()
    keys = {json.loads((at / "own-5.json").read_text())["key"] for at in (folder, folder / "validation")}
    assert len(keys) == 2, "neither took the other's place"


def test_the_file_of_a_run_has_the_curve_and_the_table_says_where_the_last_epoch_won(
    world: ew.World, judged: Judged, days: Days, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(br.World, "days", lambda self, seed: replace(days, seed=seed, epochs=1, cap=self.cap, patience=self.patience))
    asked = br.World(config=world.config, day=ew.DAY, judged=judged, epochs=1, cap=1, patience=1, settings=(None, ()))
    found = bl.compare(asked, ["own", "sasrec", "din"], [4], lambda text: None)
    folder = Path(world.config.paths.home).resolve() / "benchmarks" / "baselines" / ew.DAY.isoformat()
    training = json.loads((folder / "sasrec-4.json").read_text())["training"]
    assert training == {"chosen": 1, "taken": 1, "cap": 1, "last_won": True, "curve": training["curve"]} and len(training["curve"]) == 1
    assert [run["training"] for run in found["runs"]][:2] == [None, training]
    text = bt.table(found, "own")
    assert "sasrec 4: 1 of 1" in text and "The last epoch allowed was the best of sasrec 4, din 4" in text


def test_requests_without_a_purchase_teach_retrievers_nothing(days: Days) -> None:
    useful = with_positives(days.fit)
    for b in useful[:5]:
        assert days.fit.label_R[days.fit.row_start[b] : days.fit.row_start[b + 1]].any()
    assert 0 < len(useful) <= len(days.fit)


def test_the_program_writes_figures_table_and_plot(world: ew.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = load_bundle(Path(world.config.paths.at("checkpoints")) / ew.DAY.isoformat() / "bundle")
    for module in (bl, br):
        monkeypatch.setattr(module, "dig_or_base", lambda *asked: bundle)
    sets = [f"paths.home={world.config.paths.home}", "evaluate.bootstrap=20", *(f"model.{k}={v}" for k, v in ew.SMALL.items())]
    given = [part for one in sets for part in ("--set", one)]
    chosen = ["--seeds", "1", "--methods", "own", "popularity", "base"]
    monkeypatch.setattr(sys, "argv", ["baselines", "--date", ew.DAY.isoformat(), "--results", str(tmp_path), *chosen, *given])
    bl.main()
    found = json.loads((tmp_path / "baselines.json").read_text())
    assert found["own_minus"].keys() == {"popularity", "base"}
    assert "| base | 1 |" in (tmp_path / "baselines.md").read_text()
    assert (tmp_path / "baselines.png").stat().st_size > 10_000
    assert (found["settings"], found["draws"]) == (sets[1:], 20), "a folder decides nothing"
