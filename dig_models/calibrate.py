"""Source corrections: shift each domain's bias so that predictions add up to what recent days show.

Training days reach back weeks and base rates drift; the newest days, held out of training, say where they are now. Only the
biases move, so no order within a domain changes. Shape suffixes: ``R`` rows, ``S`` domains.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from dig_models.batch import Batch
from dig_models.dig import BIAS_GAIN, DOMAINS, Dig
from dig_models.features import SOURCE_EXPOSED
from dig_models.nn.norm import all_reduce

STEPS = 30
LARGEST_STEP = 2.0


def bias_shift(logit_R: Tensor, offset_R: Tensor, label_R: Tensor, domain_R: Tensor, *, prior: float = 0.0) -> Tensor:
    """Shift ``b_s`` of each domain with ``sum_R sigmoid(f + offset + b_s) = sum_R y``, by Newton's method; ``(S,)`` float64.

    Sums are taken over all ranks, each of which passes its own rows. A domain without positives or without negatives gets 0.

    Args:
        logit_R: true log-odds f.
        offset_R: log-odds added by sampling.
        label_R: 1 = positive event.
        domain_R: domain of each row.
        prior: positives' worth of belief that no shift is needed, which keeps a handful of positives from moving the bias far.
    """
    member_RS = torch.nn.functional.one_hot(domain_R, DOMAINS).double()
    score_R, label_R = (logit_R + offset_R).double(), label_R.double()
    positive_S, rows_S = all_reduce(torch.stack([label_R @ member_RS, member_RS.sum(0)]))
    known_S = (positive_S > 0) & (positive_S < rows_S)
    shift_S = torch.zeros_like(positive_S)
    for _ in range(STEPS):
        p_R = torch.sigmoid(score_R + member_RS @ shift_S)
        predicted_S, slope_S = all_reduce(torch.stack([p_R @ member_RS, (p_R * (1 - p_R)) @ member_RS]))
        step_S = (positive_S - predicted_S - prior * shift_S) / (slope_S + prior).clamp_min(1e-12)
        shift_S = torch.where(known_S, shift_S + step_S.clamp(-LARGEST_STEP, LARGEST_STEP), shift_S)
    return shift_S


@torch.no_grad()
def calibrate(model: Dig, batches: Iterable[Batch], *, prior: float = 100.0) -> dict[str, float]:
    """Shift the model's biases, of both paths alike, to the base rates of some held-out batches.

    Args:
        model: trained; its biases change in place.
        batches: of this rank; all ranks must call.
        prior: see ``bias_shift``.

    Returns:
        ``shift_exposed`` and ``shift_open`` in log-odds.
    """
    was_training = model.training
    model.eval()
    e_ND = model.encode_catalogue()
    parts: list[tuple[Tensor, ...]] = []
    for batch in batches:
        domain_R = (batch.source_R != SOURCE_EXPOSED).long()
        e_RD = e_ND.index_select(0, batch.item_R)
        logit_R = model.rank_logit(model.user_side(batch), batch.request_R, e_RD, batch.cross_RC, domain_R)
        parts.append((logit_R, batch.offset_R, batch.label_R, domain_R))
    empty = (model.rank_bias.new_zeros(0), model.rank_bias.new_zeros(0), model.rank_bias.new_zeros(0), model.step.new_zeros(0))
    logit_R, offset_R, label_R, domain_R = (torch.cat(column) for column in zip(empty, *parts, strict=True))
    shift_S = bias_shift(logit_R, offset_R, label_R, domain_R, prior=prior)
    for bias_S in (model.rank_bias, model.recall_bias):
        bias_S.add_((shift_S / BIAS_GAIN).to(bias_S.dtype))
    model.train(was_training)
    return {"shift_exposed": float(shift_S[0]), "shift_open": float(shift_S[1])}
