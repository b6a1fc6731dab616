"""Gumbel exploration: which codes are taken, what the gradient reaches, and how the noise decays."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dig_models.config import ModelConfig
from dig_models.quantize.gumbel import SIGMA_GAIN, GumbelExploration
from dig_models.quantize.residual import ResidualQuantizer

LEVELS, CODES, DIM = 2, 6, 4


def quantizer(seed: int = 0) -> ResidualQuantizer:
    generator = torch.Generator().manual_seed(seed)
    made = ResidualQuantizer(LEVELS, CODES, DIM, 0.9, 5)
    made.start(torch.randn(LEVELS, CODES, DIM, generator=generator), torch.ones(LEVELS, CODES))
    with torch.no_grad():
        made.semantic.weight.copy_(torch.randn(LEVELS * CODES, DIM, generator=generator))
    return made


def exploration(**changes: object) -> GumbelExploration:
    shape = {"dim": DIM, "levels": LEVELS, "codes": CODES, "heads": 2, "assignment": "gumbel_sdud", "gumbel_tau": 1.5}
    return GumbelExploration(ModelConfig.model_validate({**shape, **changes}))


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def embeddings(count: int = 30) -> torch.Tensor:
    return torch.randn(count, DIM, generator=draw(7))


def test_without_noise_the_codes_are_the_nearest_and_the_prefixes_the_semantic_rows() -> None:
    made, e_MD = quantizer(), embeddings()
    code_ML, prefix_MLD = exploration(sdud_sigma=0.0).explore(e_MD, made, draw(0))
    assert torch.equal(code_ML, made.assign(e_MD))
    assert torch.allclose(prefix_MLD, made.prefixes(code_ML), atol=1e-6)


def test_with_noise_other_codes_are_taken_and_the_prefixes_are_theirs() -> None:
    made, e_MD = quantizer(), embeddings()
    explore = exploration(sdud_sigma=3.0).explore
    one, prefix_MLD = explore(e_MD, made, draw(0))
    assert torch.equal(one, explore(e_MD, made, draw(0))[0])
    assert not torch.equal(one, explore(e_MD, made, draw(1))[0])
    assert not torch.equal(one, made.assign(e_MD))
    assert torch.allclose(prefix_MLD, made.prefixes(one), atol=1e-5)


def test_noise_takes_codes_with_the_probabilities_of_the_softmax() -> None:
    """Gumbel-max: argmax of logits plus Gumbel noise is a draw from their softmax."""
    made = quantizer()
    e_MD = 0.5 * embeddings(1).expand(20_000, DIM)
    code_ML, _ = exploration(sdud_sigma=1.0).explore(e_MD, made, draw(3))
    share_K = torch.bincount(code_ML[:, 0], minlength=CODES) / len(e_MD)
    expected_K = (-(e_MD[:1] - made.code_LKD[0]).square().sum(1)).softmax(0)
    assert torch.allclose(share_K, expected_K, atol=0.015)


def test_the_gradient_is_that_of_the_soft_embedding() -> None:
    """Against a slow reading: sum of soft weights times semantic rows, level by level, with the codes taken held."""
    made, noise_free = quantizer(), exploration(sdud_sigma=0.0)
    e_MD = embeddings(5).requires_grad_()
    code_ML, prefix_MLD = noise_free.explore(e_MD, made, draw(0))
    weight_MLD = torch.randn(prefix_MLD.shape, generator=draw(9))
    (found,) = torch.autograd.grad((prefix_MLD * weight_MLD).sum(), e_MD)
    again = e_MD.detach().clone().requires_grad_()
    table_LKD, residual, tokens = made.semantic.weight.detach().view(LEVELS, CODES, DIM), again, []
    for level in range(LEVELS):
        distance = torch.stack([(residual - c).square().sum(1) for c in made.code_LKD[level]], dim=1)
        soft = torch.softmax(-distance / 1.5, dim=1)
        tokens.append(soft @ table_LKD[level])
        residual = residual - made.code_LKD[level][code_ML[:, level]]
    (expected,) = torch.autograd.grad((torch.stack(tokens, 1).cumsum(1) * weight_MLD).sum(), again)
    assert torch.allclose(found, expected, atol=1e-5)
    assert float(found.abs().sum()) > 0


def test_the_detached_variant_explores_without_a_gradient_to_the_encoder() -> None:
    e_MD = embeddings().requires_grad_()
    made = quantizer()
    code_ML, prefix_MLD = exploration(sdud_sigma=3.0, gumbel_gradient=False).explore(e_MD, made, draw(0))
    assert not torch.equal(code_ML, made.assign(e_MD.detach()))
    prefix_MLD.sum().backward()
    assert e_MD.grad is None or float(e_MD.grad.abs().sum()) == 0
    assert made.semantic.weight.grad is not None and float(made.semantic.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize(("recall", "expected"), [(1.0, 0.6), (0.25, 0.1), (0.04, 0.0)])
def test_sigma_comes_to_rest_where_the_paper_says(recall: float, expected: float) -> None:
    one = exploration(sdud_sigma=0.5, sdud_lambda=0.4)
    optimizer = torch.optim.Adam(one.parameters(), lr=2e-3)
    for _ in range(600):
        optimizer.zero_grad()
        one.loss(torch.tensor(recall)).backward()
        optimizer.step()
        one.observe(torch.ones(LEVELS, CODES))
    assert one.scale == pytest.approx(expected, abs=0.02)
    assert one.sigma is not None and float(one.sigma.detach()) >= 0


def test_the_noise_loss_is_the_published_one_and_leaves_the_recall_loss_alone() -> None:
    one = exploration(sdud_sigma=0.3, sdud_lambda=0.5)
    recall = torch.tensor(0.7, requires_grad=True)
    loss = one.loss(recall)
    assert float(loss.detach()) == pytest.approx(0.7 / (2 * 0.8**2) + np.log(0.8), rel=1e-5)
    loss.backward()
    assert recall.grad is None
    assert one.sigma is not None and float(one.sigma.detach()) * SIGMA_GAIN == pytest.approx(0.3)


def test_only_items_of_crowded_codes_explore() -> None:
    made, e_MD = quantizer(), embeddings(200)
    one = exploration(assignment="gumbel_frqud", frqud_ratio=1.5)
    nearest = made.assign(e_MD)
    code_ML, _ = one.explore(e_MD, made, draw(0))
    assert torch.equal(code_ML, nearest), "nothing is crowded yet"
    crowded = int(nearest[:, 0].mode().values)
    one.frequency_LK[0].fill_(0.05)
    one.frequency_LK[0, crowded] = 0.75
    code_ML, _ = one.explore(e_MD, made, draw(0))
    own = nearest[:, 0] == crowded
    assert torch.equal(code_ML[~own], nearest[~own])
    assert not torch.equal(code_ML[own, 0], nearest[own, 0])


def test_frequencies_follow_the_catalogue_and_the_names_of_codes() -> None:
    one = exploration(assignment="gumbel_frqud")
    number_LK = torch.tensor([[10.0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 10.0]])
    for _ in range(500):
        one.observe(number_LK)
    assert torch.allclose(one.frequency_LK, number_LK / 10, atol=0.01)
    label_LK = torch.tensor([[3, 1, 2, 0, 4, 5], [0, 1, 2, 3, 5, 4]])
    one.rename(label_LK)
    assert int(one.frequency_LK[0].argmax()) == 3 and int(one.frequency_LK[1].argmax()) == 4
