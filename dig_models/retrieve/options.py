"""Options of a retrieval, in one typed object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dig_models.retrieve.allowed import AllowedItems
from dig_models.retrieve.trie import Int64

U2t = Literal["mlp", "exact", "none"]


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How to search and what may be returned; lists hold one entry for each request, in their order.

    Attributes:
        k: items returned a request.
        beam: prefixes kept at each level, for all requests or for each.
        rerank: retrieved items (at least ``k``) scored again by the ranking path with real crosses; 0 keeps the path scores.
        u2t: prefix crosses: the exact mean over the prefix, ``MLP_u2t``, or ``none``, the same for every prefix (ablation).
        path_score: ``last`` ranks by the current prefix's probability, ``sum_log`` by the sum of the path's log-probabilities.
        allowed: items that may be returned at all (stock, region, category, freshness), for all requests or for each; a bool array
            by item row, or, where a mask serves many calls, what ``Retriever.allow`` made of it. Needs no rebuilt trie.
        exclude_bought: leave out items that the user bought before the request.
        exclude: further item rows that a request must not be answered with.
        chunk: requests at a time; decides the memory, never the answer.

    Raises:
        ValueError: a number out of range, or lists of different lengths.
    """

    k: int = 10
    beam: int | Sequence[int] = 200
    rerank: int = 400
    u2t: U2t = "exact"
    path_score: Literal["last", "sum_log"] = "last"
    allowed: NDArray[np.bool_] | AllowedItems | Sequence[AllowedItems] | None = None
    exclude_bought: bool = False
    exclude: Sequence[Int64] | None = None
    chunk: int = 16

    def __post_init__(self) -> None:
        lowest = [("k", self.k, 1), ("rerank", self.rerank, 0), ("chunk", self.chunk, 1)]
        lowest += [("beam", b, 1) for b in ([self.beam] if isinstance(self.beam, int) else self.beam)]
        for name, value, least in lowest:
            if value < least:
                raise ValueError(f"search option {name}: {value} found, expected at least {least}")
        for name, one, known in (("u2t", self.u2t, get_args(U2t)), ("path_score", self.path_score, ("last", "sum_log"))):
            if one not in known:
                raise ValueError(f"search option {name}: {one!r} found, expected one of {', '.join(known)}")

    def check(self, requests: int) -> None:
        """Refuse lists that do not have an entry for each request.

        Raises:
            ValueError: naming the option, what was found and what was expected.
        """
        lists: list[tuple[str, Sequence[object] | None]] = [("exclude", self.exclude)]
        if not isinstance(self.beam, int):
            lists.append(("beam", self.beam))
        if not isinstance(self.allowed, (AllowedItems, np.ndarray)):
            lists.append(("allowed", self.allowed))
        for name, value in lists:
            if value is not None and len(value) != requests:
                raise ValueError(f"search option {name}: {len(value)} entries found for {requests} requests")
