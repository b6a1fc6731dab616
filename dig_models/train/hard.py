"""Hard negatives: catalogue items from the prefixes that the recall path itself scores highest for a request.

A random negative is told apart by its popularity and its zero crosses; what the search returns is not. In every joint step a small beam
over the catalogue's prefixes, by the weights as they are now, finds the prefixes that a request's search would expand, and items
are drawn from these, positives of the request excepted. Crosses of prefixes come from ``MLP_u2t``, which needs no look-up.

Each of a request's ``E`` draws takes every item of the kept prefixes alike, so ``E / S`` copies of an item are to be expected where the
prefixes hold ``S`` items. The offset of ``dig_models.train.data`` knows them: in the open domain all rows of such an item, positives
too, have ``-log(q + E / S)``, where ``q`` is what random and history negatives give.

Shape suffixes: ``G`` requests, ``W`` prefixes kept, ``P`` prefixes of a level, ``R`` candidates, ``N`` rows of the item table, ``E`` draws
a request, ``M`` items drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dig_models.batch import Batch
from dig_models.dig import Dig
from dig_models.features import SOURCE_EXPOSED, SOURCE_RANDOM
from dig_models.nn.attention import UserSide
from dig_models.train.data import history_shares
from dig_models.u2t import PairLookup, bucket_keys, looked_up

OPEN = 1
NONE = -1
NO_PREFIX = -2
"""Prefix of the unknown item, which no padding of the kept ones (``NONE``) equals."""
_STREAM = 7


class _Pool(NamedTuple):
    """What a request's draws are taken from: the prefix of each item ``(N,)``, those kept ``(G, W)``, and how many items they hold."""

    key_N: Tensor
    kept_GW: Tensor
    size_G: Tensor

    def holds(self, request_R: Tensor, item_R: Tensor) -> Tensor:
        """Whether items lie in the prefixes kept for requests, ``(R,)``."""
        return (self.key_N[item_R].unsqueeze(1) == self.kept_GW[request_R]).any(1)


