"""The retrieval path of DIG, factored: what a (user, prefix) row costs when its user and its prefix are known before.

``Dig.recall_logit`` is the definition; ``PrefixScorer`` gives the same logits. A prefix embedding is a sum over its codes (arXiv
2605.14853, ``e_sid(1:l) = sum_i e_sid_i``), so everything linear in it (the normalised embedding, the DIN query before its
length, its share of the first DCNv2 projection and of the wide term) is a sum of rows of one small table a level. What is linear
in the user joins the same sum at the root. So a *feature* travels down the trie with the beam: child = parent + row of its token,
and no array grows with the catalogue.

What is left for each row is one attention read, the crosses, and the layers behind the first product, whose inputs are products
of user and prefix and cannot be shared. With ``y = 1 + sum_i (U_i p_i + b_i)`` a DCNv2 layer is ``x_i = x_0 * y_i``, so the layers
accumulate into one array.

Shape suffixes: ``G`` users, ``Q`` parents kept, ``R`` rows, ``F`` feature, ``D`` width, ``K`` codes, ``A`` heads, ``E`` width of a head,
``H`` history with the empty slot, ``C`` crosses, ``X`` Mixer input, ``V`` rank of a cross layer, ``N`` experts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from dig_models.dig import BIAS_GAIN, Dig
from dig_models.nn.attention import UserSide
from dig_models.nn.mixer import Mixer
from dig_models.retrieve.trie import Int64

OPEN = 1
"""Domain of ``Dig.rank_logit`` and ``recall_logit``: a candidate of the open catalogue, not an exposure."""

BLOCK = 2048
"""Rows scored at a time: with half as many, two threads wait for each other more (a batch takes 18% longer); more gain nothing."""

SPAN = 8 * BLOCK
"""Rows whose crosses are asked for at a time."""

LARGEST_TEMPERATURE = 40.0
"""Up to here ``exp`` of a score and its sums are finite and normal in float32 without subtracting the largest score."""

PrefixCrosses = Callable[[int, Int64, Int64], NDArray[np.float32]]
"""``(level, user_R, node_R) -> u2t_RC``: model crosses of (user, node) rows; both ascend, nodes within a user."""


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Rows to score at one level: children of kept parents, sorted by user, then node.

    Attributes:
        bound_G: int64 ``(G + 1,)``: rows ``bound[g]:bound[g + 1]`` belong to user ``g``.
        node_R: int64 nodes of the level.
        token_R: last code of each node.
        owner_R: int64 row of ``feature_QF`` that holds the node's parent.
        feature_QF: features of the parents.
    """

    bound_G: Int64
    node_R: Int64
    token_R: NDArray[np.int32]
    owner_R: Int64
    feature_QF: Tensor

    def users(self, first: int, last: int) -> Int64:
        """User of the rows ``first:last``."""
        return np.searchsorted(self.bound_G, np.arange(first, last), side="right") - 1

    def take(self, keep_K: Int64) -> Candidates:
        """Some of the rows, by ascending position."""
        return Candidates(
            bound_G=np.searchsorted(keep_K, self.bound_G).astype(np.int64),
            node_R=self.node_R[keep_K],
            token_R=self.token_R[keep_K],
            owner_R=self.owner_R[keep_K],
            feature_QF=self.feature_QF,
        )


