"""The autoencoder beyond the contract: published settings, codes that the loss moves, LETTER's regularisers, and what a fit tells."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from dig_models.evaluate.sid_quality import measure
from dig_models.features import FeatureSpec
from dig_models.items import ItemTable
from dig_models.tokenizers.given import GivenVectors
from dig_models.tokenizers.letter import alignment_loss, code_clusters, diversity_loss
from dig_models.tokenizers.rqvae import PRESETS, RqVae, RqVaeSettings, collapsed
from tests.dig_models.tokenizers.kinds import sequences_of

SMALL = {"hidden": (32,), "latent": 8, "batch": 64, "epochs": 30}


def fit(items: ItemTable, spec: FeatureSpec, settings: RqVaeSettings, **more: Any) -> RqVae:
    return RqVae.fit(items, spec, levels=2, codes=16, seed=1, settings=settings, **more)


def test_a_preset_has_the_published_constants_and_takes_changes() -> None:
    tiger = RqVaeSettings.preset("tiger", epochs=7)
    assert (tiger.hidden, tiger.latent, tiger.activation, tiger.beta, tiger.batch) == ((512, 256, 128), 32, "relu", 0.25, 1024)
    assert (tiger.optimizer, tiger.lr, tiger.start, tiger.codebook, tiger.epochs) == ("adagrad", 0.4, "batch", "gradient", 7)
    assert tiger.diversity == tiger.align == 0.0
    letter = RqVaeSettings.preset("letter")
    assert (letter.diversity, letter.clusters, letter.align, letter.optimizer, letter.lr) == (1e-4, 10, 0.01, "adamw", 1e-3)
    assert RqVaeSettings.preset("small") == RqVaeSettings()


def test_what_is_no_preset_or_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=f"preset 'large': unknown, expected one of {', '.join(PRESETS)}"):
        RqVaeSettings.preset("large")
    with pytest.raises(ValidationError, match="diversity > 0 needs codebook: gradient"):
        RqVaeSettings(diversity=0.1)
    with pytest.raises(ValidationError, match="hidden"):
        RqVaeSettings(hidden=())


@pytest.mark.parametrize("name", [pytest.param(p, marks=pytest.mark.slow) if p == "tiger" else p for p in sorted(PRESETS)])
def test_every_preset_learns_and_comes_back_with_its_settings(name: str, spec: FeatureSpec, items: ItemTable, tmp_path: Path) -> None:
    epochs = 100 if name == "tiger" else 20  # Adagrad with what it sums up from the start is slow to begin with
    settings = RqVaeSettings.preset(name, epochs=epochs, batch=32, clusters=4)
    made = fit(items, spec, settings, sequences=sequences_of(items))
    x_MX = torch.from_numpy(made.content.of(items)[1:])
    with torch.no_grad():
        quantized_MLD = made.network.quantizer.quantized(torch.from_numpy(made.encode(items)[1:]))
        left = F.mse_loss(made.network.decoder(quantized_MLD.sum(1)), x_MX)
    assert float(left) < 0.97 * float((x_MX - x_MX.mean(0)).square().mean()), "it says more of an item than the mean of all"
    made.save(tmp_path)
    loaded = RqVae.load(tmp_path, spec)
    assert loaded.settings == settings and loaded.quality is None
    assert np.array_equal(loaded.encode(items), made.encode(items))


def test_codes_start_from_the_catalogue_or_from_the_first_batch(spec: FeatureSpec, items: ItemTable) -> None:
    """A batch of eight items has no more than eight centres."""
    still = {"hidden": (32,), "latent": 8, "batch": 8, "epochs": 1, "lr": 1e-9, "codebook": "gradient", "dead_code_steps": 0}
    used = {}
    for start in ("catalogue", "batch"):
        made = fit(items, spec, RqVaeSettings.model_validate(still | {"start": start}))
        used[start] = len(np.unique(made.code_LKD[0].round(4), axis=0))
    assert used["batch"] <= 8 < used["catalogue"]


def test_the_loss_moves_codes_to_the_means_of_their_items(spec: FeatureSpec, items: ItemTable) -> None:
    """What gradients settle at is what averages settle at."""
    for codebook in ("ema", "gradient"):
        made = fit(items, spec, RqVaeSettings(**SMALL | {"epochs": 150, "lr": 3e-3}, codebook=codebook))  # type: ignore[arg-type]
        code_N, z_ND = made.encode(items)[1:, 0], made.embed(items)[1:]
        mean_KD = np.stack([z_ND[code_N == k].mean(0) for k in np.unique(code_N)])
        off = np.square(made.code_LKD[0][np.unique(code_N)] - mean_KD).sum(1).mean()
        assert off < 0.1 * np.square(z_ND - z_ND.mean(0)).sum(1).mean(), codebook


def test_a_fit_tells_the_use_of_every_level_and_warns_of_one_that_collapsed(
    spec: FeatureSpec, items: ItemTable, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="dig_models.tokenizers.rqvae"):
        made = fit(items, spec, RqVaeSettings(**SMALL))  # type: ignore[arg-type]
    assert made.quality == measure(made.encode(items)[1:], 16) and collapsed(made.quality) == ()
    assert f"{made.quality.levels[0].used} of 16 (perplexity" in caplog.text and "WARNING" not in caplog.text
    three = np.eye(3)[np.arange(len(items) - 1) % 3]
    content = GivenVectors.of_vectors(items, spec, items.hash_N[1:], three, seed=0)
    with caplog.at_level(logging.INFO, logger="dig_models.tokenizers.rqvae"):
        poor = fit(items, spec, RqVaeSettings(**SMALL | {"epochs": 2}), content=content)  # type: ignore[arg-type]
    assert poor.quality is not None and collapsed(poor.quality) == (1, 2)
    assert "level(s) 1, 2 use half of their codes or fewer" in caplog.text


def test_the_diversity_loss_is_that_of_the_paper() -> None:
    """Two clusters of two codes: the other of one's own cluster against all others, oneself left out."""
    code_LKD = torch.tensor([[[1.0, 0.0], [0.8, 0.1], [-1.0, 0.3], [0.2, -0.9]]], requires_grad=True)
    cluster_LK = torch.tensor([[0, 0, 1, 1]])
    found = diversity_loss(code_LKD, torch.tensor([[0], [3], [3]]), cluster_LK, torch.Generator())
    dots = (code_LKD[0] @ code_LKD[0].t()).detach().numpy()

    def one(own: int, friend: int) -> float:
        others = [j for j in range(4) if j != own]
        return float(-np.log(np.exp(dots[own, friend]) / np.exp(dots[own, others]).sum()))

    assert float(found.detach()) == pytest.approx((one(0, 1) + 2 * one(3, 2)) / 3, rel=1e-5)
    found.backward()
    assert code_LKD.grad is not None and bool((code_LKD.grad != 0).all())
    alone = diversity_loss(code_LKD, torch.tensor([[0]]), torch.tensor([[0, 1, 2, 3]]), torch.Generator())
    assert float(alone.detach()) == 0.0


