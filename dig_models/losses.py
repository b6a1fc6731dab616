"""The five losses of DIG (arXiv 2605.14853), each as its formula.

``L = L_rank + w_recall L_recall + w_commit L_commit + w_recon L_recon + w_u2t L_u2t``. ``sg`` stops the gradient.
Shape suffixes: ``R`` rows, ``M`` items, ``L`` levels, ``D`` width, ``C`` crosses, ``S`` domains.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dig_models.nn.norm import all_reduce


def click_loss(logit_R: Tensor, offset_R: Tensor, label_R: Tensor, member_RS: Tensor) -> Tensor:
    """``BCE(sigmoid(f + offset), y)``, meaned within each domain and then over the domains that have rows.

    So neither domain swamps the other, and ``sigmoid(f)`` stays the probability before sampling.
    """
    loss_R = F.binary_cross_entropy_with_logits(logit_R + offset_R, label_R, reduction="none")
    count_S = member_RS.sum(0)
    return ((loss_R @ member_RS) / count_S.clamp_min(1.0)).sum() / (count_S > 0).sum().clamp_min(1)


@torch.no_grad()
def base_log_odds(offset_R: Tensor, label_R: Tensor, member_RS: Tensor) -> Tensor:
    """True log-odds of a positive in each domain, ``(S,)``, over the rows of all ranks; a domain without rows has the others' mean."""
    count_S, positive_S, offset_S = all_reduce(torch.stack([torch.ones_like(label_R), label_R, offset_R]).double() @ member_RS.double())
    rate_S = ((positive_S + 0.5) / (count_S + 1.0)).clamp(1e-6, 1 - 1e-6)
    odds_S = torch.logit(rate_S) - offset_S / count_S.clamp_min(1.0)
    return torch.where(count_S > 0, odds_S, odds_S[count_S > 0].mean() if bool((count_S > 0).any()) else 0.0)


def recall_loss(logit_LR: Tensor, offset_R: Tensor, label_R: Tensor, member_RS: Tensor) -> tuple[Tensor, list[Tensor]]:
    """``L_recall`` = mean over levels of the click loss on prefix logits; also each level's own."""
    levels = [click_loss(logit_R, offset_R, label_R, member_RS) for logit_R in logit_LR]
    return torch.stack(levels).mean(), levels


def commit_loss(residual_MLD: Tensor, code_MLD: Tensor) -> Tensor:
    """``L_commit = sum_l |sg[c_{l,s_l}] - r_{l-1}|^2``, mean over items."""
    return (residual_MLD - code_MLD.detach()).square().sum((1, 2)).mean()


def recon_loss(e_MD: Tensor, semantic_MD: Tensor, stop: Literal["item", "sid"]) -> Tensor:
    """``L_recon = |sg[e_v] - e_sid(1:L)|^2`` (``stop="item"``) or with the other side stopped, mean over items."""
    left, right = (e_MD.detach(), semantic_MD) if stop == "item" else (e_MD, semantic_MD.detach())
    return (left - right).square().sum(1).mean()


def u2t_loss(predicted_RLC: Tensor, teacher_RLC: Tensor) -> Tensor:
    """``L_u2t = mean_l |MLP_u2t(h_u, e_sid(1:l)) - sg[u2t_l]|^2``, mean over rows."""
    return (predicted_RLC - teacher_RLC.detach()).square().sum(2).mean()
