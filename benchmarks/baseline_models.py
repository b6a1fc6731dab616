"""The networks of ``benchmarks.baselines``: DIN and DCNv2 rankers, a two-tower retriever and SASRec, small and on the inputs that DIG has.

They take the project's parts where those are the published ones (field embeddings, attention over history, cross layers).

Shape suffixes: ``B`` requests, ``R`` rows, ``H`` history, ``M`` items looked up, ``N`` catalogue, ``D`` width, ``C`` model crosses, ``X``
inputs.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dig_models.batch import Batch
from dig_models.dig import BIAS_GAIN, CROSS_EPS, DOMAINS
from dig_models.features import FeatureSpec
from dig_models.items import ItemTable
from dig_models.nn.attention import HistoryAttention, RowLayout, UserSide
from dig_models.nn.dcn import CrossNetwork
from dig_models.nn.embedding import FieldEmbedding, renamed
from dig_models.nn.norm import DomainNorm, members

HEADS = 2
"""Of SASRec's self-attention."""
SMALL = 0.1
"""Of the usual spread, that field embeddings of the rankers start with."""


class Fields(nn.Module):
    """Item, user and context fields as vectors of one width."""

    item_index_NJ: Tensor
    item_number_NQ: Tensor
    user_offset_F: Tensor

    def __init__(self, spec: FeatureSpec, items: ItemTable, dim: int) -> None:
        super().__init__()
        users = [*renamed("u", spec.user_fields), *renamed("c", spec.context_fields)]
        self.item_fields, self.user_fields = FieldEmbedding(spec.item_fields, dim), FieldEmbedding(users, dim)
        self.item_out = nn.Linear(self.item_fields.width, dim)
        index_NJ, number_NQ = self.item_fields.pack(items.fields, items.numbers)
        self.register_buffer("item_index_NJ", index_NJ, persistent=False)
        self.register_buffer("item_number_NQ", number_NQ, persistent=False)
        offsets = torch.tensor([self.user_fields.offset[f.name] for f in users], dtype=torch.int64)
        self.register_buffer("user_offset_F", offsets, persistent=False)

    def items(self, item_X: Tensor) -> Tensor:
        """Embeddings of item rows of any shape, ``(…) -> (…, D)``; an item that occurs often is embedded once."""
        item_M, at_X = torch.unique(item_X, return_inverse=True)
        e_MD = self.item_out(self.item_fields(self.item_index_NJ[item_M], self.item_number_NQ[item_M]))
        out: Tensor = e_MD.index_select(0, at_X.flatten()).view(*item_X.shape, -1)
        return out

    def users(self, user_BF: Tensor) -> Tensor:
        """User and context fields, ``(B, F) -> (B, X)``."""
        out: Tensor = self.user_fields(user_BF + self.user_offset_F)
        return out


class Ranker(nn.Module):
    """Log-odds of rows, with a bias for each domain, as DIG's ranking path has.

    ``din`` (Zhou et al., 2018, arXiv 1706.06978): the history read by the item, then a perceptron. ``dcn`` (Wang et al., 2021, arXiv
    2008.13535): the mean of the history, cross layers beside a perceptron (its parallel form). Both see fields,
    history and ``crosses`` model crosses. These alone are normalised, as DIG's are: under the usual batch normalisation an offer that
    training hardly saw came out hundreds of deviations high once a week had it, which cost .04 of AUC. Field embeddings start small.
    """

    def __init__(
        self, kind: Literal["din", "dcn"], spec: FeatureSpec, items: ItemTable, crosses: int, dim: int = 32, hidden: int = 64
    ) -> None:
        super().__init__()
        self.kind = kind
        self.fields, self.attention = Fields(spec, items, dim), HistoryAttention(dim, 4)
        with torch.no_grad():
            for table in (self.fields.item_fields, self.fields.user_fields):
                for weight in table.parameters():
                    weight.mul_(SMALL)
        width = self.fields.user_fields.width + 2 * dim + crosses
        self.norm = DomainNorm(crosses, DOMAINS, eps=CROSS_EPS)
        self.cross = CrossNetwork(width, 2, dim) if kind == "dcn" else None
        self.deep = nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Dropout(0.3), nn.Linear(hidden, hidden), nn.SiLU())
        self.head = nn.Linear(hidden + (width if kind == "dcn" else 0), 1, bias=False)
        self.bias = nn.Parameter(torch.zeros(DOMAINS))

    def forward(self, batch: Batch) -> Tensor:
        """True log-odds of the rows of a batch, ``(R,)``."""
        e_RD, e_BHD = self.fields.items(batch.item_R), self.fields.items(batch.history_BH)
        keys, values, mask_BH, pooled_BD = self.attention.history(e_BHD, batch.history_age_BH, batch.history_BH > 0)
        if self.kind == "din":
            side = UserSide(pooled_BD, keys, values, mask_BH)
            layout = RowLayout.of(batch.request_R, batch.requests)
            read_RD = self.attention(e_RD.unsqueeze(1), side, layout).squeeze(1)
        else:
            read_RD = pooled_BD.index_select(0, batch.request_R)
        user_RX = self.fields.users(batch.user_BF).index_select(0, batch.request_R)
        x_RX = torch.cat([user_RX, read_RD, e_RD, self.norm(batch.cross_RC, members(batch.domain_R, DOMAINS))], dim=1)
        deep = self.deep(x_RX)
        out: Tensor = self.head(deep if self.cross is None else torch.cat([deep, self.cross(x_RX)], dim=1)).squeeze(1)
        return out + BIAS_GAIN * self.bias.index_select(0, batch.domain_R)


