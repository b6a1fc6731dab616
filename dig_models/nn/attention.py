"""DIN's attention over a user's history, as padded multi-head dot products.

Shape suffixes: ``B`` requests, ``R`` rows, ``H`` history with the empty slot, ``D`` width, ``G`` chunks of rows of one request,
``W`` rows of a chunk, ``T`` queries of a row, ``A`` heads, ``E`` width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHUNK = 32
AGE_BUCKETS = 16


@dataclass(frozen=True)
class UserSide:
    """What the network knows of each request before any item is considered.

    Attributes:
        user_BU: profile, context and pooled history.
        keys_BHD: unit-length keys of each head; slot 0 is the learned "nothing matches".
        values_BHD: values.
        mask_BH: True where the slot holds something (slot 0 always does).
    """

    user_BU: Tensor
    keys_BHD: Tensor
    values_BHD: Tensor
    mask_BH: Tensor


@dataclass(frozen=True)
class RowLayout:
    """Rows of each request cut into chunks of at most ``CHUNK``, so that attention is a batched matrix product with little padding.

    Attributes:
        request_G: request of each chunk.
        row_S: row that sits in each slot of the chunks (``S = G x W``; row 0 where empty).
        slot_R: slot of each row.
    """

    request_G: Tensor
    row_S: Tensor
    slot_R: Tensor

    @classmethod
    def of(cls, request_R: Tensor, requests: int) -> RowLayout:
        """Layout of rows whose requests ascend.

        Raises:
            ValueError: ``request_R`` does not ascend, or is out of range.
        """
        rows = len(request_R)
        if rows and (bool((request_R[1:] < request_R[:-1]).any()) or int(request_R[0]) < 0 or int(request_R[-1]) >= requests):
            raise ValueError(f"request_R must ascend within 0..{requests - 1}: sort the rows by request")
        count_B = torch.bincount(request_R, minlength=requests)
        chunk_B = (count_B + CHUNK - 1) // CHUNK
        first_row_B, first_chunk_B = count_B.cumsum(0) - count_B, chunk_B.cumsum(0) - chunk_B
        within_R = torch.arange(rows, device=request_R.device) - first_row_B.index_select(0, request_R)
        slot_R = first_chunk_B.index_select(0, request_R) * CHUNK + within_R
        request_G = torch.repeat_interleave(torch.arange(requests, device=request_R.device), chunk_B)
        row_S = torch.zeros(len(request_G) * CHUNK, dtype=torch.int64, device=request_R.device)
        row_S.index_copy_(0, slot_R, torch.arange(rows, device=request_R.device))
        return cls(request_G=request_G, row_S=row_S, slot_R=slot_R)


class HistoryAttention(nn.Module):
    """Multi-head attention of item queries over history, with unit-length queries and keys and a learned temperature per head.

    ``score_h = t_a <q_a / |q_a|, k_ah / |k_ah|>``; the keys and values carry the age of the event. A learned empty slot takes
    the weight when nothing in the history matches (or there is none).
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"model.dim {dim} must be a multiple of model.heads {heads}")
        self.dim, self.heads = dim, heads
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.age_key = nn.Embedding(AGE_BUCKETS, dim)
        self.age_value = nn.Embedding(AGE_BUCKETS, dim)
        self.empty = nn.Parameter(torch.randn(2, 1, 1, dim) * dim**-0.5)
        self.log_temperature = nn.Parameter(torch.full((heads,), 1.0))
        self.pool_weight = nn.Embedding(AGE_BUCKETS, 1)
        for table in (self.age_key, self.age_value, self.pool_weight):
            nn.init.zeros_(table.weight)

    def _unit(self, x: Tensor) -> Tensor:
        return F.normalize(x.view(*x.shape[:-1], self.heads, -1), dim=-1).flatten(-2)

    def history(self, item_BHD: Tensor, age_BH: Tensor, real_BH: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Keys, values and mask with the empty slot in front ``(B, H + 1, D)``, and the pooled history ``(B, D)``.

        Args:
            item_BHD: item embeddings of the events.
            age_BH: days before the request.
            real_BH: True where there is an event.
        """
        bucket_BH = age_bucket(age_BH)
        key_BHD = self._unit(self.key(item_BHD) + F.embedding(bucket_BH, self.age_key.weight))
        value_BHD = self.value(item_BHD) + F.embedding(bucket_BH, self.age_value.weight)
        requests = item_BHD.shape[0]
        empty_key, empty_value = self.empty[0].expand(requests, 1, -1), self.empty[1].expand(requests, 1, -1)
        mask_BH = torch.cat([real_BH.new_ones(requests, 1), real_BH], dim=1)
        weight_BH = F.embedding(bucket_BH, self.pool_weight.weight).squeeze(2).exp() * real_BH
        pooled_BD = torch.bmm(weight_BH.unsqueeze(1), item_BHD).squeeze(1) / weight_BH.sum(1, keepdim=True).clamp_min(1e-6)
        return torch.cat([self._unit(empty_key), key_BHD], 1), torch.cat([empty_value, value_BHD], 1), mask_BH, pooled_BD

    def forward(self, query_RTD: Tensor, users: UserSide, layout: RowLayout) -> Tensor:
        """Attend with ``T`` queries a row, ``(R, T, D) -> (R, T, D)``."""
        rows, each, dim = query_RTD.shape
        chunks, heads, head = len(layout.request_G), self.heads, self.dim // self.heads
        if rows == 0:
            return query_RTD
        temperature_A1 = self.log_temperature.exp().unsqueeze(1)
        query = F.normalize(self.query(query_RTD).view(rows, each, heads, head), dim=-1) * temperature_A1
        query = query.reshape(rows, each * dim).index_select(0, layout.row_S).view(chunks, CHUNK * each, heads, head).transpose(1, 2)
        key = users.keys_BHD.index_select(0, layout.request_G).view(chunks, -1, heads, head).transpose(1, 2)
        value = users.values_BHD.index_select(0, layout.request_G).view(chunks, -1, heads, head).transpose(1, 2)
        mask = users.mask_BH.index_select(0, layout.request_G)[:, None, None, :]
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1.0)
        out_SX = out.transpose(1, 2).reshape(chunks * CHUNK, each * dim)
        return out_SX.index_select(0, layout.slot_R).view(rows, each, dim)


def age_bucket(age: Tensor) -> Tensor:
    """Buckets of an age in days, two per doubling: ``floor(2 log2(1 + days))``, at most ``AGE_BUCKETS - 1``."""
    return (2.0 * torch.log2(1.0 + age.clamp_min(0.0))).long().clamp_max(AGE_BUCKETS - 1)
