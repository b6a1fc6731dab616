"""The five losses against slow readings of their formulas."""

from __future__ import annotations

import math

import numpy as np
import torch

from dig_models import losses


def _bce(f: float, y: float) -> float:
    p = 1 / (1 + math.exp(-f))
    return -(y * math.log(p) + (1 - y) * math.log(1 - p))


def _clicks(rows: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(3)
    domain = rng.integers(0, 2, rows)
    return (
        torch.from_numpy(rng.normal(size=rows)).float(),
        torch.from_numpy(rng.normal(size=rows)).float(),
        torch.from_numpy(rng.integers(0, 2, rows)).float(),
        torch.nn.functional.one_hot(torch.from_numpy(domain), 2).float(),
    )


def _slow_click(logit: torch.Tensor, offset: torch.Tensor, label: torch.Tensor, member: torch.Tensor) -> float:
    means = []
    for s in range(member.shape[1]):
        own = [_bce(float(logit[r] + offset[r]), float(label[r])) for r in range(len(logit)) if member[r, s] == 1]
        if own:
            means.append(sum(own) / len(own))
    return sum(means) / len(means)


def test_click_loss_is_bce_of_the_offset_logit_meaned_by_domain() -> None:
    parts = _clicks()
    assert np.isclose(float(losses.click_loss(*parts)), _slow_click(*parts), rtol=1e-5)


def test_click_loss_of_one_domain_does_not_halve() -> None:
    logit, offset, label, member = _clicks()
    only = torch.zeros_like(member)
    only[:, 1] = 1
    assert np.isclose(float(losses.click_loss(logit, offset, label, only)), _slow_click(logit, offset, label, only), rtol=1e-5)


def test_a_domain_with_more_rows_weighs_no_more() -> None:
    logit, offset, label, member = _clicks()
    again = member[:, 0] == 1
    repeated = [torch.cat([x, x[again], x[again]]) for x in (logit, offset, label, member)]
    assert torch.isclose(losses.click_loss(*repeated), losses.click_loss(logit, offset, label, member))


def test_sigmoid_of_the_logit_is_the_rate_before_sampling() -> None:
    """Negatives kept at 5%: the minimiser of the loss is the log-odds of the unsampled data."""
    true_rate, keep = 0.01, 0.05
    positives, negatives = 100, int(100 / true_rate * (1 - true_rate) * keep)
    label = torch.cat([torch.ones(positives), torch.zeros(negatives)])
    member = torch.nn.functional.one_hot(torch.zeros(len(label), dtype=torch.int64), 2).float()
    slopes = []
    for rate in (0.98 * true_rate, 1.02 * true_rate):
        f = torch.tensor(math.log(rate / (1 - rate)), requires_grad=True)
        losses.click_loss(f.expand(len(label)), torch.full((len(label),), math.log(1 / keep)), label, member).backward()
        assert f.grad is not None
        slopes.append(float(f.grad))
    assert slopes[0] < 0 < slopes[1]


def test_recall_loss_is_the_mean_over_levels() -> None:
    logit, offset, label, member = _clicks()
    levels = torch.stack([logit, logit * 2, logit - 1])
    total, each = losses.recall_loss(levels, offset, label, member)
    expected = [_slow_click(level, offset, label, member) for level in levels]
    assert np.allclose([float(e) for e in each], expected, rtol=1e-5)
    assert np.isclose(float(total), np.mean(expected), rtol=1e-5)


def test_commit_loss_sums_levels_and_stops_the_codes() -> None:
    rng = np.random.default_rng(0)
    residual, code = (torch.from_numpy(rng.normal(size=(4, 3, 5))).requires_grad_() for _ in range(2))
    loss = losses.commit_loss(residual, code)
    expected = np.mean([sum(((residual[m, level] - code[m, level]) ** 2).sum().item() for level in range(3)) for m in range(4)])
    assert np.isclose(loss.item(), expected)
    loss.backward()
    assert code.grad is None
    assert torch.allclose(residual.grad, 2 * (residual - code).detach() / 4)


def test_recon_loss_stops_the_side_it_is_told_to() -> None:
    rng = np.random.default_rng(1)
    for stop, moved in (("item", 1), ("sid", 0)):
        sides = [torch.from_numpy(rng.normal(size=(4, 5))).requires_grad_() for _ in range(2)]
        loss = losses.recon_loss(sides[0], sides[1], stop)  # type: ignore[arg-type]
        assert np.isclose(loss.item(), np.square((sides[0] - sides[1]).detach().numpy()).sum(1).mean())
        loss.backward()
        assert sides[moved].grad is not None
        assert sides[1 - moved].grad is None


def test_u2t_loss_is_the_squared_distance_meaned_over_levels_and_rows_and_stops_the_teacher() -> None:
    rng = np.random.default_rng(2)
    predicted, teacher = (torch.from_numpy(rng.normal(size=(4, 3, 5))).requires_grad_() for _ in range(2))
    loss = losses.u2t_loss(predicted, teacher)
    expected = np.mean(
        [[np.square((predicted[r, level] - teacher[r, level]).detach().numpy()).sum() for level in range(3)] for r in range(4)]
    )
    assert np.isclose(loss.item(), expected)
    loss.backward()
    assert teacher.grad is None
    assert predicted.grad is not None