@dataclass(frozen=True, kw_only=True)
class ScoredUsers:
    """User side of some requests with everything folded in that depends on the user alone.

    Attributes:
        root_GF: feature of the empty prefix.
        user_GD: ``BN_user`` of the user representation.
        key_GAEH: keys times the head's temperature.
        value_GAHE: values under ``BN_history`` with a last column of ones, all 0 where the history is empty.
        empty_GH: True where a slot holds nothing.
        length_G: slots of the history up to the last filled one.
        read_GD: history read that no query changes (``retrieval_query: pool``), else None.
    """

    root_GF: Tensor
    user_GD: Tensor
    key_GAEH: Tensor
    value_GAHE: Tensor
    empty_GH: Tensor
    length_G: list[int]
    read_GD: Tensor | None


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What a logit is made of, kept for a span of rows, so that the little that is left is done once for many blocks.

    Attributes:
        vote_NR: what each expert says.
        gate_RN: logits of the gate.
        wide_R: the linear term.
    """

    vote_NR: Tensor
    gate_RN: Tensor
    wide_R: Tensor

    @classmethod
    def of(cls, rows: int, experts: int) -> _Parts:
        return cls(vote_NR=torch.empty(experts, rows), gate_RN=torch.empty(rows, experts), wide_R=torch.empty(rows))

    def rows(self, first: int, last: int) -> _Parts:
        return _Parts(vote_NR=self.vote_NR[:, first:last], gate_RN=self.gate_RN[first:last], wide_R=self.wide_R[first:last])

    def logits(self) -> Tensor:
        gate_NR = self.gate_RN.t().contiguous().softmax(0)
        return self.vote_NR.mul_(gate_NR).sum(0).add_(self.wide_R)


class _Buffers(threading.local):
    """Memory that one thread works in, by use; gone with the scorer or the thread."""

    def __init__(self) -> None:
        self.held: dict[str, Tensor] = {}


class PrefixScorer:
    """Scores (user, prefix) rows of one model; equal to ``Dig.recall_logit`` in the open domain up to rounding.

    Threads share its tables; each works in buffers of its own (about 4 kB for each row of a block).

    Args:
        model: in eval mode; later changes of its weights are not seen.
    """

    @torch.no_grad()
    def __init__(self, model: Dig) -> None:
        self.model, self.dim, self.heads = model, model.config.dim, model.config.heads
        each = self.dim // self.heads
        self._user_affine, self._history_affine = model.norm_user.affine(), model.norm_history.affine()
        self._cross_scale_C, self._cross_shift_C = model.norm_u2t.affine(OPEN)
        self._unit_DD = torch.kron(torch.eye(self.heads), torch.ones(each, each))
        self.temperature = float(model.attention.log_temperature.exp().max())
        self._fold_mixer(model.mixer)
        self._fold_tables(model)
        self._buffers = _Buffers()

    def _fold_mixer(self, mixer: Mixer) -> None:
        """Weights of the Mixer, transposed, for rows that are ``[user, sid, read, u2t]``: what a row must compute is contiguous."""
        dim, experts = self.dim, mixer.experts
        was_X = torch.arange(mixer.wide.weight.shape[1])  # the Mixer's own order is [user, read, sid, u2t]
        order_X = torch.cat([was_X[:dim], was_X[2 * dim : 3 * dim], was_X[dim : 2 * dim], was_X[3 * dim :]])
        down, up = ([cast(nn.Linear, layer) for layer in layers] for layers in (mixer.cross.down, mixer.cross.up))
        self.width, self.rank = len(order_X), down[0].out_features
        self._down = [layer.weight[:, order_X].t().contiguous() for layer in down]
        self._up = [layer.weight[order_X].t().contiguous() for layer in up]
        self._up_bias = [layer.bias[order_X] for layer in up]
        self._up_bias[0] = self._up_bias[0] + 1.0
        self._wide_X = mixer.wide.weight[0, order_X]
        self.experts, self.hidden = experts.experts, experts.hidden
        self._first_XH = torch.cat([experts.first.weight, experts.gate.weight])[:, order_X].t().contiguous()
        self._first_bias_H = torch.cat([experts.first.bias, experts.gate.bias])
        self._second_NHD, self._second_bias_N1D = experts.second.detach().clone(), experts.bias.detach().unsqueeze(1).clone()
        self._head_D1 = mixer.head.weight.t().contiguous()

    def _fold_tables(self, model: Dig) -> None:
        """What each token adds to the feature of its parent, per level ``(K, F)``.

        Columns: DIN query, normalised embedding, first DCNv2 projection, wide term, hidden layer of MLP_u2t.
        """
        config, dim = model.config, self.dim
        scale_D, self._sid_shift_D = model.norm_sid.affine()
        semantic_LKD = model.quantizer.semantic.weight.view(config.levels, config.codes, dim)
        sid_LKD = semantic_LKD * scale_D
        parts = [
            semantic_LKD @ model.attention.query.weight.t(),
            sid_LKD,
            sid_LKD @ self._down[0][dim : 2 * dim],
            (sid_LKD @ self._wide_X[dim : 2 * dim]).unsqueeze(2),
            semantic_LKD @ model.u2t_head.prefix.weight.t(),
        ]
        self._at = [slice(a, b) for a, b in pairwise(np.cumsum([0, *(p.shape[2] for p in parts)]).tolist())]
        # By width: without and with the hidden layer of MLP_u2t.
        self._tables = {table.shape[2]: table for table in (torch.cat(parts[:-1], dim=2), torch.cat(parts, dim=2))}
        out = model.u2t_head.out
        self._u2t_weight = (out.weight * self._cross_scale_C.unsqueeze(1)).t().contiguous()
        self._u2t_bias = out.bias * self._cross_scale_C + self._cross_shift_C

    @torch.no_grad()
    def users(self, side: UserSide, *, mlp: bool) -> ScoredUsers:
        """Fold the user side of some requests, once for all their rows; ``mlp``: crosses of prefixes will come from ``MLP_u2t``."""
        model, heads, dim = self.model, self.heads, self.dim
        users, slots, _ = side.keys_BHD.shape
        scale_D, shift_D = self._user_affine
        user_GD = side.user_BU * scale_D + shift_D
        wide_1 = self._wide_X[:dim] @ user_GD.t() + self._sid_shift_D @ self._wide_X[dim : 2 * dim] + BIAS_GAIN * model.recall_bias[OPEN]
        root = [
            torch.zeros(users, dim),
            self._sid_shift_D.expand(users, -1),
            user_GD @ self._down[0][:dim] + self._sid_shift_D @ self._down[0][dim : 2 * dim],
            wide_1.unsqueeze(1),
            *([model.u2t_head.user(side.user_BU)] if mlp else []),
        ]
        temperature_A11 = model.attention.log_temperature.exp().view(-1, 1, 1)
        key_GAEH = side.keys_BHD.view(users, slots, heads, -1).permute(0, 2, 3, 1) * temperature_A11
        scale_D, shift_D = self._history_affine
        value_GAHE = (side.values_BHD * scale_D + shift_D).view(users, slots, heads, -1).transpose(1, 2)
        value_GAHE = torch.cat([value_GAHE, value_GAHE.new_ones(*value_GAHE.shape[:3], 1)], dim=3) * side.mask_BH[:, None, :, None]
        filled_GH = side.mask_BH * torch.arange(1, slots + 1)
        read_GD = None
        if model.pool_query is not None:
            each_G = torch.arange(users)
            read_GD = model.pooled(side, each_G).squeeze(1) * scale_D + shift_D
        return ScoredUsers(
            root_GF=torch.cat(root, dim=1),
            user_GD=user_GD,
            key_GAEH=key_GAEH.contiguous(),
            value_GAHE=value_GAHE.contiguous(),
            empty_GH=~side.mask_BH,
            length_G=filled_GH.amax(1).tolist(),
            read_GD=read_GD,
        )

    def descend(self, level: int, rows: Candidates, kept_Q: Int64) -> Tensor:
        """Features ``(Q, F)`` of some rows, to be the parents of the next level."""
        owner, token = torch.from_numpy(rows.owner_R[kept_Q]), torch.from_numpy(rows.token_R[kept_Q])
        return rows.feature_QF.index_select(0, owner) + self._table(rows, level).index_select(0, token)

    def _table(self, rows: Candidates, level: int) -> Tensor:
        return self._tables[rows.feature_QF.shape[1]][level]

    @torch.no_grad()
    def logits(self, level: int, users: ScoredUsers, rows: Candidates, u2t: PrefixCrosses | None) -> NDArray[np.float32]:
        """True log-odds of every row, float32 ``(R,)``; ``u2t`` None asks ``MLP_u2t``."""
        out_R = torch.empty(len(rows.node_R))
        for first, last in _steps(0, len(rows.node_R), SPAN):
            cross_RC = None if u2t is None else torch.from_numpy(u2t(level, rows.users(first, last), rows.node_R[first:last]))
            parts = _Parts.of(last - first, self.experts)
            for a, b in _steps(first, last, BLOCK):
                block_RC = None if cross_RC is None else cross_RC[a - first : b - first]
                self._block(level, users, rows, a, b, block_RC, parts.rows(a - first, b - first))
            out_R[first:last] = parts.logits()
        found: NDArray[np.float32] = out_R.numpy()
        return found

    def _block(
        self, level: int, users: ScoredUsers, rows: Candidates, first: int, last: int, cross_RC: Tensor | None, parts: _Parts
    ) -> None:
        """Score the rows ``first:last`` into ``parts``."""
        n, dim = last - first, self.dim
        table_KF = self._table(rows, level)
        feature_RF, own_RF = (self._buffer(name, n, table_KF.shape[1]) for name in ("feature", "own"))
        torch.index_select(rows.feature_QF, 0, torch.from_numpy(rows.owner_R[first:last]), out=feature_RF)
        torch.index_select(table_KF, 0, torch.from_numpy(rows.token_R[first:last]), out=own_RF)
        feature_RF.add_(own_RF)
        query, sid, projected, wide, hidden = (feature_RF[:, at] for at in self._at)
        x_RX = self._buffer("x", n, self.width)
        x_RX[:, dim : 2 * dim].copy_(sid)
        if users.read_GD is None:
            self._normalise(query)
        for g, a, b in _segments(rows.bound_G, first, last):
            x_RX[a:b, :dim].copy_(users.user_GD[g])
            if users.read_GD is None:
                self._read(users, g, query[a:b], x_RX[a:b, 2 * dim : 3 * dim])
            else:
                x_RX[a:b, 2 * dim : 3 * dim].copy_(users.read_GD[g])
        if cross_RC is None:
            F.silu(hidden, inplace=True)
            torch.addmm(self._u2t_bias, hidden, self._u2t_weight, out=x_RX[:, 3 * dim :])
        else:
            torch.addcmul(self._cross_shift_C, cross_RC, self._cross_scale_C, out=x_RX[:, 3 * dim :])
        self._mix(x_RX, projected, parts)
        parts.wide_R.add_(wide.squeeze(1))

    def _normalise(self, query_RD: Tensor) -> None:
        """Unit length per head, in place; a zero query stays zero."""
        n = len(query_RD)
        square_RD, length_RD = self._buffer("square", n, self.dim), self._buffer("length", n, self.dim)
        torch.mul(query_RD, query_RD, out=square_RD)
        torch.mm(square_RD, self._unit_DD, out=length_RD)
        query_RD.mul_(length_RD.clamp_min_(1e-24).rsqrt_())

    def _read(self, users: ScoredUsers, g: int, query_RD: Tensor, out_RD: Tensor) -> None:
        """What the queries of one user read from the history, normalised, into ``out_RD``."""
        n, heads, each, slots = len(query_RD), self.heads, self.dim // self.heads, users.length_G[g]
        score_ARH = self._buffer("score", heads * n * slots, 1).view(heads, n, slots)
        read_ARE = self._buffer("read", heads * n * (each + 1), 1).view(heads, n, each + 1)
        torch.bmm(query_RD.view(n, heads, each).transpose(0, 1), users.key_GAEH[g, :, :, :slots], out=score_ARH)
        if self.temperature > LARGEST_TEMPERATURE:
            score_ARH.masked_fill_(users.empty_GH[g, :slots], -torch.inf)
            score_ARH.sub_(score_ARH.amax(2, keepdim=True))
        score_ARH.exp_()
        torch.bmm(score_ARH, users.value_GAHE[g, :, :slots], out=read_ARE)
        torch.div(read_ARE[:, :, :each], read_ARE[:, :, each:], out=out_RD.view(n, heads, each).transpose(0, 1))

    def _mix(self, x_RX: Tensor, projected_RV: Tensor, parts: _Parts) -> None:
        """The Mixer behind the parts that were summed before, into ``parts``."""
        n, dim = len(x_RX), self.dim
        p_RV, y_RX, z_RX = self._buffer("p", n, self.rank), self._buffer("y", n, self.width), self._buffer("z", n, self.width)
        torch.addmm(projected_RV, x_RX[:, 2 * dim :], self._down[0][2 * dim :], out=p_RV)
        torch.addmm(self._up_bias[0], p_RV, self._up[0], out=y_RX)
        for down_XV, up_VX, bias_X in zip(self._down[1:], self._up[1:], self._up_bias[1:], strict=True):
            torch.mul(x_RX, y_RX, out=z_RX)
            torch.mm(z_RX, down_XV, out=p_RV)
            y_RX.addmm_(p_RV, up_VX).add_(bias_X)
        torch.mul(x_RX, y_RX, out=y_RX)
        size = self.experts * self.hidden
        hidden_RH = self._buffer("hidden", n, size + self.experts)
        torch.addmm(self._first_bias_H, y_RX, self._first_XH, out=hidden_RH)
        F.silu(hidden_RH[:, :size], inplace=True)
        out_NRD = self._buffer("out", self.experts * n, dim).view(self.experts, n, dim)
        each_NRH = hidden_RH[:, :size].view(n, self.experts, self.hidden).transpose(0, 1)
        torch.baddbmm(self._second_bias_N1D, each_NRH, self._second_NHD, out=out_NRD)
        F.silu(out_NRD, inplace=True)
        parts.vote_NR.copy_((out_NRD.view(-1, dim) @ self._head_D1).view(self.experts, n))
        parts.gate_RN.copy_(hidden_RH[:, size:])
        torch.mv(x_RX[:, 2 * dim :], self._wide_X[2 * dim :], out=parts.wide_R)

    def _buffer(self, name: str, rows: int, width: int) -> Tensor:
        """A contiguous ``(rows, width)`` view of a buffer that is kept, so that blocks do not ask the system for memory."""
        size, buffers = rows * width, self._buffers.held
        held = buffers.get(name)
        if held is None or held.numel() < size:
            held = buffers[name] = torch.empty(size)
        return held[:size].view(rows, width)


def _steps(first: int, last: int, size: int) -> Iterator[tuple[int, int]]:
    for at in range(first, last, size):
        yield at, min(at + size, last)


def _segments(bound_G: Int64, first: int, last: int) -> Iterator[tuple[int, int, int]]:
    """``(user, a, b)`` of each user's rows among ``first:last``, counted from ``first``."""
    g = int(np.searchsorted(bound_G, first, side="right")) - 1
    at = first
    while at < last:
        end = min(int(bound_G[g + 1]), last)
        if end > at:
            yield g, at - first, end - first
        at, g = max(end, at), g + 1
