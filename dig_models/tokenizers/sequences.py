"""What users did, as item rows in order of time: what tokenizers and generators that learn from interactions read.

Shape suffixes: ``U`` users, ``P`` events.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """One sequence a user; user ``u`` did ``item_P[start[u] : start[u + 1]]``, earliest first.

    Attributes:
        start: offsets ``(U + 1,)``, from 0 to P.
        item_P: rows of the item table, ``1..N-1``.
    """

    start: Ints
    item_P: Ints

    def __post_init__(self) -> None:
        if (
            self.start.ndim != 1
            or len(self.start) < 1
            or self.start[0] != 0
            or self.start[-1] != len(self.item_P)
            or (np.diff(self.start) < 0).any()
        ):
            raise ValueError(
                f"offsets of sequences: ascending from 0 to {len(self.item_P)} expected, found {self.start[:3]} .. {self.start[-3:]}"
            )
        if len(self.item_P) and self.item_P.min() < 1:
            raise ValueError("sequences: the unknown item (row 0) found, rows of known items expected")

    def __len__(self) -> int:
        return len(self.start) - 1

    @classmethod
    def of(cls, user_P: Ints, item_P: Ints) -> Sequences:
        """From events in order of time; users by number, what is done with unknown items (row 0) left out."""
        known_P = item_P > 0
        user_P, item_P = user_P[known_P], item_P[known_P]
        order = np.argsort(user_P, kind="stable")
        _, count_U = np.unique(user_P, return_counts=True)
        return cls(start=np.concatenate([[0], np.cumsum(count_U)]).astype(np.int64), item_P=item_P[order].astype(np.int64))

    def one(self, user: int) -> Ints:
        """The sequence of one user, ``(events,)``."""
        return self.item_P[self.start[user] : self.start[user + 1]]

    def without_last(self, count: int) -> Sequences:
        """The same users without their last ``count`` events each (leave-one-out: 2 for training, 1 for validation)."""
        end_U = np.maximum(self.start[1:] - count, self.start[:-1])
        kept_P = np.arange(len(self.item_P)) < np.repeat(end_U, np.diff(self.start))
        return Sequences(start=np.concatenate([[0], np.cumsum(end_U - self.start[:-1])]), item_P=self.item_P[kept_P])
