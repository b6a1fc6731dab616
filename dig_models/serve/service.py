"""Answers from one index generation, without a server: ``retrieve`` the best items for users, ``rank`` given items for a user.

Everything comes from the generation: model, catalogue, user state (profile, history, context) and cross arrays of its date. A user
without a state is a *cold* user: every profile and context field is the missing bucket 0, the history is empty, the moment is the start
of the day after the generation's, nothing is on offer. Popularity and the items' static fields decide then, and crosses if the arrays
hold older events of the user. Items that the catalogue does not hold are named, never guessed at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dig_models.config import RetrieveConfig
from dig_models.features import bucket_of, hash_id
from dig_models.index.reader import IndexReader
from dig_models.items import ItemTable
from dig_models.retrieve.allowed import AllowedItems
from dig_models.retrieve.options import SearchOptions
from dig_models.retrieve.recent import Recent
from dig_models.train.data import RequestTable

Int64 = NDArray[np.int64]
Floats = NDArray[np.float32]
_Filter = tuple[tuple[str, ...] | None, tuple[tuple[str, tuple[str, ...]], ...]]
WARM_USERS = 2
FILTER_BYTES = 256 << 20
"""Room for the filters asked for last; on a catalogue of a million items one takes about ten megabytes."""
TEXT_BYTES = 64
"""What an id takes beside its characters."""


class InvalidQuery(ValueError):
    """A question that this generation cannot answer; the message names what was asked and what is possible.

    Attributes:
        details: the same for programs: ``where`` in the question, what was ``expected`` and ``found`` there.
    """

    def __init__(self, message: str, *, where: str, expected: str, found: str) -> None:
        super().__init__(message)
        self.details = [{"where": where, "expected": expected, "found": found}]


@dataclass(frozen=True, kw_only=True)
class Search:
    """How to retrieve; equal searches may be answered together.

    Attributes:
        k: items a user.
        exclude_bought: leave out what the user bought before.
        beam: prefixes kept at each level; ``retrieve.beam`` if None.
        items: only these may be returned; all if None.
        fields: item field (or u2i key) to the values of which an item must have one, for every field named.
    """

    k: int
    exclude_bought: bool = False
    beam: int | None = None
    items: tuple[str, ...] | None = None
    fields: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def filter(self) -> _Filter:
        """What decides which items may be returned, the same however it was written down."""
        items = None if self.items is None else tuple(sorted(set(self.items)))
        return items, tuple(sorted({(name, tuple(sorted(set(values)))) for name, values in self.fields}))


@dataclass(frozen=True, kw_only=True)
class _Allowed:
    """A filter of a catalogue.

    Attributes:
        items: the items that pass, counted into the prefixes.
        unknown: ids in it that the catalogue does not hold.
        size: bytes that it takes, what was asked for included: on a small catalogue that is the most of it.
    """

    items: AllowedItems
    unknown: frozenset[str]
    size: int


@dataclass(frozen=True, kw_only=True)
class Scored:
    """An item of an answer; ``probability`` is the ranking path's chance of an event in one request."""

    item_id: str
    name: str
    sid: tuple[int, ...]
    probability: float


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Items for one user, best first; ``known`` says whether the generation holds a state of the user."""

    user: str
    known: bool
    items: tuple[Scored, ...]


@dataclass(frozen=True, kw_only=True)
class Source:
    """What answers come from: generation, the day that it serves, registered model and version."""

    generation: str
    day: date
    model_name: str
    model_version: str


@dataclass(frozen=True, kw_only=True)
class Reply:
    """Answers from one generation.

    Attributes:
        source: the generation that every part comes from.
        answers: one a user, in the order asked.
        unknown_items: item ids of the question that the catalogue does not hold, in the order asked.
    """

    source: Source
    answers: tuple[Answer, ...]
    unknown_items: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The request side of a user: ``requests`` and the position ``at`` in it."""

    requests: RequestTable
    at: int
    known: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Service:
    """An open generation with the settings to search it; safe to use from several threads.

    Filters asked for last are kept, ``FILTER_BYTES`` of them, so that a question with a filter that is in use costs what one without does.

    Attributes:
        reader: the generation.
        settings: beam and re-ranking depth, and the default of ``k``.
        source: what every answer comes from.
    """

    reader: IndexReader
    settings: RetrieveConfig = field(default_factory=RetrieveConfig)
    _filters: Recent[_Filter, _Allowed] = field(
        init=False, repr=False, default_factory=lambda: Recent(FILTER_BYTES, size=lambda kept: kept.size)
    )

    @classmethod
    def open(cls, root: str | Path, generation: str | None = None, *, settings: RetrieveConfig, checksums: bool = True) -> Service:
        """Open what ``CURRENT`` names, or one generation.

        Raises:
            IndexMissing: nothing was published yet, or there is no such generation.
            IndexCorrupt: a file of it is not what the manifest says.
        """
        return cls(reader=IndexReader.open(root, generation, checksums=checksums), settings=settings)

    @property
    def source(self) -> Source:
        """What every answer comes from."""
        m = self.reader.manifest
        return Source(generation=m.id, day=m.date, model_name=m.model_name, model_version=m.model_version)

    def retrieve(self, users: Sequence[str], search: Search) -> Reply:
        """The best ``search.k`` items for each user: beam search, then re-ranking with real crosses.

        A user gets fewer items if the search allows no more, or if the beam reaches no more.

        Raises:
            InvalidQuery: no positive ``k`` or ``beam``, or a field that the catalogue cannot be filtered by.
        """
        for name, value in (("k", search.k), ("beam", search.beam)):
            if value is not None and value < 1:
                raise InvalidQuery(f"{name} = {value}: expected at least 1", where=name, expected="at least 1", found=str(value))
        allowed, unknown = self.allowed(search)
        answers: dict[int, Answer] = {}
        for known, places, requests, at_B in self._together(users):
            item_BJ, score_BJ = self.search(requests, at_B, search, allowed)
            for place, item_J, score_J in zip(places, item_BJ, score_BJ, strict=True):
                real = item_J > 0
                answers[place] = self.answer(users[place], known, item_J[real], score_J[real])
        return Reply(source=self.source, answers=tuple(answers[i] for i in range(len(users))), unknown_items=unknown)

    def _together(self, users: Sequence[str]) -> Iterator[tuple[bool, list[int], RequestTable, Int64]]:
        """Known users and cold ones, each group in one table: known or not, places in ``users``, the table, and positions in it."""
        row_B = [self.reader.user_row(user) for user in users]
        known, cold = ([place for place, row in enumerate(row_B) if (row is None) == is_cold] for is_cold in (False, True))
        if known:
            yield True, known, self.reader.state, np.array([row_B[place] for place in known], dtype=np.int64)
        if cold:
            one, size = self.reader.stranger(users[cold[0]]), len(cold)
            several = replace(
                one,
                user_B=np.array([hash_id(users[place]) for place in cold], dtype=np.int64),
                ts_B=np.repeat(one.ts_B, size),
                offer_B=np.repeat(one.offer_B, size),
                user_BF=np.repeat(one.user_BF, size, axis=0),
                history_start=np.zeros(size + 1, dtype=np.int64),
                row_start=np.zeros(size + 1, dtype=np.int64),
            )
            yield False, cold, several, np.arange(size, dtype=np.int64)

    def search(self, requests: RequestTable, at_B: Int64, search: Search, allowed: AllowedItems | None = None) -> tuple[Int64, Floats]:
        """Item rows ``(B, k)``, 0 where there are fewer, and their log-probabilities, for some requests of a table.

        ``allowed`` is what ``self.allowed`` makes of the search; its ``items`` and ``fields`` are not looked at here.
        """
        network = self.reader.bundle.model.config
        options = SearchOptions(
            k=search.k,
            beam=search.beam or self.settings.beam,
            rerank=self.settings.rerank,
            u2t=network.u2t_inference,
            path_score=network.path_score,
            exclude_bought=search.exclude_bought,
            allowed=allowed,
        )
        found = self.reader.retriever.search(requests, at_B, options)
        return found.item_GJ, found.score_GJ

    def rank(self, user: str, items: Sequence[str]) -> Reply:
        """Items in the order of the ranking path with real crosses; equal scores by item row, repeated ids count once.

        Those that the catalogue does not hold are in ``Reply.unknown_items``.

        Raises:
            InvalidQuery: no items.
        """
        wanted = list(dict.fromkeys(items))
        if not wanted:
            raise InvalidQuery(
                "rank: no items given; expected at least one item id", where="items", expected="at least one item id", found="none"
            )
        item_P, unknown = self.rows(wanted)
        asked = self.asked(user)
        score_P = self.reader.retriever.rank(asked.requests, asked.at, item_P) if len(item_P) else np.zeros(0, dtype=np.float32)
        order = np.lexsort((item_P, -score_P))
        return Reply(source=self.source, answers=(self.answer(user, asked.known, item_P[order], score_P[order]),), unknown_items=unknown)

    def asked(self, user: str) -> Asked:
        """The request side of a user; that of a cold user if the generation holds no state of him."""
        row = self.reader.user_row(user)
        if row is None:
            return Asked(requests=self.reader.stranger(user), at=0, known=False)
        return Asked(requests=self.reader.state, at=row, known=True)

    def rows(self, items: Sequence[str]) -> tuple[Int64, tuple[str, ...]]:
        """Item rows ``(P,)`` of the ids that the catalogue holds, and the ids that it does not."""
        row_P = [self.reader.item_row(item) for item in items]
        known = np.array([row for row in row_P if row], dtype=np.int64)
        return known, tuple(item for item, row in zip(items, row_P, strict=True) if not row)

    def allowed(self, search: Search) -> tuple[AllowedItems | None, tuple[str, ...]]:
        """Items that a search may return, None for all, and the ids among ``search.items`` that the catalogue does not hold.

        Raises:
            InvalidQuery: a field that the catalogue cannot be filtered by.
        """
        if search.items is None and not search.fields:
            return None, ()
        wanted = search.filter
        found = self._filters.get(wanted, lambda: self._counted(*wanted))
        return found.items, tuple(item for item in dict.fromkeys(search.items or ()) if item in found.unknown)

    def _counted(self, items: tuple[str, ...] | None, fields: tuple[tuple[str, tuple[str, ...]], ...]) -> _Allowed:
        table = self.reader.bundle.items
        allowed_N = np.ones(len(table), dtype=bool)
        unknown: tuple[str, ...] = ()
        if items is not None:
            row_P, unknown = self.rows(items)
            allowed_N[:] = False
            allowed_N[row_P] = True
        for name, values in fields:
            allowed_N &= self._has_one_of(table, name, values)
        counted = self.reader.retriever.allow(allowed_N)
        texts = (*(items or ()), *(text for name, values in fields for text in (name, *values)))
        size = counted.allowed_N.nbytes + sum(count_P.nbytes for count_P in counted.count)
        size += sum(4 * len(text) + TEXT_BYTES for text in texts)
        return _Allowed(items=counted, unknown=frozenset(unknown), size=size)

    def _has_one_of(self, table: ItemTable, name: str, values: Sequence[str]) -> NDArray[np.bool_]:
        spec = self.reader.bundle.spec
        if name in spec.u2i_keys:  # 64-bit hashes of the raw values: exact
            own: Mapping[str, Int64] = {name: table.key_KN[spec.u2i_keys.index(name)]}
            wanted = [hash_id(value) for value in values]
        else:
            fields = {f.name: f for f in spec.item_fields if f.kind in ("categorical", "multi")}
            if name not in fields:
                possible = ", ".join(dict.fromkeys((*spec.u2i_keys, *fields)))
                message = f"fields: the catalogue cannot be filtered by {name!r}; it can by {possible}"
                raise InvalidQuery(message, where=f"fields.{name}", expected=f"one of {possible}", found=name)
            own, wanted = table.fields, [bucket_of(value, fields[name].buckets) for value in values]
        has_NV: NDArray[np.bool_] = np.isin(own[name], np.array(wanted, dtype=np.int64)).reshape(len(table), -1)
        return np.asarray(has_NV.any(axis=1))

    def answer(self, user: str, known: bool, item_J: Int64, score_J: Floats) -> Answer:
        """Item rows and log-probabilities as an answer."""
        table, probability_J = self.reader.bundle.items, np.exp(score_J.astype(np.float64)).tolist()
        items = (
            Scored(item_id=str(table.id_N[row]), name=str(table.name_N[row]), sid=self.reader.sid(row), probability=probability)
            for row, probability in zip(item_J.tolist(), probability_J, strict=True)
        )
        return Answer(user=user, known=known, items=tuple(items))

    def warm(self) -> None:
        """Answer for some known users and a cold one, so that the first real question finds pages, tables and kernels ready."""
        users = [*self.reader.user_ids[:WARM_USERS], ""]
        found = self.retrieve(users, Search(k=self.settings.k))
        self.reader.item_row("")
        if known := [item.item_id for answer in found.answers for item in answer.items]:
            self.rank(users[0], known)
