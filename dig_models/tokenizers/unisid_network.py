"""UniSID's network and losses (arXiv 2602.10445), with a compact set Transformer where the paper has a multimodal LLM.

Tokens of an item's fields, of its content vector and, if there is an encoder, of its text stand beside ``L + 1`` learned queries in one
Transformer without positions. What comes out at query ``l`` gives the logits ``z_l`` of level ``l`` by a linear head, what comes out at
the last one is the embedding; every level reads the full context and no level reads a residual.

Shape suffixes: ``M`` items, ``T`` bucket tokens, ``F`` numeric fields, ``X`` content width, ``S`` text tokens, ``Y`` their width, ``L``
levels, ``K`` codes, ``D`` width, ``V`` words of the summary, ``B`` views in a batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Inputs:
    """Items, or views of them: what is hidden is 0 in ``bucket_MT`` and False in the masks."""

    bucket_MT: Tensor
    number_MF: Tensor
    content_MX: Tensor
    text_MSY: Tensor
    text_MS: Tensor
    content_M: Tensor

    def __getitem__(self, rows: Tensor | slice) -> Inputs:
        return Inputs(*(tensor[rows] for tensor in self._all()))

    def __len__(self) -> int:
        return len(self.bucket_MT)

    def _all(self) -> tuple[Tensor, ...]:
        return (self.bucket_MT, self.number_MF, self.content_MX, self.text_MSY, self.text_MS, self.content_M)

    def view(self, share: float, *, words_only: bool, generator: torch.Generator) -> Inputs:
        """The same items with a random share of their buckets hidden; ``words_only`` also hides content vector and text.

        The content vector is made of all fields and would tell what is hidden, so the view that a summary is decoded from goes without.
        """
        hidden_MT = torch.rand(self.bucket_MT.shape, generator=generator) < share
        bucket_MT = self.bucket_MT.masked_fill(hidden_MT, 0)
        if not words_only:
            return Inputs(bucket_MT, *self._all()[1:])
        nothing = torch.zeros_like(self.text_MS), torch.zeros_like(self.content_M)
        return Inputs(bucket_MT, self.number_MF, self.content_MX, self.text_MSY, *nothing)

    @classmethod
    def beside(cls, one: Inputs, other: Inputs) -> Inputs:
        """The views of both, one after the other."""
        return cls(*(torch.cat(pair) for pair in zip(one._all(), other._all(), strict=True)))


class Shape(NamedTuple):
    """Sizes of a network, all that is needed to build it."""

    buckets: int
    numbers: int
    content: int
    text: int
    words: int
    levels: int
    codes: int
    dim: int
    heads: int
    layers: int
    content_tokens: int


class SetNetwork(nn.Module):
    """Set Transformer with a query for each level and one for the embedding.

    Attributes:
        seen_T: buckets that the fit has shown; any other reads as none.
        word_V: tokens that the summary is made of.
    """

    seen_T: Tensor
    word_V: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        dim = shape.dim
        self.table = nn.Embedding(shape.buckets, dim, padding_idx=0)
        self.number_FD = nn.Parameter(torch.randn(shape.numbers, dim))
        self.number_bias_FD = nn.Parameter(torch.randn(shape.numbers, dim))
        self.projection = nn.Linear(shape.content, shape.content_tokens * dim)
        self.text = nn.Linear(shape.text, dim) if shape.text else None
        self.query_QD = nn.Parameter(torch.randn(shape.levels + 1, dim))
        layer = nn.TransformerEncoderLayer(dim, shape.heads, 2 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, shape.layers, norm=nn.LayerNorm(dim), enable_nested_tensor=False)
        self.head_LKD = nn.Parameter(torch.empty(shape.levels, shape.codes, dim).uniform_(-(dim**-0.5), dim**-0.5))
        self.head_bias_LK = nn.Parameter(torch.zeros(shape.levels, shape.codes))
        read = shape.levels * shape.codes + dim
        self.decoder = nn.Sequential(nn.Linear(read, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, max(shape.words, 1)))
        self.register_buffer("seen_T", torch.zeros(shape.buckets, dtype=torch.bool))
        self.register_buffer("word_V", torch.zeros(shape.words, dtype=torch.int64))

    def forward(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """What the queries read: of the levels ``(M, L, D)``, and the embedding ``(M, D)``."""
        tokens, there = self._tokens(inputs)
        query_MQD = self.query_QD.expand(len(inputs), -1, -1)
        there_M = torch.cat([torch.ones(query_MQD.shape[:2], dtype=torch.bool), *there], dim=1)
        out_MQD = self.body(torch.cat([query_MQD, *tokens], dim=1), src_key_padding_mask=~there_M)[:, : self.shape.levels + 1]
        return out_MQD[:, :-1], out_MQD[:, -1]

    def _tokens(self, inputs: Inputs) -> tuple[list[Tensor], list[Tensor]]:
        """Groups of tokens ``(M, ., D)`` and which of them there are ``(M, .)``."""
        bucket_MT = inputs.bucket_MT * self.seen_T[inputs.bucket_MT]
        number_MFD = inputs.number_MF.unsqueeze(2) * self.number_FD + self.number_bias_FD
        content_MCD = self.projection(inputs.content_MX).view(len(inputs), -1, self.shape.dim)
        tokens = [self.table(bucket_MT), number_MFD, content_MCD]
        there = [
            bucket_MT > 0,
            torch.ones(number_MFD.shape[:2], dtype=torch.bool),
            inputs.content_M.unsqueeze(1).expand(content_MCD.shape[:2]),
        ]
        if self.text is not None:
            tokens.append(self.text(inputs.text_MSY))
            there.append(inputs.text_MS)
        return tokens, there

    def logits(self, level_MLD: Tensor) -> Tensor:
        """``z_l`` of each level, ``(M, L, K)``."""
        return torch.einsum("mld,lkd->mlk", level_MLD, self.head_LKD) + self.head_bias_LK

    def summary(self, z_MLK: Tensor, embedding_MD: Tensor) -> Tensor:
        """Logits of the words, decoded from ``[z; embedding]``, ``(M, V)``."""
        out: Tensor = self.decoder(torch.cat([z_MLK.flatten(1), embedding_MD], dim=1))
        return out


def contrast(x_BD: Tensor, group_B: Tensor, temperature: float) -> Tensor:
    """InfoNCE over cosines: ``-mean_p log softmax_j(cos(x_i, x_j) / t)_p``, where ``p`` are the other views of ``i``'s group."""
    unit_BD = F.normalize(x_BD, dim=1)
    itself_BB = torch.eye(len(x_BD), dtype=torch.bool)
    log_BB = (unit_BD @ unit_BD.t() / temperature).masked_fill(itself_BB, float("-inf")).log_softmax(1).masked_fill(itself_BB, 0.0)
    positive_BB = (group_B.unsqueeze(1) == group_B) & ~itself_BB
    return -((log_BB * positive_BB).sum(1) / positive_BB.sum(1).clamp_min(1)).mean()