@dataclass(frozen=True, kw_only=True)
class HardNegatives:
    """Draws hard negatives for batches.

    Attributes:
        model: with codebooks; left as it is.
        lookup: model crosses of pairs.
        each: draws a request.
        beam: prefixes kept per level.
        share_N: copies of each item to be expected among a request's random and popular negatives, float64.
        history: negatives a request that the batches' loader draws from its history.
        seed, rank: with the model's step they decide the draws.
    """

    model: Dig
    lookup: PairLookup
    each: int
    beam: int
    share_N: Tensor
    history: int
    seed: int
    rank: int

    @torch.no_grad()
    def added_to(self, batch: Batch) -> Batch:
        """The batch with up to ``each`` further negatives a request, after its own rows; draws that hit a positive are left out."""
        training = self.model.training
        self.model.eval()
        pool = self._pool(batch)
        item_GE = self._draw(pool)
        self.model.train(training)
        request_M = torch.arange(batch.requests, device=item_GE.device).repeat_interleave(self.each)
        item_M = item_GE.flatten()
        bought = self._bought(batch)
        keep = (item_M != NONE) & ~torch.isin(request_M * len(pool.key_N) + item_M, bought)
        return self._with(batch, pool, request_M[keep], item_M[keep])

    def _bought(self, batch: Batch) -> Tensor:
        """Positives as ``request x N + item``, ascending."""
        positive = batch.label_R > 0
        bought: Tensor = torch.unique(batch.request_R[positive] * len(self.model.code_NL) + batch.item_R[positive])
        return bought

    def _with(self, batch: Batch, pool: _Pool, request_M: Tensor, item_M: Tensor) -> Batch:
        cross_MC = looked_up(batch, request_M, item_M, self.lookup, self.model.affinity)
        request_R, order = torch.cat([batch.request_R, request_M]).sort(stable=True)

        def joined(old_R: Tensor, new_M: Tensor) -> Tensor:
            return torch.cat([old_R, new_M.to(old_R.dtype)]).index_select(0, order)

        held_M = self._loaded_share(batch, request_M, item_M)
        old_R = torch.where(pool.holds(batch.request_R, batch.item_R), self.each / pool.size_G[batch.request_R], 0.0)
        raised_R = -torch.log(torch.exp(-batch.offset_R.double()) + old_R)
        return replace(
            batch,
            request_R=request_R,
            item_R=joined(batch.item_R, item_M),
            cross_RC=joined(batch.cross_RC, cross_MC),
            label_R=joined(batch.label_R, torch.zeros_like(item_M)),
            source_R=joined(batch.source_R, torch.full_like(item_M, SOURCE_RANDOM)),
            offset_R=joined(
                torch.where((batch.source_R != SOURCE_EXPOSED) & (old_R > 0), raised_R.to(batch.offset_R.dtype), batch.offset_R),
                -torch.log(held_M + self.each / pool.size_G[request_M]),
            ),
        )

    def _loaded_share(self, batch: Batch, request_M: Tensor, item_M: Tensor) -> Tensor:
        """Copies of items to be expected among the negatives that a batch comes with, ``(M,)`` float64."""
        history_GH, rows = batch.history_BH.cpu().numpy(), len(self.model.code_NL)
        met_X, share_G = history_shares(history_GH, self._bought(batch).cpu().numpy(), rows, self.history)
        met = torch.isin(request_M * rows + item_M, torch.from_numpy(met_X).to(item_M.device))
        return self.share_N.to(item_M.device)[item_M] + torch.from_numpy(share_G).to(item_M.device)[request_M] * met

    def _pool(self, batch: Batch) -> _Pool:
        config, code_NL = self.model.config, self.model.code_NL
        depth = max(config.levels - 1, 1)  # a whole SID holds an item or two: one level above there is something to draw from
        key_NL = bucket_keys(code_NL[1:, :depth], config.codes, "prefix")
        users = self.model.user_side(batch)
        kept_GW = torch.zeros(batch.requests, 1, dtype=torch.int64, device=code_NL.device)
        for level in range(depth):
            kept_GW = self._best(users, level, torch.unique(key_NL[:, level]), kept_GW)
        key_N = torch.cat([key_NL.new_full((1,), NO_PREFIX), key_NL[:, -1]])
        held_P, count_P = torch.unique(key_N, return_counts=True)
        at_GW = torch.searchsorted(held_P, kept_GW).clamp_max(len(held_P) - 1)
        size_G = torch.where(held_P[at_GW] == kept_GW, count_P[at_GW], 0).sum(1)
        return _Pool(key_N, kept_GW, size_G)

    def _draw(self, pool: _Pool) -> Tensor:
        """Item rows ``(G, E)``, with replacement, every item of the kept prefixes alike; -1 where none was kept."""
        key_N, order_N = pool.key_N.sort(stable=True)
        low_GW = torch.searchsorted(key_N, pool.kept_GW)
        until_GW = (torch.searchsorted(key_N, pool.kept_GW, right=True) - low_GW).cumsum(1)
        size_GW = until_GW.diff(dim=1, prepend=torch.zeros_like(until_GW[:, :1]))
        place_GE = (self._uniform(len(low_GW)).to(key_N.device) * pool.size_G.unsqueeze(1)).long()
        at_GE = torch.searchsorted(until_GW, place_GE, right=True).clamp_max(until_GW.shape[1] - 1)
        within_GE = place_GE - (until_GW - size_GW).gather(1, at_GE)
        row_GE = order_N[(low_GW.gather(1, at_GE) + within_GE).clamp_max(len(order_N) - 1)]
        return torch.where(pool.size_G.unsqueeze(1) > 0, row_GE, NONE)

    def _uniform(self, requests: int) -> Tensor:
        words = np.random.SeedSequence([self.seed, int(self.model.step), self.rank, _STREAM]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(words[0] >> 1))
        return torch.rand((requests, self.each), generator=generator, dtype=torch.float64)

    def _best(self, users: UserSide, level: int, key_P: Tensor, above_GW: Tensor) -> Tensor:
        """The best prefixes of a level under those kept above it, ``(G, beam)`` as numbers, padded with -1."""
        codes, requests = self.model.config.codes, len(above_GW)
        first_GW, last_GW = above_GW * codes, (above_GW + 1) * codes
        low_X = torch.searchsorted(key_P, first_GW).flatten()
        size_X = torch.where(above_GW.flatten() == NONE, 0, torch.searchsorted(key_P, last_GW).flatten() - low_X)
        owner_R = torch.repeat_interleave(size_X)
        place_R = torch.arange(len(owner_R), device=owner_R.device) - (size_X.cumsum(0) - size_X)[owner_R] + low_X[owner_R]
        request_R, key_R = owner_R // above_GW.shape[1], key_P[place_R]
        score_R = self._scores(users, request_R, key_R, level)
        order = score_R.argsort(descending=True, stable=True)
        order = order[request_R[order].argsort(stable=True)]
        count_G = torch.bincount(request_R, minlength=requests)
        rank_R = torch.arange(len(order), device=order.device) - (count_G.cumsum(0) - count_G)[request_R[order]]
        best = order[rank_R < self.beam]
        out_GW = torch.full((requests, self.beam), NONE, dtype=torch.int64, device=key_P.device)
        out_GW[request_R[best], rank_R[rank_R < self.beam]] = key_R[best]
        return out_GW

    def _scores(self, users: UserSide, request_R: Tensor, key_R: Tensor, level: int) -> Tensor:
        codes = self.model.config.codes
        code_RL = torch.stack([key_R // codes ** (level - above) % codes for above in range(level + 1)], dim=1)
        prefix_RD = self.model.prefix_embeddings(code_RL)[:, -1]
        u2t_RC = self.model.predict_u2t(users, request_R, prefix_RD)
        return self.model.recall_logit(users, request_R, prefix_RD, u2t_RC, torch.full_like(request_R, OPEN))
