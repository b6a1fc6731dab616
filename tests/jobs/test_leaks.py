"""Nothing that lies at or after a request lifts any figure, on either path; and the tests would see it if it did."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import evaluation_world as ew
import leak_world as lw
import numpy as np
import pytest
import torch

from benchmarks import negatives
from dig_models import u2t
from dig_models.affinity import Neighbours
from dig_models.bundle import Bundle, load_bundle
from dig_models.evaluate import bootstrap, ranking
from dig_models.evaluate.scoring import Scores, exposed_rows, score_rows
from dig_models.features import SECONDS_PER_DAY, SOURCE_EXPOSED, hash_id
from dig_models.retrieve.rerank import Retriever
from dig_models.train.data import RequestTable, collate, histories, pair_lookup
from jobs import registry
from jobs.dates import days_between
from jobs.evaluate import evaluate

pytestmark = pytest.mark.slow
PATHS = ("rank_R", "exact_R", "mlp_R")
CONFIDENCE = 0.99
DRAWS = (negatives.UNIFORM, negatives.AS_TRAINED)


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
    assert early["ranking"]["recall_path"]["exact"]["auc"] > plain["ranking"]["recall_path"]["exact"]["auc"] + 0.03
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


@pytest.fixture(scope="module")
def nothing_to_know(tmp_path_factory: pytest.TempPathFactory) -> ew.World:
    """Many users, because they share the items: what a network makes of few purchases by chance must average out over users."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ew, "USERS", 200)
        return lw.build(tmp_path_factory.mktemp("nothing"), lw.shuffled_within_user(0))


def by_user(value_R: np.ndarray, label_R: np.ndarray, user_R: np.ndarray) -> dict[int, float]:
    """AUC inside each user who has both labels."""
    users = ranking.auc_by_group(value_R, label_R, user_R, np.ones(len(label_R)))
    return {int(u): float(auc) for u, auc in zip(users.group_G, users.auc_G, strict=True) if np.isfinite(auc)}


def interval_of(values: list[float]) -> tuple[float, float]:
    """Bootstrap interval over users of a mean."""
    return bootstrap.interval((bootstrap.draws(len(values), 1000, 0) @ np.array(values)) / len(values), CONFIDENCE)


@torch.no_grad()
def taught(world: ew.World, bundle: Bundle, requests: RequestTable, teacher: str, most: int = 200) -> dict[str, dict[str, list[Any]]]:
    """Held-out batches as training draws them, scored with the crosses of prefixes that the teacher gives, and with the exact ones.

    A batch is one request, so that most buckets below the first level hold few rows, as they do in a real catalogue.

    Returns:
        For ``exposed`` and ``open`` rows, ``gap`` and ``auc``: inside each user, level by level, the AUC by the teacher's crosses, and how
        far it lies above that by the exact ones.
    """
    model, code_NL = bundle.model.eval(), torch.from_numpy(np.asarray(bundle.codes_NL, dtype=np.int64))
    key_NL = u2t.bucket_keys(code_NL, model.config.codes, model.config.bucket_key)
    buckets = u2t.CatalogueBuckets.of(code_NL, model.config.codes, model.config.bucket_key)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("teacher", "exact", "label", "user", "open")}
    for b in np.random.default_rng(0).permutation(len(requests))[:most]:
        batch = collate(
            requests, np.array([b]), spec=world.spec, items=world.items, lookup=pair_lookup(world.store, world.spec), keep_rate=1.0,
            random_negatives=15, rng=np.random.default_rng([5, b]),
        )  # fmt: skip
        users, domain_R = model.user_side(batch), (batch.source_R != SOURCE_EXPOSED).long()
        prefix_RLD = model.prefix_embeddings(code_NL[batch.item_R])
        shown = {
            "teacher": negatives.taught(batch, key_NL, buckets, bundle, world.store, int(b))[teacher],
            "exact": negatives.exact_means(batch, world.store, world.spec, key_NL.numpy()),
        }
        for name, mean_RLC in shown.items():
            levels = range(mean_RLC.shape[1])
            of = [model.recall_logit(users, batch.request_R, prefix_RLD[:, v], torch.from_numpy(mean_RLC[:, v]), domain_R) for v in levels]
            parts[name].append(torch.stack(of, dim=1).double().numpy())
        parts["label"].append(batch.label_R.double().numpy())
        parts["user"].append(np.full(batch.rows, requests.user_B[b]))
        parts["open"].append(domain_R.numpy() == 1)
    whole = {name: np.concatenate(of) for name, of in parts.items()}
    found: dict[str, dict[str, list[Any]]] = {}
    for domain, rows in (("exposed", ~whole["open"]), ("open", whole["open"])):
        found[domain] = {"gap": [], "auc": []}
        for level in range(whole["exact"].shape[1]):
            label_R, user_R = whole["label"][rows], whole["user"][rows]
            mine, true = (by_user(whole[name][rows, level], label_R, user_R) for name in ("teacher", "exact"))
            found[domain]["auc"].append(interval_of(list(mine.values())))
            found[domain]["gap"].append(interval_of([mine[u] - true[u] for u in mine]))
    return found


