"""Answers from the current index generation: recommended products for a user, or some products in the user's order.

Model, catalogue, user state and crosses come from one generation, whose id goes with every answer. A user without a state gets
what popularity and the items' static fields say, and the answer says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from numpy.typing import NDArray

from dig_models.arrays import Strings
from dig_models.features import SECONDS_PER_DAY
from dig_models.index.generation import IndexCorrupt, IndexMissing
from dig_models.serve.service import InvalidQuery, Reply, Search, Service
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

    def __init__(self, service: Service) -> None:
        self.service, self.reader = service, service.reader

    @classmethod
    def open(cls, config: Config, generation: str | None = None) -> Recommender:
        """Open what ``CURRENT`` names, or one generation.

        Raises:
            JobError: nothing was published yet, or a file of the generation is corrupt.
        """
        try:
            return cls(Service.open(index_root(config), generation, settings=config.retrieve, checksums=False))
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
        search = Search(k=self.service.settings.k if k is None else k, exclude_bought=exclude_bought)
        try:
            return self._told(self.service.retrieve([user], search))
        except InvalidQuery as error:
            raise JobError(str(error)) from None

    def rank(self, user: str, items: Sequence[str]) -> Answer:
        """Some products in the order of the ranking path with real crosses.

        Raises:
            JobError: no items, or items that the catalogue does not hold.
        """
        try:
            found = self.service.rank(user, items)
        except InvalidQuery as error:
            raise JobError(str(error)) from None
        if unknown := found.unknown_items:
            raise JobError(
                f"rank: {len(unknown)} of {len(set(items))} items are not in the catalogue of index generation {found.source.generation}: "
                f"{', '.join(unknown[:20])}; its {self.reader.manifest.items} items are in {self.reader.folder}/item_to_sid.parquet"
            )
        return self._told(found)

    def _told(self, found: Reply) -> Answer:
        source, answer = found.source, found.answers[0]
        asked, table = self.service.asked(answer.user), self.reader.bundle.items
        items = [
            Scored(place=place, item_id=i.item_id, name=i.name, sid=i.sid, probability=i.probability)
            for place, i in enumerate(answer.items, 1)
        ]
        return Answer(
            user=answer.user,
            known=answer.known,
            note="" if answer.known else STRANGER.format(day=source.day),
            items=tuple(items),
            history=_history(asked.requests, asked.at, table.id_N, table.name_N),
            generation=source.generation,
            day=source.day,
            model_name=source.model_name,
            model_version=source.model_version,
        )


def recommend(config: Config, user: str, k: int | None = None) -> Answer:
    """``Recommender.recommend`` on the current generation."""
    return Recommender.open(config).recommend(user, k)


def rank(config: Config, user: str, items: Sequence[str]) -> Answer:
    """``Recommender.rank`` on the current generation."""
    return Recommender.open(config).rank(user, items)


def _history(requests: RequestTable, at: int, id_N: NDArray[Any] | Strings, name_N: NDArray[Any] | Strings) -> tuple[Past, ...]:
    part = slice(int(requests.history_start[at]), int(requests.history_start[at + 1]))
    return tuple(
        Past(day=date(1970, 1, 1) + timedelta(days=int(ts) // SECONDS_PER_DAY), item_id=str(id_N[row]), name=str(name_N[row]))
        for row, ts in zip(requests.history_item[part], requests.history_ts[part], strict=True)
        if row
    )