class TwoTower(nn.Module):
    """User and item vectors of unit length whose inner product, over a learned temperature, is the logit (Yi et al., 2019, RecSys)."""

    def __init__(self, spec: FeatureSpec, items: ItemTable, dim: int = 32) -> None:
        super().__init__()
        self.fields, self.attention = Fields(spec, items, dim), HistoryAttention(dim, 4)
        width = self.fields.user_fields.width + dim
        self.user = nn.Sequential(nn.Linear(width, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim))
        self.item = nn.Sequential(nn.Linear(dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim))
        self.log_scale = nn.Parameter(torch.tensor(2.5))

    def users(self, batch: Batch) -> Tensor:
        """Unit vectors of the requests times the scale, ``(B, D)``."""
        pooled_BD = self.attention.history(self.fields.items(batch.history_BH), batch.history_age_BH, batch.history_BH > 0)[3]
        user_BD = self.user(torch.cat([self.fields.users(batch.user_BF), pooled_BD], dim=1))
        return self.log_scale.exp() * F.normalize(user_BD, dim=1)

    def items(self, item_M: Tensor) -> Tensor:
        """Unit vectors of item rows, ``(M, D)``."""
        return F.normalize(self.item(self.fields.items(item_M)), dim=1)


class SasRec(nn.Module):
    """Self-attention over the sequence of item events (Kang and McAuley, 2018, arXiv 1808.09781), scored against item embeddings.

    The sequence is the request's history, oldest first, cut to the newest ``length``; a learned position counts from its end.
    """

    def __init__(self, spec: FeatureSpec, items: ItemTable, dim: int = 32, layers: int = 2) -> None:
        super().__init__()
        self.length = spec.history_length
        self.item = nn.Embedding(len(items), dim)
        self.position = nn.Embedding(self.length + 1, dim)
        self.start = nn.Parameter(0.02 * torch.randn(dim))
        layer = nn.TransformerEncoderLayer(dim, HEADS, 2 * dim, dropout=0.2, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(dim)
        nn.init.normal_(self.item.weight, std=0.05)
        nn.init.normal_(self.position.weight, std=0.02)

    def states(self, history_BH: Tensor) -> Tensor:
        """State after the start token and after each event, ``(B, H + 1, D)``; ``history_BH`` is oldest first, padding (0) in front.

        The start token stands before the first event; padding lies before it and is never attended to.
        """
        requests, length = history_BH.shape
        empty = history_BH == 0
        x_BHD = self.item(history_BH)
        # The slot before the first event holds the start token, so that a user without a history has a state too.
        first_B = empty.sum(1)
        whole = torch.cat([x_BHD.new_zeros(requests, 1, x_BHD.shape[2]), x_BHD], dim=1)
        at_start = torch.arange(length + 1, device=first_B.device) == first_B.unsqueeze(1)
        whole = torch.where(at_start.unsqueeze(2), self.start, whole)
        place = torch.arange(length, -1, -1, device=first_B.device)
        whole = whole + self.position(place)
        hidden_BH = torch.arange(length + 1, device=first_B.device) < first_B.unsqueeze(1)
        causal_HH = torch.ones(length + 1, length + 1, dtype=torch.bool, device=first_B.device).triu(1)
        # A hidden slot may look at itself alone: a row without any key would be no number.
        itself_HH = torch.eye(length + 1, dtype=torch.bool, device=first_B.device)
        blocked_BHH = (causal_HH | hidden_BH.unsqueeze(1)) & ~itself_HH
        out: Tensor = self.norm(self.encoder(whole, mask=blocked_BHH.repeat_interleave(HEADS, 0)))
        return out