def test_clusters_of_codes_are_of_one_size_and_none_leaves_a_code_alone() -> None:
    code_LKD = torch.randn(2, 20, 4, generator=torch.Generator().manual_seed(0))
    cluster_LK = code_clusters(code_LKD, 5, seed=0)
    assert cluster_LK.shape == (2, 20)
    assert all(torch.bincount(cluster_K, minlength=5).tolist() == [4] * 5 for cluster_K in cluster_LK)
    assert torch.equal(cluster_LK, code_clusters(code_LKD, 5, seed=0))
    with pytest.raises(ValueError, match="11 clusters of 20 codes: at most 10 expected"):
        code_clusters(code_LKD, 11, seed=0)


def test_diversity_spreads_items_over_the_codes(spec: FeatureSpec, items: ItemTable) -> None:
    with_it, without = (
        fit(items, spec, RqVaeSettings(**SMALL, codebook="gradient", diversity=weight, clusters=4))  # type: ignore[arg-type]
        for weight in (0.3, 0.0)
    )
    assert with_it.quality is not None and without.quality is not None
    assert with_it.quality.levels[0].gini_all < without.quality.levels[0].gini_all


def test_the_alignment_loss_is_that_of_the_paper() -> None:
    q_MD, h_MD = torch.tensor([[1.0, 0.5], [-0.3, 2.0]]), torch.tensor([[0.2, 0.1], [1.0, -1.0]])
    dots = (q_MD @ h_MD.t()).numpy()
    wanted = np.mean([-dots[i, i] + np.log(np.exp(dots[i]).sum()) for i in range(2)])
    assert float(alignment_loss(q_MD, h_MD)) == pytest.approx(float(wanted), rel=1e-6)


def test_alignment_brings_items_under_one_code_that_users_treat_alike(spec: FeatureSpec, items: ItemTable) -> None:
    """Groups that no field says: with alignment items of one group share a first code more often."""
    group = np.arange(len(items) - 1) % 4
    toward = np.random.default_rng(0).normal(size=(4, 8))
    collaborative = GivenVectors.of_vectors(items, spec, items.hash_N[1:], toward[group], seed=0)
    same = group[:, None] == group

    def together(align: float) -> float:
        made = fit(items, spec, RqVaeSettings(**SMALL | {"epochs": 60}, align=align), collaborative=collaborative)  # type: ignore[arg-type]
        code_N = made.encode(items)[1:, 0]
        shared = code_N[:, None] == code_N
        np.fill_diagonal(shared, False)
        return float(shared[same].mean() / shared[~same].mean())

    assert together(3.0) > 2 * together(0.0)


def test_alignment_without_vectors_or_with_others_is_refused(spec: FeatureSpec, items: ItemTable) -> None:
    settings = RqVaeSettings(**SMALL, align=0.1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs collaborative vectors, or sequences to make them of"):
        fit(items, spec, settings)
    wide = GivenVectors.of_vectors(items, spec, items.hash_N[1:], np.random.default_rng(0).normal(size=(len(items) - 1, 12)), seed=0)
    with pytest.raises(ValueError, match="collaborative vectors of width 12, the latent has 8"):
        fit(items, spec, settings, collaborative=wide)
