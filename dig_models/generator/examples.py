"""What a generator learns from and is asked: an event of a user, and those before it.

Shape suffixes: ``P`` events of all users, ``X`` examples, ``B`` examples of a batch, ``H`` items of a history.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from dig_models.tokenizers.sequences import Sequences

POOL = 16
"""Batches whose examples are sorted by length among each other, so that little of a batch is padding."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Targets with their histories, as places in one array of events.

    Attributes:
        item_P: item rows of all users' events, each user's in order of time.
        at_X: event that is the target.
        first_X: first event of the target's user.
    """

    item_P: Tensor
    at_X: Tensor
    first_X: Tensor

    def __len__(self) -> int:
        return len(self.at_X)

    @classmethod
    def every(cls, sequences: Sequences) -> Self:
        """Each event that has one before it."""
        first_P = np.repeat(sequences.start[:-1], np.diff(sequences.start))
        at_X = np.flatnonzero(np.arange(len(first_P)) > first_P)
        return cls._of(sequences, at_X, first_P[at_X])

    @classmethod
    def last(cls, sequences: Sequences) -> Self:
        """The last event of each user who has two."""
        some_U = np.diff(sequences.start) > 1
        return cls._of(sequences, sequences.start[1:][some_U] - 1, sequences.start[:-1][some_U])

    @classmethod
    def _of(cls, sequences: Sequences, at_X: np.ndarray, first_X: np.ndarray) -> Self:
        return cls(item_P=torch.from_numpy(sequences.item_P), at_X=torch.from_numpy(at_X), first_X=torch.from_numpy(first_X))

    def to(self, device: torch.device) -> Examples:
        """The same examples on a device."""
        return Examples(item_P=self.item_P.to(device), at_X=self.at_X.to(device), first_X=self.first_X.to(device))

    def take(self, row_B: Tensor) -> Examples:
        """Some of the examples."""
        return Examples(item_P=self.item_P, at_X=self.at_X[row_B], first_X=self.first_X[row_B])

    def history(self, length: int) -> Tensor:
        """The newest ``length`` events before each target, ``(X, H)``, oldest first, then 0; H is that of the longest, 1 at least."""
        count_X = (self.at_X - self.first_X).clamp(max=length)
        place_H = torch.arange(max(int(count_X.max()) if len(self) else 0, 1), device=self.at_X.device)
        at_XH = (self.at_X - count_X).unsqueeze(1) + place_H
        there_XH = place_H < count_X.unsqueeze(1)
        return torch.where(there_XH, self.item_P[at_XH.clamp(max=len(self.item_P) - 1)], 0)

    @property
    def target_X(self) -> Tensor:
        """Item row of each target."""
        return self.item_P[self.at_X]

    def batches(self, size: int, length: int, seed: int) -> Iterator[Examples]:
        """All examples once, in an order that the seed decides; those of a batch have histories of about one length."""
        generator = torch.Generator().manual_seed(seed)
        order_X = torch.randperm(len(self), generator=generator)
        count_X = (self.at_X - self.first_X).clamp(max=length).cpu()
        found: list[Tensor] = []
        for pool in torch.split(order_X, size * POOL):
            found += torch.split(pool[torch.argsort(count_X[pool], stable=True)], size)
        for batch in torch.randperm(len(found), generator=generator).tolist():
            yield self.take(found[batch].to(self.at_X.device))