@pytest.mark.parametrize("teacher", ["catalogue_sample", "batch_mean", "leave_one_out"])
def test_labels_shuffled_within_users_leave_nothing_to_know_on_either_path(
    nothing_to_know: ew.World, monkeypatch: pytest.MonkeyPatch, teacher: str
) -> None:
    world = nothing_to_know
    monkeypatch.setattr(ew, "SMALL", ew.SMALL | {"u2t_teacher": teacher, "loss": {"recall": 0.5}})  # sixty steps are few
    ew.train(world, steps=60)
    bundle, requests = bundle_of(world), judged(world)
    assert bundle.model.config.u2t_teacher == teacher
    honest = scored(world, bundle, requests)
    for path in PATHS:
        auc, (low, high) = within_users(getattr(honest, path), requests)
        assert low <= 0.5 <= high, f"{teacher}, {path}: {auc:.3f} in [{low:.3f}, {high:.3f}]"
        assert high - low < 0.12, "the interval is too wide to see anything"
    # What serves never asks the teacher, so the paths above cannot show what it gives away in training: held-out rows scored by it can.
    found = taught(world, bundle, requests, teacher)
    if teacher == "catalogue_sample":
        for level, (low, high) in enumerate(found["exposed"]["auc"]):
            assert low <= 0.5 <= high, f"exposed rows, level {level + 1}: [{low:.3f}, {high:.3f}]"
        for level, (low, _) in enumerate(found["open"]["gap"]):
            assert low <= 0.0, f"open rows, level {level + 1}: the teacher tells what the exact mean does not, by {low:.3f} at least"
    elif teacher == "batch_mean":
        assert max(low for low, _ in found["open"]["gap"]) > 0.02, f"the leak is not seen: {found['open']}"


def test_a_matrix_of_what_went_together_makes_nothing_of_shuffled_labels(nothing_to_know: ew.World) -> None:
    world = nothing_to_know
    first = world.config.run_window(ew.DAY).eval_first - timedelta(days=7)
    before = world.events[world.events[:, 2] < ew.epoch_day(first) * SECONDS_PER_DAY]
    user_E, item_E = (np.array([hash_id(f"{name}-{i}") for i in before[:, at]]) for at, name in enumerate(("user", "item")))
    ew.train(world, steps=60, neighbours=Neighbours.fit(world.items.hash_N[1:], user_E, item_E, ridge=5.0, keep=100))
    bundle, requests = bundle_of(world), judged(world)
    affinity, some = bundle.model.affinity, np.arange(9)
    assert affinity is not None
    assert affinity.catalogue(histories(requests, some, world.spec.history_length)[0]).any()
    honest = scored(world, bundle, requests)
    for path in PATHS:
        auc, (low, high) = within_users(getattr(honest, path), requests)
        assert low <= 0.5 <= high, f"{path}: {auc:.3f} in [{low:.3f}, {high:.3f}]"


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
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the item's own zeros say, in batches so small that most buckets hold one row, as they do in a real catalogue."""
    world = ew.build(tmp_path_factory.mktemp("negatives"), "train.requests_per_batch=1", "train.random_negatives=10")
    ew.train(world, lineage="ab" * 32)
    assert world.config.train.history_negatives == 10, "what training draws by default is to be measured"
    return negatives.measure(world.config, bundle_of(world), judged(world), world.store, most=60)


@pytest.mark.parametrize("draws", DRAWS)
def test_the_default_teacher_tells_negatives_apart_as_well_as_serving_will_and_no_better(told: dict[str, Any], draws: str) -> None:
    found = told[draws]
    item = found["keys"]["item"]
    assert item["never_met"]["negatives"] > item["never_met"]["open_positives"]
    for level, exact in enumerate(item["retrieval_path"]["exact"]):
        assert item["retrieval_path"]["catalogue_sample"][level] == pytest.approx(exact, abs=0.05)
        assert found["own_crosses"]["catalogue_sample"][level] == pytest.approx(found["own_crosses"]["exact"][level], abs=0.05)


def test_uniform_draws_are_mostly_never_met_and_told_apart_by_that(told: dict[str, Any]) -> None:
    item = told["uniform"]["keys"]["item"]
    assert item["never_met"]["negatives"] > 0.5 > item["never_met"]["open_positives"]
    assert item["ranking_path"]["open"] > 0.75  # serving knows these zeros too
    assert told["uniform"]["rows"]["negatives"] >= 600
    assert told["lineage"] == "ab" * 32 and told["requests"] == 60


def test_history_negatives_have_crosses_that_are_not_zero_so_zeros_tell_less_apart(told: dict[str, Any]) -> None:
    uniform, trained = told["uniform"], told["as_trained"]
    assert (uniform["drawn"]["history_negatives"], trained["drawn"]["history_negatives"]) == (0, 10)
    assert trained["rows"]["open_positives"] == uniform["rows"]["open_positives"]
    # The uniform draws are the same in both; of the further ones only what was bought before the longest window counts as never met.
    further = trained["rows"]["negatives"] - uniform["rows"]["negatives"]
    never = [of["keys"]["item"]["never_met"]["negatives"] * of["rows"]["negatives"] for of in (uniform, trained)]
    assert further > 300 and never[0] <= never[1] < never[0] + 0.02 * further
    was, now = (of["keys"]["item"] for of in (uniform, trained))
    assert now["ranking_path"]["open"] < was["ranking_path"]["open"] - 0.1
    assert now["retrieval_path"]["exact"][-1] < was["retrieval_path"]["exact"][-1] - 0.1


def test_a_teacher_that_averages_the_batch_shows_rows_their_own_crosses_more_often_than_serving_will(told: dict[str, Any]) -> None:
    for draws in DRAWS:
        assert told[draws]["own_crosses"]["batch_mean"][-1] > told[draws]["own_crosses"]["exact"][-1] + 0.1
