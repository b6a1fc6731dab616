"""Answers from the current index generation: recommended products for a user, or some products in the user's order.

Model, catalogue, user state and crosses come from one generation, whose id goes with every answer. A user without a state gets
what popularity and the items' static fields say, and the answer says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dig_models.features import SECONDS_PER_DAY
from dig_models.index.generation import IndexCorrupt, IndexMissing
from dig_models.index.reader import IndexReader
from dig_models.train.data import RequestTable
from jobs.config import Config
from jobs.entry import JobError
from jobs.index import index_root

STRANGER = "no history of this user by {day}: the order follows popularity and the products' own features"


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A product in an answer; ``probability`` is the ranking path's chance of an event in one request."""

    place: int
    item_id: str
    name: str
    sid: tuple[int, ...]
    probability: float


@dataclass(frozen=True, kw_only=True)
class Past:
    """A product of the user's history."""

    day: date
    item_id: str
    name: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What was asked for, and what it comes from.

    Attributes:
        known: whether the index holds a state of the user; else ``note`` says what decides instead.
        history: the user's newest products of the catalogue, newest first.
        generation: index generation; ``day`` the day that it serves.
        model: name and version.
    """

    user: str
    known: bool
    note: str
    items: tuple[Scored, ...]
    history: tuple[Past, ...]
    generation: str
    day: date
    model_name: str
    model_version: str


class Recommender:
    """The current generation, open; answers any number of questions from that one generation."""

    def __init__(self, config: Config, reader: IndexReader) -> None:
        self.config, self.reader = config, reader

    @classmethod
    def open(cls, config: Config, generation: str | None = None) -> Recommender:
        """Open what ``CURRENT`` names, or one generation.

        Raises:
            JobError: nothing was published yet, or a file of the generation is corrupt.
        """
        try:
            return cls(config, IndexReader.open(index_root(config), generation))
        except (IndexMissing, IndexCorrupt) as error:
            raise JobError(str(error)) from error

    def recommend(self, user: str, k: int | None = None, *, exclude_bought: bool = False) -> Answer:
        """The best ``k`` products for a user: beam search, then re-ranking.

        Args:
            user: user id; one without a state is answered all the same, see ``Answer.note``.
            k: how many; ``retrieve.k`` by default.
            exclude_bought: leave out what the user bought before.

        Raises:
            JobError: ``k`` is not positive.
        """
        settings = self.config.retrieve
        k = settings.k if k is None else k
        if k < 1:
            raise JobError(f"k = {k}: expected at least 1 product")
        requests, at, known = self._request(user)
        network = self.reader.bundle.model.config
        found = self.reader.retriever.retrieve(
            requests,
            np.array([at], dtype=np.int64),
            k=k,
            beam=settings.beam,
            rerank=settings.rerank,
            u2t=network.u2t_inference,
            path_score=network.path_score,
            exclude_bought=exclude_bought,
        )
        real = found.item_GJ[0] > 0
        return self._answer(user, known, requests, at, found.item_GJ[0][real], found.score_GJ[0][real])

    def rank(self, user: str, items: Sequence[str]) -> Answer:
        """Some products in the order of the ranking path with real crosses.

        Raises:
            JobError: no items, or items that the catalogue does not hold.
        """
        asked = list(dict.fromkeys(items))
        if not asked:
            raise JobError("rank: no items given; expected at least one item id")
        rows = np.array([self.reader.item_row(item) for item in asked], dtype=np.int64)
        unknown = [item for item, row in zip(asked, rows, strict=True) if not row]
        if unknown:
            raise JobError(
                f"rank: {len(unknown)} of {len(asked)} items are not in the catalogue of index generation {self.reader.manifest.id}: "
                f"{', '.join(unknown[:20])}; its {self.reader.manifest.items} items are in {self.reader.folder}/item_to_sid.parquet"
            )
        requests, at, known = self._request(user)
        score_P = self.reader.retriever.rank(requests, at, rows)
        order = np.lexsort((rows, -score_P))
        return self._answer(user, known, requests, at, rows[order], score_P[order])

    def _request(self, user: str) -> tuple[RequestTable, int, bool]:
        row = self.reader.user_row(user)
        return (self.reader.stranger(user), 0, False) if row is None else (self.reader.state, row, True)

    def _answer(
        self, user: str, known: bool, requests: RequestTable, at: int, item_J: NDArray[np.int64], score_J: NDArray[np.float32]
    ) -> Answer:
        table, manifest = self.reader.bundle.items, self.reader.manifest
        items = [
            Scored(
                place=place,
                item_id=str(table.id_N[row]),
                name=str(table.name_N[row]),
                sid=self.reader.sid(int(row)),
                probability=float(np.exp(score)),
            )
            for place, (row, score) in enumerate(zip(item_J, score_J, strict=True), 1)
        ]
        return Answer(
            user=user,
            known=known,
            note="" if known else STRANGER.format(day=manifest.date),
            items=tuple(items),
            history=_history(requests, at, table.id_N, table.name_N),
            generation=manifest.id,
            day=manifest.date,
            model_name=manifest.model_name,
            model_version=manifest.model_version,
        )


def recommend(config: Config, user: str, k: int | None = None) -> Answer:
    """``Recommender.recommend`` on the current generation."""
    return Recommender.open(config).recommend(user, k)


def rank(config: Config, user: str, items: Sequence[str]) -> Answer:
    """``Recommender.rank`` on the current generation."""
    return Recommender.open(config).rank(user, items)


def _history(requests: RequestTable, at: int, id_N: NDArray[Any], name_N: NDArray[Any]) -> tuple[Past, ...]:
    part = slice(int(requests.history_start[at]), int(requests.history_start[at + 1]))
    return tuple(
        Past(day=date(1970, 1, 1) + timedelta(days=int(ts) // SECONDS_PER_DAY), item_id=str(id_N[row]), name=str(name_N[row]))
        for row, ts in zip(requests.history_item[part], requests.history_ts[part], strict=True)
        if row
    )
