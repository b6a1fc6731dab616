"""DIGER: what the generator's loss reaches, how exploration decays, and what the joint training leaves behind."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dig_models.features import FeatureSpec
from dig_models.generator.examples import Examples
from dig_models.items import ItemTable
from dig_models.quantize.gumbel import SIGMA_GAIN, Exploration
from dig_models.quantize.tree import nearest_codes
from dig_models.tokenizers.content import ContentVectors
from dig_models.tokenizers.diger import Diger
from dig_models.tokenizers.diger_settings import DigerSettings, exploring
from dig_models.tokenizers.diger_train import JointTraining
from dig_models.tokenizers.registry import MissingExtra
from dig_models.tokenizers.rqvae import RqVae, RqVaeSettings
from dig_models.tokenizers.sequences import Sequences
from tests.dig_models.tokenizers.kinds import sequences_of

pytest.importorskip("transformers")

RQVAE = RqVaeSettings(epochs=20, batch=64, hidden=(32,), latent=8)
SMALL = {"layers": 1, "dim": 16, "feed_forward": 32, "heads": 2, "head_dim": 8, "history": 6, "batch": 64, "warmup_steps": 5}
LEVELS, CODES = 3, 8


def settings(**changes: Any) -> DigerSettings:
    return DigerSettings.model_validate({**SMALL, "rqvae": RQVAE, "epochs": 3, **changes})


@pytest.fixture(scope="module")
def sequences(items: ItemTable) -> Sequences:
    return sequences_of(items)


@pytest.fixture(scope="module")
def x_MX(spec: FeatureSpec, items: ItemTable) -> Tensor:
    return torch.from_numpy(ContentVectors.fit(items, spec, seed=1).of(items)[1:])


def joint(spec: FeatureSpec, items: ItemTable, x_MX: Tensor, **changes: Any) -> JointTraining:
    """Ready for its first step."""
    made = RqVae.fit(items, spec, levels=LEVELS, codes=CODES, seed=1, settings=RQVAE)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return JointTraining(made, x_MX, settings(**changes), seed=3)


def batch(sequences: Sequences, training: JointTraining) -> tuple[Tensor, Tensor]:
    one = Examples.every(sequences).take(torch.arange(32))
    return one.history(training.settings.history), one.target_X


@pytest.fixture(scope="module")
def fitted(spec: FeatureSpec, items: ItemTable, sequences: Sequences) -> Diger:
    return Diger.fit(items, spec, levels=LEVELS, codes=CODES, seed=1, sequences=sequences, settings=settings(tokenizer_lr=1e-3, epochs=5))


def test_the_generator_s_loss_reaches_the_tokenizer_and_not_when_detached(
    spec: FeatureSpec, items: ItemTable, x_MX: Tensor, sequences: Sequences
) -> None:
    for gradient in ("inputs", "joint", "detached"):
        training = joint(spec, items, x_MX, gradient=gradient)
        training.optimizer.zero_grad()
        training.losses(*batch(sequences, training)).generator.backward()
        moved = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in (*training.network.encoder.parameters(), training.code_LKD)]
        assert not any(moved) if gradient == "detached" else all(moved), gradient
        assert training.generator.t5.shared.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("gradient", ["inputs", "joint"])
def test_the_gradient_comes_by_the_history_and_by_the_target(spec: FeatureSpec, items: ItemTable, x_MX: Tensor, gradient: str) -> None:
    """An item that is in the history alone, and one that is the target alone, both have a gradient of their own content vector."""
    training = joint(spec, items, x_MX, gradient=gradient)
    training.x_MX = x_MX.clone().requires_grad_()
    training.losses(torch.tensor([[4, 9, 0]]), torch.tensor([17])).generator.backward()
    reached = training.x_MX.grad.abs().sum(1).nonzero().flatten() + 1
    assert reached.tolist() == [4, 9, 17]


def test_a_target_s_weights_are_reached_as_target_and_as_what_the_decoder_reads(spec: FeatureSpec, items: ItemTable, x_MX: Tensor) -> None:
    """Of the loss alone the gradient is ``-log p / L``, whose softmax is ``p``; the decoder reads all codes but the last."""
    grads = {}
    for gradient in ("joint", "inputs"):
        training = joint(spec, items, x_MX, gradient=gradient)
        training.generator.eval()
        weight_NLK = torch.nn.functional.one_hot(torch.tensor([[0, 0, 0], [1, 2, 3], [4, 5, 6], [7, 0, 1]]), CODES).float().requires_grad_()
        training._mixed(weight_NLK, torch.tensor([[1, 2, 0]]), torch.tensor([3])).backward()
        grads[gradient] = weight_NLK.grad
    p_LK = (-grads["joint"][3] * LEVELS).exp()
    assert float(p_LK[-1].sum()) == pytest.approx(1.0, abs=1e-4)
    assert all(abs(float(p_K.sum()) - 1.0) > 1e-3 for p_K in p_LK[:-1])
    assert not grads["inputs"][3, -1].any(), "the last code of a target is read by nothing: it is not moved to what is predicted"
    assert grads["inputs"][3, :-1].abs().sum() > 0
    torch.testing.assert_close(grads["inputs"][:3], grads["joint"][:3])


def test_without_noise_the_mixed_tokens_give_the_loss_of_the_sids(
    spec: FeatureSpec, items: ItemTable, x_MX: Tensor, sequences: Sequences
) -> None:
    training = joint(spec, items, x_MX, exploration="none")
    training.generator.eval()
    history_BH, target_B = batch(sequences, training)
    assert (history_BH == 0).any(), "some histories are shorter than others"
    mixed = training.losses(history_BH, target_B).generator
    torch.testing.assert_close(mixed, training.generator.loss(history_BH, target_B), rtol=1e-4, atol=1e-5)


def test_latents_are_brought_to_unit_scale_without_changing_a_code_or_a_reconstruction(
    spec: FeatureSpec, items: ItemTable, x_MX: Tensor
) -> None:
    made = RqVae.fit(items, spec, levels=LEVELS, codes=CODES, seed=1, settings=RQVAE)
    training = joint(spec, items, x_MX)
    assert np.array_equal(training.rqvae.encode(items), made.encode(items))
    latent_ND = training.rqvae.embed(items)
    assert np.square(latent_ND[1:]).mean() == pytest.approx(1.0, rel=1e-4) != np.square(made.embed(items)[1:]).mean()
    with torch.no_grad():
        same = [each.network.decoder(torch.from_numpy(each.embed(items))) for each in (made, training.rqvae)]
    torch.testing.assert_close(same[0], same[1], rtol=1e-4, atol=1e-5)


def test_reconstruction_and_codes_are_trained_without_the_generator_too(
    spec: FeatureSpec, items: ItemTable, x_MX: Tensor, sequences: Sequences
) -> None:
    training = joint(spec, items, x_MX, gradient="detached")
    training.optimizer.zero_grad()
    losses = training.losses(*batch(sequences, training))
    losses.vq.backward(retain_graph=True)
    assert training.code_LKD.grad.abs().sum() > 0 and training.network.encoder[0].weight.grad.abs().sum() > 0
    training.network.zero_grad()
    losses.recon.backward()
    assert training.network.encoder[0].weight.grad.abs().sum() > 0, "through the soft assignment"
    assert training.network.decoder[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("loss", "offset"), [(4.0, 1.2), (1.0, 1.7)])
def test_sdud_s_sigma_goes_to_the_root_of_the_loss_less_lambda_and_not_below_zero(loss: float, offset: float) -> None:
    made = exploring(settings(exploration="sdud", sdud_sigma=0.5, sdud_lambda=offset), LEVELS, CODES)
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
    for _ in range(400):
        optimizer.zero_grad()
        made.loss(torch.tensor(loss)).backward()
        optimizer.step()
        made.observe(torch.ones(LEVELS, CODES))
    assert made.scale == pytest.approx(max(0.0, loss**0.5 - offset), abs=0.02)


def crowded() -> Exploration:
    made = exploring(settings(exploration="frqud", frqud_ratio=2.0), 1, 4)
    made.frequency_LK = torch.tensor([[0.55, 0.25, 0.1, 0.1]])
    return made


def test_frqud_s_noise_is_there_only_where_the_nearest_code_is_hot() -> None:
    code_LKD = 0.3 * torch.eye(4).unsqueeze(0)
    e_MD = torch.eye(4).repeat_interleave(200, dim=0) * 0.3
    code_ML, _ = crowded().assign(e_MD, code_LKD, torch.Generator().manual_seed(0))
    moved = (code_ML[:, 0] != torch.arange(4).repeat_interleave(200)).view(4, 200).float().mean(1)
    assert moved[0] > 0.3 and not moved[1:].any()


def test_both_decays_scale_the_noise_of_hot_codes_and_none_is_still() -> None:
    e_MD, code_LKD = torch.zeros(100, 4), 0.3 * torch.eye(4).unsqueeze(0)
    logit_MK = torch.zeros(100, 4)
    both = exploring(settings(exploration="both", sdud_sigma=3.0, frqud_ratio=2.0), 1, 4)
    both.frequency_LK = crowded().frequency_LK
    one = crowded()._noise(0, logit_MK, torch.Generator().manual_seed(1))
    torch.testing.assert_close(both._noise(0, logit_MK, torch.Generator().manual_seed(1)), 3.0 * one)
    still = exploring(settings(exploration="none"), 1, 4)
    assert not still.assign(e_MD, code_LKD, torch.Generator().manual_seed(1))[0].any(), "ties go to the lowest number"


def test_gaussian_noise_is_normal_and_constant_noise_does_not_decay() -> None:
    logit_MK = torch.zeros(4000, 4)
    gaussian = exploring(settings(exploration="gaussian", sdud_sigma=2.0), 1, 4)._noise(0, logit_MK, torch.Generator().manual_seed(1))
    assert float(gaussian.mean()) == pytest.approx(0.0, abs=0.06) and float(gaussian.std()) == pytest.approx(2.0, abs=0.05)
    constant = exploring(settings(exploration="constant"), 1, 4)
    noise = constant._noise(0, logit_MK, torch.Generator().manual_seed(1))
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.05) and float(noise.std()) == pytest.approx(np.pi / 6**0.5, abs=0.05)
    assert not list(constant.parameters()) and float(constant.loss(torch.tensor(3.0))) == 0.0


def test_sigma_follows_the_generator_s_loss_in_training_and_frequencies_the_items(
    spec: FeatureSpec, items: ItemTable, x_MX: Tensor, sequences: Sequences
) -> None:
    training = joint(spec, items, x_MX, exploration="both", sdud_sigma=2.0, sdud_lambda=1.7)
    share_LK = training._number(training.code_ML) / len(x_MX)
    torch.testing.assert_close(training.exploration.frequency_LK, share_LK)
    start = training.exploration.scale
    first = training.step(*batch(sequences, training))
    assert float(first.generator) ** 0.5 - 1.7 < start
    for _ in range(5):
        training.step(*batch(sequences, training))
    assert training.exploration.scale < start
    assert not torch.equal(training.exploration.frequency_LK, share_LK)
    torch.testing.assert_close(training.exploration.frequency_LK.sum(1), torch.ones(LEVELS))
    assert training.exploration.sigma is not None and float(training.exploration.sigma.detach()) == training.exploration.scale / SIGMA_GAIN


def test_each_epoch_records_the_share_of_items_whose_sid_it_changed_and_the_generator_reads_the_new_ones(
    spec: FeatureSpec, items: ItemTable, x_MX: Tensor, sequences: Sequences
) -> None:
    training = joint(spec, items, x_MX, tokenizer_lr=3e-3)
    before_ML = training.code_ML.clone()
    training.settings = training.settings.model_copy(update={"epochs": 1})
    (epoch,) = training.run(Examples.every(sequences))
    now_ML = torch.from_numpy(training.rqvae.encode(items)[1:])
    assert epoch.changed == pytest.approx(float((now_ML != before_ML).any(1).float().mean())) and 0.0 < epoch.changed <= 1.0
    tokens = training.generator.tokens
    first_L = torch.tensor([tokens.block(level).start for level in range(LEVELS)])
    assert torch.equal(tokens.token_NL[1:] - first_L, now_ML)
    assert training.refresh() == 0.0


def test_the_joint_training_lowers_the_generator_s_loss_and_keeps_the_codes_alive(fitted: Diger, items: ItemTable) -> None:
    assert len(fitted.epochs) == 5 and fitted.epochs[-1].generator < fitted.epochs[0].generator
    assert all(np.isfinite(epoch).all() for epoch in fitted.epochs) and any(epoch.changed > 0 for epoch in fitted.epochs)
    assert min(level.used for level in fitted.report(items).levels) > CODES / 2
    assert np.array_equal(nearest_codes(fitted.embed(items)[1:], fitted.code_LKD), fitted.encode(items)[1:])
    assert fitted.generator is not None and not fitted.generator.training


@pytest.mark.slow
def test_codes_outlive_a_rate_at_which_targets_that_move_make_them_one(spec: FeatureSpec, items: ItemTable, sequences: Sequences) -> None:
    shared = {}
    for gradient in ("joint", "inputs"):
        fast = settings(gradient=gradient, tokenizer_lr=3e-3, epochs=6)
        made = Diger.fit(items, spec, levels=LEVELS, codes=CODES, seed=1, sequences=sequences, settings=fast)
        shared[gradient] = made.report(items).collision_rate
    assert shared["inputs"] < 0.6 * shared["joint"], shared


def test_noise_is_off_when_items_are_encoded(fitted: Diger, spec: FeatureSpec, items: ItemTable, sequences: Sequences) -> None:
    noisy = settings(exploration="constant", epochs=1)
    made = Diger.fit(items, spec, levels=LEVELS, codes=CODES, seed=1, sequences=sequences, settings=noisy)
    assert np.array_equal(made.encode(items), made.encode(items))
    assert np.array_equal(nearest_codes(made.embed(items)[1:], made.code_LKD), made.encode(items)[1:])


def test_without_transformers_the_extra_is_named(
    spec: FeatureSpec, items: ItemTable, sequences: Sequences, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)  # as if it were not installed
    with pytest.raises(MissingExtra, match=r"the generator needs the package transformers.*dig-pipeline\[generator\]"):
        Diger.fit(items, spec, levels=2, codes=4, seed=0, sequences=sequences, settings=settings())


def test_what_it_cannot_learn_from_is_refused(spec: FeatureSpec, items: ItemTable) -> None:
    shape = {"levels": 2, "codes": 4, "seed": 0, "settings": settings(epochs=1)}
    with pytest.raises(ValueError, match="diger learns from users' sequences and found none: give sequences="):
        Diger.fit(items, spec, **shape)
    with pytest.raises(ValueError, match=r"item row 500 found, the item table has rows 1..120"):
        Diger.fit(items, spec, **shape, sequences=Sequences.of(np.array([0, 0]), np.array([1, 500])))
    with pytest.raises(ValueError, match=r"none of 2 user\(s\) has two events"):
        Diger.fit(items, spec, **shape, sequences=Sequences.of(np.array([0, 1]), np.array([1, 2])))
