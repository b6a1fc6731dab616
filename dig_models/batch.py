"""A batch: requests, and the rows (request x item) that ride on them.

Shape suffixes: ``B`` requests, ``R`` rows, ``H`` history, ``C`` model crosses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dig_models.features import SOURCE_EXPOSED


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What the model sees in one step; rows are sorted by request.

    Attributes:
        user_BF: int64 buckets of ``spec.user_fields`` then ``spec.context_fields``, ``(B, F)``.
        history_BH: int64 rows of the item table, newest first, 0 = padding or unknown item.
        history_age_BH: float32 days before the request, 0 where padded.
        user_hash_B: int64, with ``ts_B`` (int64 seconds) and ``offer_B`` (int64 offer hash) the keys of cross look-ups.
        request_R: int64 index into ``B``, ascending.
        item_R: int64 rows of the item table.
        cross_RC: float32 model crosses.
        label_R: float32, 1 = positive event.
        source_R: int64, one of ``features.SOURCE_*``.
        offset_R: float32, log-odds added by sampling: log(1 / keep rate of negatives) for exposed rows,
            log(catalogue size / negatives drawn) for open-catalogue rows. The network models the true log-odds f; the
            loss sees sigmoid(f + offset), so probabilities stay calibrated.
    """

    user_BF: Tensor
    history_BH: Tensor
    history_age_BH: Tensor
    user_hash_B: Tensor
    ts_B: Tensor
    offer_B: Tensor
    request_R: Tensor
    item_R: Tensor
    cross_RC: Tensor
    label_R: Tensor
    source_R: Tensor
    offset_R: Tensor

    @property
    def requests(self) -> int:
        """Number of requests B."""
        return self.user_BF.shape[0]

    @property
    def rows(self) -> int:
        """Number of rows R."""
        return self.item_R.shape[0]

    @property
    def domain_R(self) -> Tensor:
        """int64 domain of each row: 0 = exposed (promoted and seen), 1 = open catalogue (every other source)."""
        return (self.source_R != SOURCE_EXPOSED).long()

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in self.__dataclass_fields__})
