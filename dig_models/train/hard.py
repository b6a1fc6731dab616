"""Hard negatives: catalogue items from the prefixes that the recall path itself scores highest for a request.

A random negative is told apart by its popularity and its zero crosses; what the search returns is not. In every joint step a small beam
over the catalogue's prefixes, by the weights as they are now, finds the prefixes that a request's search would expand, and items
are drawn from these, positives of the request excepted. Crosses of prefixes come from ``MLP_u2t``, which needs no look-up.

The draws are not uniform, so the offset of random negatives corrects less than it should: the better an item is liked, the more its
odds are understated. Biases are calibrated after training; odds within the open domain are not.

Shape suffixes: ``G`` requests, ``W`` prefixes kept, ``P`` prefixes of a level, ``R`` candidates, ``N`` catalogue items, ``E`` draws a
request.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dig_models.batch import Batch
from dig_models.dig import Dig
from dig_models.features import SOURCE_RANDOM
from dig_models.nn.attention import UserSide
from dig_models.u2t import PairLookup, bucket_keys

OPEN = 1
NONE = -1
_STREAM = 7


@dataclass(frozen=True, kw_only=True)
class HardNegatives:
    """Draws hard negatives for batches.

    Attributes:
        model: with codebooks; left as it is.
        lookup: model crosses of pairs.
        each: draws a request.
        beam: prefixes kept per level.
        offset: log-odds added by sampling, as of the random negatives.
        seed, rank: with the model's step they decide the draws.
    """

    model: Dig
    lookup: PairLookup
    each: int
    beam: int
    offset: float
    seed: int
    rank: int

    @torch.no_grad()
    def added_to(self, batch: Batch) -> Batch:
        """The batch with up to ``each`` further negatives a request, after its own rows; draws that hit a positive are left out."""
        training = self.model.training
        self.model.eval()
        item_GE = self._draw(batch)
        self.model.train(training)
        request_M = torch.arange(batch.requests, device=item_GE.device).repeat_interleave(self.each)
        item_M = item_GE.flatten()
        positive = batch.label_R > 0
        size = len(self.model.code_NL)
        bought = batch.request_R[positive] * size + batch.item_R[positive]
        keep = (item_M != NONE) & ~torch.isin(request_M * size + item_M, bought)
        return self._with(batch, request_M[keep], item_M[keep])

    def _with(self, batch: Batch, request_M: Tensor, item_M: Tensor) -> Batch:
        keys = (batch.user_hash_B[request_M], batch.ts_B[request_M], batch.offer_B[request_M], item_M)
        cross_MC = torch.from_numpy(self.lookup(*(k.cpu().numpy() for k in keys))).to(batch.cross_RC)
        request_R, order = torch.cat([batch.request_R, request_M]).sort(stable=True)

        def joined(old_R: Tensor, new_M: Tensor) -> Tensor:
            return torch.cat([old_R, new_M.to(old_R.dtype)]).index_select(0, order)

        return replace(
            batch,
            request_R=request_R,
            item_R=joined(batch.item_R, item_M),
            cross_RC=joined(batch.cross_RC, cross_MC),
            label_R=joined(batch.label_R, torch.zeros_like(item_M)),
            source_R=joined(batch.source_R, torch.full_like(item_M, SOURCE_RANDOM)),
            offset_R=joined(batch.offset_R, torch.full(item_M.shape, self.offset, device=item_M.device)),
        )

    def _draw(self, batch: Batch) -> Tensor:
        """Item rows ``(G, E)``, with replacement, every item of the kept prefixes alike; -1 where none was kept."""
        config, code_NL = self.model.config, self.model.code_NL[1:]
        depth = max(config.levels - 1, 1)  # a whole SID holds an item or two: one level above there is something to draw from
        key_NL = bucket_keys(code_NL[:, :depth], config.codes, "prefix")
        users = self.model.user_side(batch)
        kept_GW = torch.zeros(batch.requests, 1, dtype=torch.int64, device=code_NL.device)
        for level in range(depth):
            kept_GW = self._best(users, level, torch.unique(key_NL[:, level]), kept_GW)
        key_N, order_N = key_NL[:, -1].sort(stable=True)
        low_GW = torch.searchsorted(key_N, kept_GW)
        size_GW = torch.where(kept_GW == NONE, 0, torch.searchsorted(key_N, kept_GW, right=True) - low_GW)
        until_GW = size_GW.cumsum(1)
        place_GE = (self._uniform(batch.requests).to(key_N.device) * until_GW[:, -1:]).long()
        at_GE = torch.searchsorted(until_GW, place_GE, right=True).clamp_max(until_GW.shape[1] - 1)
        within_GE = place_GE - (until_GW - size_GW).gather(1, at_GE)
        row_GE = order_N[(low_GW.gather(1, at_GE) + within_GE).clamp_max(len(order_N) - 1)] + 1
        return torch.where(until_GW[:, -1:] > 0, row_GE, NONE)

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
