"""Items held out by id: what is counted against slow readings, and that nothing but the id of these items is taken away."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import evaluation_world as ew
import numpy as np
import pytest
import torch

from benchmarks import cold_items
from benchmarks.judging import Judged
from dig_models.bundle import Bundle, load_bundle
from jobs.config import load
from jobs.entry import JobError


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[ew.World, Path, Path]:
    """A world, and two small models on it: with ids masked in training, and with all of them read."""
    world = ew.build(tmp_path_factory.mktemp("cold"), "retrieve.rerank=20", "retrieve.beam=10")
    without = Path(world.config.paths.home) / "without"
    shutil.copytree(ew.train(world, item_id_dropout=0.0), without)
    return world, ew.train(world, item_id_dropout=0.5), without


@pytest.fixture
def judged(bundles: tuple[ew.World, Path, Path]) -> Judged:
    """Of a model of its own, for some tests change it."""
    world, masked, _ = bundles
    return Judged.open(world.config, ew.DAY, 25, load_bundle(masked))


def test_agreement_is_that_of_the_whole_prefix() -> None:
    one, other = np.array([[1, 2, 3], [1, 2, 3], [1, 2, 3], [4, 2, 3]]), np.array([[1, 2, 3], [1, 2, 4], [1, 5, 3], [1, 2, 3]])
    assert cold_items.agreement(one, other) == [0.75, 0.5, 0.25], "a code after another prefix is another one"
    codes = np.array([[0, 0], [0, 0], [0, 1], [1, 1]])
    pairs = [(a, b) for a in codes for b in codes]
    slow = [np.mean([np.array_equal(a[:level], b[:level]) for a, b in pairs]) for level in (1, 2)]
    assert cold_items.by_chance(codes) == pytest.approx(slow)


def test_only_items_that_every_training_has_shown_are_held_out(bundles: tuple[ew.World, Path, Path], judged: Judged) -> None:
    both = [judged.bundle, load_bundle(bundles[2])]
    known = [bundle.model.shown.hashes() for bundle in both]
    both[1].model.shown.take(known[1][::2])
    hash_N = both[0].items.hash_N
    for share in (0.1, 0.999):
        item_X = cold_items.held_out(both, share, 3)
        assert set(hash_N[item_X]) <= set(known[0]) & set(known[1][::2]) and (np.diff(item_X) > 0).all() and item_X[0] > 0
        np.testing.assert_array_equal(item_X, cold_items.held_out(both, share, 3))
    assert len(item_X) == round(0.999 * len(set(known[0]) & set(known[1][::2])))
    both[1].model.shown.take(known[1][:0])
    with pytest.raises(JobError, match="no item was shown by the training of every bundle with its id"):
        cold_items.held_out(both, 0.1, 3)


def test_models_of_different_catalogues_are_not_compared(judged: Judged) -> None:
    items = replace(judged.bundle.items, hash_N=judged.bundle.items.hash_N + 1)
    with pytest.raises(JobError, match="the bundles have different catalogues: train both for the same date"):
        cold_items.held_out([judged.bundle, replace(judged.bundle, items=items)], 0.1, 3)


def test_the_figures_are_those_of_a_catalogue_in_which_the_ids_of_the_held_items_are_missing(judged: Judged) -> None:
    bundle = judged.bundle
    item_X = cold_items.held_out([bundle], 0.3, 1)
    known, before_ND = bundle.model.shown.hashes(), bundle.model.encode_catalogue()
    found = cold_items.measure(judged, item_X)
    np.testing.assert_array_equal(bundle.model.shown.hashes(), known)
    torch.testing.assert_close(bundle.model.encode_catalogue(), before_ND, msg="the model knows its items again")

    fields = bundle.items.fields | {"item_id": np.where(np.isin(np.arange(len(bundle.items)), item_X), 0, bundle.items.fields["item_id"])}
    blank = replace(bundle.items, fields=fields)
    bundle.model.set_items(blank)
    after_ND = bundle.model.encode_catalogue()
    rest = np.setdiff1d(np.arange(len(blank)), item_X)
    torch.testing.assert_close(after_ND[rest], before_ND[rest])
    code_XL, own_XL = bundle.model.quantizer.assign(after_ND[item_X]).numpy(), np.asarray(bundle.codes_NL)[item_X]
    slow = [np.mean([np.array_equal(a[:n], b[:n]) for a, b in zip(code_XL, own_XL, strict=True)]) for n in (1, 2, 3)]
    assert found["prefix_agreement"] == pytest.approx(slow) and slow[2] < 1.0
    one, other = before_ND[item_X].numpy().astype(float), after_ND[item_X].numpy().astype(float)
    cosine_X = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    assert found["cosine"] == pytest.approx(cosine_X.mean(), abs=1e-5) and found["cosine"] < 1.0
    assert found["item_id_dropout"] == 0.5


def test_recall_counts_the_held_items_alone(judged: Judged) -> None:
    item_X = cold_items.held_out([judged.bundle], 0.3, 1)
    found = cold_items.recalls(judged, judged.retriever, item_X)
    for variant in ("all", "new"):
        there = [set(one.tolist()) & set(item_X.tolist()) for one in judged.relevant[variant]]
        asked_Q = np.array([bool(one) for one in there])
        assert 0 < asked_Q.sum() < len(asked_Q)
        for of_Q in found[variant].values():
            np.testing.assert_array_equal(np.isfinite(of_Q), asked_Q)
    whole = cold_items.recalls(judged, judged.retriever, np.arange(1, len(judged.bundle.items)))
    assert any(not np.array_equal(whole["all"][name], found["all"][name], equal_nan=True) for name in cold_items.METHODS)
    mine = cold_items.measure(judged, item_X)["recall@10"]["all"]
    assert mine["dig"]["with_id"]["mean"] == pytest.approx(np.nanmean(found["all"]["dig"]))
    assert mine["dig"]["less"]["mean"] == pytest.approx(mine["dig"]["without"]["mean"] - mine["dig"]["with_id"]["mean"])
    assert mine["requests"] == np.isfinite(found["all"]["dig"]).sum()


def test_ids_that_say_nothing_cost_nothing(judged: Judged) -> None:
    bundle = muted(judged.bundle)
    found = cold_items.measure(Judged.open(judged.config, ew.DAY, 25, bundle), cold_items.held_out([bundle], 0.3, 1))
    assert found["prefix_agreement"] == [1.0, 1.0, 1.0] and found["cosine"] == pytest.approx(1.0)
    for variant in ("all", "new"):
        for name in cold_items.METHODS:
            assert found["recall@10"][variant][name]["less"] == {"mean": 0.0, "ci": [0.0, 0.0]}


def muted(bundle: Bundle) -> Bundle:
    """The model with the embedding of the missing id for every id, and the SIDs that follow."""
    start, weight = bundle.model.item_fields.offset["item_id"], bundle.model.item_fields.table.weight
    with torch.no_grad():
        weight[start : start + bundle.items.fields["item_id"].max() + 1] = weight[start].clone()
        code_NL = bundle.model.quantizer.assign(bundle.model.encode_catalogue()).numpy()
    return replace(bundle, codes_NL=code_NL)


def test_the_two_trainings_differ_in_the_dropout_and_their_homes_alone(tmp_path: Path) -> None:
    config = ew.settings(tmp_path)
    made = {home: load(sets=sets, environ={}) for home, sets in cold_items.sets_of(config, [f"paths.home={tmp_path}"]).items()}
    assert [one.model.item_id_dropout for one in made.values()] == [config.model.item_id_dropout, 0.0]
    assert all(one.paths.home == str(home) and one.paths.at("lake") == config.paths.at("lake") for home, one in made.items())
    first, second = made.values()
    assert (first.tokenizer, first.mlflow.tracking_uri) == ("dig", f"sqlite:///{tmp_path}/benchmarks/cold_items/mlflow/mlflow.db")
    assert first.model.model_copy(update={"item_id_dropout": 0.0}) == second.model and first.train == second.train


def program(bundles: tuple[ew.World, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    world = bundles[0]
    sets = [f"paths.home={world.config.paths.home}", "evaluate.bootstrap=20", "retrieve.rerank=20", "retrieve.beam=10"]
    sets += [f"model.{k}={v}" for k, v in ew.SMALL.items()]
    given = [part for one in sets for part in ("--set", one)]
    monkeypatch.setattr(sys, "argv", ["cold_items", "--date", ew.DAY.isoformat(), "--results", str(tmp_path), *given, *options])
    cold_items.main()


def test_the_program_compares_two_models_on_the_same_items(
    bundles: tuple[ew.World, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--requests", "8", "--share", "0.4", "--validation", "--bundles", str(bundles[1]), str(bundles[2]))
    program(bundles, tmp_path, monkeypatch, *options)
    found = json.loads((tmp_path / "cold_items-validation.json").read_text())
    assert [model["item_id_dropout"] for model in found["models"]] == [0.5, 0.0]
    assert "retrieve.beam=10" in found["settings"] and found["draws"] == 20
    assert found["judged_on"]["days"] == ["2017-11-06", "2017-11-08"] and 0 < found["held"] < found["items"] == ew.ITEMS
    written = (tmp_path / "cold_items-validation.txt").read_text()
    assert written == capsys.readouterr().out and f"{found['held']} of {ew.ITEMS} items held out by id" in written
    first = found["models"][0]
    assert f"1 {first['prefix_agreement'][0]:.3f} (by chance {first['by_chance'][0]:.3f})" in written
    assert f"with_id {first['recall@10']['all']['dig']['with_id']['mean']:.4f}" in written


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "model.item_id_dropout=0"], "model.item_id_dropout: 0 is in force, so both models would be the same"),
        (["--share", "1.5"], "1.5 found, expected a share between 0 and 1"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(
    bundles: tuple[ew.World, Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    with pytest.raises(SystemExit, match="2"):
        program(bundles, tmp_path, monkeypatch, *options)
    assert message in capsys.readouterr().err
    assert not (Path(bundles[0].config.paths.home) / "benchmarks").exists()