def balance(z_BLK: Tensor, item_B: Tensor) -> Tensor:
    """How often two items share a code, against an even use: ``mean_l log(1 + K c_l) / log(1 + K)``, 1 where all have one.

    ``c_l`` is the share of pairs of different items that have one code at level ``l``, ``1 / K`` where codes are evenly used (minus its
    logarithm is the entropy of order 2). A pair weighs 1 if its codes before are the same, and ``K^-(l-1)`` in any case: so a level is
    used evenly, and within prefixes too. Forward, codes are those of the argmax; backward, ``p = softmax(sqrt(K) z / |z|)``
    (straight-through). InfoNCE leaves all this open: it is content with one code for each category, and with levels that repeat each
    other.
    """
    levels, codes = z_BLK.shape[1:]
    p_LBK = (codes**0.5 * F.normalize(z_BLK, dim=2)).softmax(2).transpose(0, 1)
    hard_LBK = F.one_hot(p_LBK.argmax(2), codes).to(p_LBK.dtype) - p_LBK.detach() + p_LBK
    same_LBB = hard_LBK @ hard_LBK.transpose(1, 2)
    other_BB = (item_B.unsqueeze(1) != item_B).to(same_LBB.dtype)
    before_LBB = torch.cat([torch.ones_like(same_LBB[:1]), same_LBB[:-1].detach().cumprod(0)])
    weight_LBB = other_BB * (before_LBB + float(codes) ** -torch.arange(levels).view(-1, 1, 1))
    chance_L = (weight_LBB * same_LBB).sum((1, 2)) / weight_LBB.sum((1, 2)).clamp_min(1e-12)
    out: Tensor = (1.0 + codes * chance_L).log().mean() / math.log(1.0 + codes)
    return out


def columns_of(word_V: Tensor, buckets: int) -> Tensor:
    """Column of the summary that each bucket has, ``(buckets,)``; ``V`` for those that are no words."""
    column_T = torch.full((buckets,), len(word_V), dtype=torch.int64)
    column_T[word_V] = torch.arange(len(word_V))
    return column_T


def hidden_words(whole: Inputs, view: Inputs, column_T: Tensor, words: int) -> Tensor:
    """Share of each word among those of an item that its view does not show, ``(M, V)``; zeros where it shows all.

    Args:
        whole: the items.
        view: the same items with something hidden.
        column_T: see ``columns_of``.
        words: of the summary, V.
    """
    has = torch.zeros(len(whole), words + 1).scatter_(1, column_T[whole.bucket_MT], 1.0)
    count = has.scatter_(1, column_T[view.bucket_MT], 0.0)[:, :words]
    return count / count.sum(1, keepdim=True).clamp_min(1.0)
