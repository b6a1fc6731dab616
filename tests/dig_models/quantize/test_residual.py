"""Residual quantizer: assignment, EMA, resets, usage."""

from __future__ import annotations

import numpy as np
import torch

from dig_models.quantize.residual import ResidualQuantizer, collision_rate, sid_number, usage, zero_moments


def _quantizer(levels: int = 3, codes: int = 5, dim: int = 4, decay: float = 0.9, dead_after: int = 3) -> ResidualQuantizer:
    quantizer = ResidualQuantizer(levels, codes, dim, decay, dead_after)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(levels, codes, dim, generator=generator) * torch.tensor([1.0, 0.5, 0.25])[:levels, None, None]
    quantizer.start(start, torch.full((levels, codes), 6.0))
    return quantizer


def _embeddings(items: int = 30, dim: int = 4) -> torch.Tensor:
    return torch.randn(items, dim, generator=torch.Generator().manual_seed(1))


def test_assignment_takes_the_nearest_code_of_each_residual() -> None:
    quantizer, e = _quantizer(), _embeddings()
    code = quantizer.assign(e)
    residuals = quantizer.residuals(e, code)
    for m in range(len(e)):
        residual = e[m].double().numpy()
        for level in range(3):
            vectors = quantizer.code_LKD[level].double().numpy()
            assert np.allclose(residuals[m, level].numpy(), residual, atol=1e-5)
            nearest = int(np.linalg.norm(residual - vectors, axis=1).argmin())
            assert int(code[m, level]) == nearest
            residual = residual - vectors[nearest]


def test_prefix_embeddings_are_running_sums_of_the_semantic_table() -> None:
    quantizer = _quantizer()
    torch.nn.init.normal_(quantizer.semantic.weight)
    code = torch.tensor([[1, 4, 0], [2, 2, 3]])
    found = quantizer.prefixes(code)
    table = quantizer.semantic.weight.view(3, 5, 4)
    for m in range(2):
        total = torch.zeros(4)
        for level in range(3):
            total = total + table[level, code[m, level]]
            assert torch.allclose(found[m, level], total)
    assert torch.allclose(quantizer.prefixes(code[:, :2]), found[:, :2])


def test_semantic_rows_start_as_copies_of_the_codes() -> None:
    quantizer = _quantizer()
    assert torch.equal(quantizer.semantic.weight.view(3, 5, 4), quantizer.code_LKD)


def test_codes_move_by_exponential_averages_of_counts_and_sums() -> None:
    quantizer, e = _quantizer(decay=0.9), _embeddings()
    code = quantizer.assign(e)
    count, total = quantizer.count_LK.double().numpy(), quantizer.sum_LKD.double().numpy()
    residuals = quantizer.residuals(e, code).double().numpy()
    number = quantizer.update(e, code)
    for level in range(3):
        for k in range(5):
            own = [m for m in range(len(e)) if int(code[m, level]) == k]
            n = 0.9 * count[level, k] + 0.1 * len(own)
            s = 0.9 * total[level, k] + 0.1 * residuals[own, level].sum(0)
            assert int(number[level, k]) == len(own)
            assert np.allclose(quantizer.code_LKD[level, k].numpy(), s / n, atol=1e-5)


def test_a_code_without_items_keeps_its_vector() -> None:
    quantizer = _quantizer()
    before = quantizer.code_LKD.clone()
    code = torch.zeros((4, 3), dtype=torch.int64)
    for _ in range(2000):
        quantizer.update(torch.zeros(4, 4), code)
    assert torch.allclose(quantizer.code_LKD[:, 1:], before[:, 1:], atol=1e-5)
    assert bool(torch.isfinite(quantizer.code_LKD).all())


def test_codes_get_no_gradient() -> None:
    quantizer, e = _quantizer(), _embeddings().requires_grad_()
    code = quantizer.assign(e)
    (quantizer.residuals(e, code).sum() + quantizer.prefixes(code).sum()).backward()
    assert not quantizer.code_LKD.requires_grad
    assert e.grad is not None
    assert quantizer.semantic.weight.grad is not None


def test_a_code_is_dead_after_so_many_steps_without_items_and_its_reset_moves_both_tables() -> None:
    quantizer = _quantizer(dead_after=3)
    code = torch.zeros((4, 3), dtype=torch.int64)
    for step in range(3):
        assert len(quantizer.dead()) == 0, step
        quantizer.update(torch.zeros(4, 4), code)
    dead = quantizer.dead()
    assert {tuple(x) for x in dead.tolist()} == {(level, k) for level in range(3) for k in range(1, 5)}
    vectors = torch.randn(len(dead), 4)
    quantizer.reset(dead, vectors)
    for (level, k), vector in zip(dead.tolist(), vectors, strict=True):
        assert torch.equal(quantizer.code_LKD[level, k], vector)
        assert torch.equal(quantizer.semantic.weight[level * 5 + k], vector)
        assert torch.equal(quantizer.sum_LKD[level, k] / quantizer.count_LK[level, k], vector)
    assert len(quantizer.dead()) == 0


def test_moments_of_reset_rows_are_forgotten_and_others_kept() -> None:
    weight = torch.nn.Parameter(torch.randn(4, 2))
    optimizer = torch.optim.Adam([weight])
    weight.sum().backward()
    optimizer.step()
    zero_moments(optimizer, weight, torch.tensor([1, 3]))
    for name in ("exp_avg", "exp_avg_sq"):
        moment = optimizer.state[weight][name]
        assert moment[[1, 3]].abs().max() == 0
        assert moment[[0, 2]].abs().min() > 0
    assert float(optimizer.state[weight]["step"]) == 1


def test_usage_counts_codes_and_perplexity() -> None:
    figures = usage(torch.tensor([[4.0, 4.0, 0.0, 0.0], [8.0, 0.0, 0.0, 0.0]]))
    assert figures == {"codes_used_1": 2.0, "perplexity_1": 2.0, "codes_used_2": 1.0, "perplexity_2": 1.0}


def test_collision_rate_is_the_share_of_items_beyond_the_distinct_sids() -> None:
    assert collision_rate(torch.tensor([[0, 1], [0, 1], [1, 0], [1, 1]]), 2) == 0.25
    assert collision_rate(torch.zeros((0, 2), dtype=torch.int64), 2) == 0.0


def test_sid_numbers_tell_all_sids_apart() -> None:
    code = torch.cartesian_prod(torch.arange(3), torch.arange(3), torch.arange(3))
    assert sid_number(code, 3).tolist() == list(range(27))
