"""The loop, its checkpoints, its optimizer and its figures, in one process."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score
from tiny import Tiny, same, state, untimed

from dig_models.config import TrainConfig
from dig_models.dig import Dig
from dig_models.train import checkpoint, optim
from dig_models.train.distributed import World, process_group
from dig_models.train.figures import ScoreFigures
from dig_models.train.loop import Record, Told, TrainingDiverged, fit


@pytest.fixture(scope="module")
def trained(tiny: Tiny, world: World) -> tuple[Dig, Record, list[Told]]:
    told: list[Told] = []
    setup = tiny.setup(world, checkpoints="whole")
    return setup.model, fit(setup, world, told.append), told


@pytest.mark.slow
def test_training_twice_with_one_seed_gives_the_same_bits(tiny: Tiny, world: World, trained: tuple[Dig, Record, list[Told]]) -> None:
    again = tiny.setup(world, checkpoints="again")
    record = fit(again, world)
    assert same(state(again.model), state(trained[0])) == []
    assert untimed(record) == untimed(trained[1])


@pytest.mark.slow
def test_another_seed_gives_another_model(tiny: Tiny, world: World, trained: tuple[Dig, Record, list[Told]]) -> None:
    from dataclasses import replace

    other = tiny.setup(world, checkpoints="other")
    fit(replace(other, train=replace(other.train, seed=1)), world)
    assert same(state(other.model), state(trained[0]))


def test_the_record_counts_all_requests_and_both_phases(tiny: Tiny, trained: tuple[Dig, Record, list[Told]]) -> None:
    _, record, told = trained
    assert record.requests == 2 * 5 * 13
    assert record.step == sum(tiny.stream().plan(e).steps for e in range(2))
    warmup = [e for e in record.curve if "recall" not in e]
    joint = [e for e in record.curve if "recall" in e]
    assert warmup and joint and warmup[-1]["step"] == int(0.2 * record.step)
    assert joint[-1]["total"] < joint[0]["total"]
    assert [e["epoch"] for e in record.epochs] == [0, 1]
    assert {"rank_exposed_auc", "recall_exposed_auc", "rank_open_auc", "rank_exposed_calibration"} <= record.epochs[-1].keys()
    assert "tree_collision_rate" in record.codebooks
    assert (told[-1].step, told[-1].epoch, told[-1].eta_s) == (record.step, 2, 0.0)
    assert 0 <= record.wait_share < 1


class Cut(Exception):
    """Stands for a kill."""


SLOW_CUTS = [pytest.param(at, marks=pytest.mark.slow) for at in (3, 12, 17, 25)]


@pytest.mark.parametrize("at", [7, *SLOW_CUTS])
def test_an_interrupted_training_ends_with_the_bits_of_a_whole_one(
    tiny: Tiny, world: World, trained: tuple[Dig, Record, list[Told]], at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dig_models.train import loop

    name, step = f"cut-{at}", loop._Run._step

    def cutting(run: loop._Run, batch: object) -> object:
        if run.record.step == at:
            raise Cut
        return step(run, batch)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_step", cutting)
        with pytest.raises(Cut):
            fit(tiny.setup(world, checkpoints=name), world)
    torch.rand(100)
    resumed = tiny.setup(world, checkpoints=name)
    record = fit(resumed, world)
    assert same(state(resumed.model), state(trained[0])) == []
    assert untimed(record) == untimed(trained[1])


def test_a_finished_training_does_no_step_again(tiny: Tiny, world: World, trained: tuple[Dig, Record, list[Told]]) -> None:
    again, told = tiny.setup(world, checkpoints="whole"), []
    record = fit(again, world, told.append)
    assert told == [] and record.step == trained[1].step
    assert same(state(again.model), state(trained[0])) == []


def test_two_checkpoints_are_kept_and_half_written_or_foreign_ones_are_removed(tiny: Tiny, world: World, trained: object) -> None:
    root = tiny.home / "whole"
    kept = checkpoint.steps(root)
    assert len(kept) == checkpoint.KEEP
    (root / ".writing-00000099").mkdir()
    assert checkpoint.newest(root, "l1", world) == kept[-1]
    assert not (root / ".writing-00000099").exists()
    foreign = tiny.home / "foreign"
    (foreign / "step-00000001").mkdir(parents=True)
    (foreign / "step-00000001" / "meta.json").write_text(json.dumps({"lineage": "another"}))
    assert checkpoint.newest(foreign, "l1", world) is None
    assert checkpoint.steps(foreign) == []


def test_a_checkpoint_restores_optimizer_and_generator(tiny: Tiny, world: World, tmp_path: Path) -> None:
    model = tiny.model()
    optimizer = optim.build(model, TrainConfig())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    before = {k: {n: v.clone() for n, v in s.items()} for k, s in optim.state_tensors(model, optimizer).items()}
    path = checkpoint.save(tmp_path, 5, model, optimizer, world, {"lineage": "x", "loss": 0.1 + 0.2})
    drawn, weights = torch.rand(3), state(model)
    other = tiny.model()
    fresh = optim.build(other, TrainConfig())
    meta = checkpoint.load(path, other, fresh, world)
    assert torch.equal(torch.rand(3), drawn)
    assert meta["loss"] == 0.1 + 0.2
    assert same(state(other), weights) == []
    after = optim.state_tensors(other, fresh)
    assert before.keys() == after.keys() and "rank_bias" in before
    assert all(torch.equal(before[k][n], after[k][n]) for k in before for n in before[k])


def test_w_recall_zero_trains_the_base_ranker_without_sids(tiny: Tiny, world: World) -> None:
    setup = tiny.setup(world, model=tiny.model(loss={"recall": 0.0}), checkpoints="base", epochs=1)
    record = fit(setup, world)
    assert all("recall" not in e for e in record.curve)
    assert "rank_exposed_auc" in record.epochs[-1] and "recall_exposed_auc" not in record.epochs[-1]


def test_moments_of_reset_codes_start_afresh(tiny: Tiny, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from dig_models.train import loop

    seen = []
    move = loop._Run._move_codebooks

    def watched(run: loop._Run) -> None:
        move(run)
        rows = run.model.reset_rows
        if len(rows):
            moments = run.optimizer.state[run.model.quantizer.semantic.weight]
            seen.append(float(moments["exp_avg"][rows].abs().max() + moments["exp_avg_sq"][rows].abs().max()))

    monkeypatch.setattr(loop._Run, "_move_codebooks", watched)
    fit(tiny.setup(world, model=tiny.model(codes=40, dead_code_steps=1), checkpoints="resets", epochs=1), world)
    assert seen and max(seen) == 0.0


def test_a_gradient_that_is_not_finite_stops_training(tiny: Tiny, world: World) -> None:
    model = tiny.model()
    with torch.no_grad():
        model.rank_bias.fill_(float("nan"))
        model.biased.fill_(True)
    with pytest.raises(TrainingDiverged, match=r"step 0.*lower train.lr"):
        fit(tiny.setup(world, model=model, checkpoints="nan"), world)


def test_embedding_tables_learn_faster_and_are_not_decayed(tiny: Tiny) -> None:
    model, config = tiny.model(), TrainConfig(lr=0.01, embedding_lr_scale=4.0, weight_decay=0.1)
    groups = {g["lr"]: (g["weight_decay"], {id(p) for p in g["params"]}) for g in optim.build(model, config).param_groups if g["lr"] > 0.02}
    decay, tables = groups[0.04]
    assert decay == 0.0
    assert {id(model.quantizer.semantic.weight), id(model.item_fields.table.weight), id(model.user_fields.table.weight)} <= tables
    assert not tables & {id(p) for p in [*model.mixer.parameters(), *model.encoder.parameters(), model.rank_bias]}
    every = [p for g in optim.build(model, config).param_groups for p in g["params"]]
    assert len(every) == len({id(p) for p in every}) == len(list(model.parameters()))


def test_the_learning_rate_rises_then_falls_and_depends_on_the_step_alone() -> None:
    factors = [optim.lr_factor(s, 1000) for s in range(1000)]
    assert factors[0] == 1 / 50 and max(factors) == pytest.approx(1.0) and factors.index(max(factors)) in (49, 50)
    assert factors[50:] == sorted(factors[50:], reverse=True)
    assert factors[-1] == pytest.approx(optim.FINAL_LR, abs=1e-3)


def test_figures_agree_with_scikit_learn(world: World) -> None:
    rng = np.random.default_rng(0)
    logit = rng.normal(-2, 1.5, 20_000)
    label = (rng.random(20_000) < 1 / (1 + np.exp(-logit))).astype(float)
    weight = np.where(label > 0, 1.0, 1 / 0.07)
    figures = ScoreFigures()
    for part in np.array_split(np.arange(20_000), 7):
        figures.add(*(torch.tensor(v[part]) for v in (logit, label, weight)))
    found, p = figures.result(world), 1 / (1 + np.exp(-logit))
    assert found["auc"] == pytest.approx(roc_auc_score(label, logit, sample_weight=weight), abs=1e-4)
    assert found["logloss"] == pytest.approx(log_loss(label, p, sample_weight=weight), rel=1e-9)
    assert found["calibration"] == pytest.approx((weight * p).sum() / (weight * label).sum(), rel=1e-9)


def test_figures_without_positives_leave_auc_out(world: World) -> None:
    figures = ScoreFigures()
    assert figures.result(world) == {}
    figures.add(torch.zeros(3), torch.zeros(3), torch.ones(3))
    assert figures.result(world).keys() == {"logloss"}


def test_nccl_without_a_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(device_count=lambda: 0))
    with pytest.raises(ValueError, match=r"train.backend nccl.*gloo"), process_group("nccl", 1):
        pass
