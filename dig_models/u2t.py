"""u2t: what stands in for the user-to-item crosses ``c_uv`` when the retrieval path scores a prefix instead of an item.

Three teachers (``ModelConfig.u2t_teacher``) give ``u2t_l`` of a row in training:

- ``batch_mean``: mean of ``c_uv`` over the rows of the batch in the same token bucket (as published). Where a bucket holds one
  row this is the row's own ``c_uv``, which gives its label away: the retrieval path then learns what it will not see.
- ``leave_one_out``: the same mean without the row itself, from the nearest shorter prefix whose bucket is large enough.
- ``catalogue_sample``: ``c_uv`` of random catalogue items inside the row's prefix, for the row's user and time. Unbiased for the
  exact mean over the prefix that serving can compute, and independent of which items happen to be in the batch. Of a prefix that no
  item has (exploration, masked ids) the longest part that some item has counts.

Shape suffixes: ``R`` rows, ``L`` levels, ``C`` model crosses, ``N`` catalogue items.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dig_models.affinity import Affinity, beside
from dig_models.batch import Batch
from dig_models.config import ModelConfig
from dig_models.quantize.residual import sid_number

Ints = NDArray[np.int64]
PairLookup = Callable[[Ints, Ints, Ints, Ints], NDArray[np.float32]]
BucketKey = Literal["prefix", "token"]


def looked_up(batch: Batch, request_P: Tensor, item_P: Tensor, lookup: PairLookup, affinity: Affinity | None) -> Tensor:
    """Model crosses of pairs of a request of the batch and an item row, ``(P, C)``, as ``batch.cross_RC`` has them.

    Args:
        batch: its requests are meant, whatever rows it has.
        request_P: requests of the pairs; fastest when those of one are neighbours.
        item_P: their item rows.
        lookup: crosses of user, time, offer and item.
        affinity: the last cross, of history and item, where the model reads it.
    """
    keys = (batch.user_hash_B[request_P], batch.ts_B[request_P], batch.offer_B[request_P], item_P)
    found_PC = lookup(*(k.cpu().numpy() for k in keys))
    if affinity is not None:
        found_PC = beside(found_PC, affinity.pairs(batch.history_BH.cpu().numpy(), request_P.cpu().numpy(), item_P.cpu().numpy()))
    return torch.from_numpy(found_PC).to(batch.cross_RC)


def taught(
    config: ModelConfig,
    batch: Batch,
    code_RL: Tensor,
    lookup: PairLookup,
    buckets: CatalogueBuckets | None,
    generator: torch.Generator,
    affinity: Affinity | None = None,
) -> Tensor:
    """``u2t_l`` of each row, ``(R, L, C)``, by the teacher that the config names; ``catalogue_sample`` alone needs all of this."""
    key_RL = bucket_keys(code_RL, config.codes, config.bucket_key)
    if config.u2t_teacher == "batch_mean":
        return batch_mean(key_RL, batch.cross_RC)
    if config.u2t_teacher == "leave_one_out":
        return leave_one_out(key_RL, batch.cross_RC, config.u2t_min_bucket)
    if config.u2t_teacher == "none" or buckets is None:
        return batch.cross_RC.new_zeros(batch.rows, config.levels, batch.cross_RC.shape[1])
    return catalogue_sample(buckets.draw(key_RL, config.u2t_samples, generator), batch, lookup, affinity)


def mixed(config: ModelConfig, teacher_RLC: Tensor, predicted_RLC: Tensor, generator: torch.Generator) -> Tensor:
    """What the recall path sees: the teacher for a share of the rows, MLP_u2t (as a constant) for the others."""
    if config.u2t_teacher == "none":
        return teacher_RLC
    taught_R = torch.rand(len(teacher_RLC), generator=generator) < config.u2t_mix
    return torch.where(taught_R.to(teacher_RLC.device)[:, None, None], teacher_RLC, predicted_RLC.detach())


def bucket_keys(code_ML: Tensor, codes: int, key: BucketKey) -> Tensor:
    """Bucket of each row at each level, ``(M, L) -> (M, L)``: the prefix ``s_1..s_l`` as a number, or the token ``s_l`` alone."""
    if key == "token":
        return code_ML
    return torch.stack([sid_number(code_ML[:, : level + 1], codes) for level in range(code_ML.shape[1])], dim=1)


def _bucket_sums(key_R: Tensor, cross_RC: Tensor) -> tuple[Tensor, Tensor]:
    """Per row: sum of crosses and number of rows in its bucket."""
    _, bucket_R, count_X = torch.unique(key_R, return_inverse=True, return_counts=True)
    sum_XC = cross_RC.new_zeros(len(count_X), cross_RC.shape[1]).index_add_(0, bucket_R, cross_RC)
    return sum_XC.index_select(0, bucket_R), count_X.index_select(0, bucket_R).to(cross_RC.dtype)


def batch_mean(key_RL: Tensor, cross_RC: Tensor) -> Tensor:
    """Mean of ``c_uv`` over the rows in the same bucket, ``(R, L, C)``."""
    means = []
    for level in range(key_RL.shape[1]):
        sum_RC, count_R = _bucket_sums(key_RL[:, level], cross_RC)
        means.append(sum_RC / count_R.unsqueeze(1))
    return torch.stack(means, dim=1)


def leave_one_out(key_RL: Tensor, cross_RC: Tensor, min_bucket: int) -> Tensor:
    """Mean over the *other* rows in the same bucket, ``(R, L, C)``.

    A bucket with fewer than ``min_bucket`` rows (at least 2) falls back to the level above it, the first level to the whole
    batch; the only row of a batch gets zeros.
    """
    rows = len(key_RL)
    above_RC = (cross_RC.sum(0, keepdim=True) - cross_RC) / max(rows - 1, 1)
    means = []
    for level in range(key_RL.shape[1]):
        sum_RC, count_R = _bucket_sums(key_RL[:, level], cross_RC)
        others_RC = (sum_RC - cross_RC) / (count_R - 1).clamp_min(1).unsqueeze(1)
        above_RC = torch.where((count_R >= max(min_bucket, 2)).unsqueeze(1), others_RC, above_RC)
        means.append(above_RC)
    return torch.stack(means, dim=1)


@dataclass(frozen=True)
class CatalogueBuckets:
    """Catalogue items grouped by bucket at each level, for drawing.

    Attributes:
        order_LN: item rows sorted by bucket; key_LN: their buckets, ascending.
    """

    order_LN: Tensor
    key_LN: Tensor

    @classmethod
    def of(cls, code_NL: Tensor, codes: int, key: BucketKey) -> CatalogueBuckets:
        """Group rows ``1..N-1`` of a catalogue by their codes (row 0 is the unknown item)."""
        key_NL = bucket_keys(code_NL[1:], codes, key)
        sorted_LN, order_LN = key_NL.t().contiguous().sort(dim=1, stable=True)
        return cls(order_LN=order_LN + 1, key_LN=sorted_LN)

    def draw(self, key_RL: Tensor, samples: int, generator: torch.Generator) -> Tensor:
        """Random items of each row's bucket, with replacement, ``(R, L, samples)``.

        Exploration and masked item ids lead to codes that no item of the catalogue has. An empty bucket is then that of the level above
        it, the first level's the whole catalogue, as serving knows no such prefix; never the row's own item for its own sake.
        """
        levels, items = self.key_LN.shape
        query_LR = key_RL.t().contiguous()
        low_LR = torch.searchsorted(self.key_LN, query_LR)
        size_LR = torch.searchsorted(self.key_LN, query_LR, right=True) - low_LR
        at_LR = low_LR + items * torch.arange(levels, device=low_LR.device).unsqueeze(1)  # in all levels' items, one level after the other
        above = (torch.zeros_like(low_LR[0]), torch.full_like(low_LR[0], items))
        for level in range(levels):
            here_R = size_LR[level] > 0
            at_LR[level] = torch.where(here_R, at_LR[level], above[0])
            size_LR[level] = torch.where(here_R, size_LR[level], above[1])
            above = (at_LR[level], size_LR[level])
        uniform = torch.rand((*query_LR.shape, samples), generator=generator, dtype=torch.float64).to(query_LR.device)
        step = (uniform * size_LR.unsqueeze(2)).long()
        return self.order_LN.flatten()[at_LR.unsqueeze(2) + step].transpose(0, 1)


def catalogue_sample(drawn_RLS: Tensor, batch: Batch, lookup: PairLookup, affinity: Affinity | None = None) -> Tensor:
    """Mean of ``c_uv`` over drawn items, for each row's own user, time and offer, ``(R, L, S) -> (R, L, C)``.

    A pair is looked up once however often it was drawn in its request, and a row's own item not at all.
    """
    rows, levels, samples = drawn_RLS.shape
    width = batch.cross_RC.shape[1]
    request_X = batch.request_R.repeat_interleave(levels * samples)
    flat_X = drawn_RLS.reshape(-1)
    own_X = flat_X == batch.item_R.repeat_interleave(levels * samples)
    highest = int(flat_X.max()) + 1 if len(flat_X) else 1
    pair_P, at_X = torch.unique((request_X * highest + flat_X)[~own_X], return_inverse=True)
    request_P, item_P = pair_P // highest, pair_P % highest
    found_PC = looked_up(batch, request_P, item_P, lookup, affinity) if len(pair_P) else batch.cross_RC.new_zeros((0, width))
    source_X = torch.empty_like(flat_X)
    source_X[own_X] = torch.arange(rows, device=flat_X.device).repeat_interleave(levels * samples)[own_X]
    source_X[~own_X] = rows + at_X
    cross_XC = torch.cat([batch.cross_RC, found_PC]).index_select(0, source_X)
    return cross_XC.view(rows, levels, samples, width).mean(2)
