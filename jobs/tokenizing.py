"""SIDs made beforehand from what a training reads: what users bought on the days that move weights, a fit, codes for all items known.

The daily job (``jobs.sids``) and the ablation make theirs here, so both mean the same by a tokenizer.

Shape suffixes: ``P`` purchases, ``N`` rows of the item table (row 0 unknown), ``L`` levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from dig_models.config import Strict
from dig_models.features import FeatureSpec
from dig_models.index.resolve import publish
from dig_models.items import ItemTable
from dig_models.quantize.known import KnownSids
from dig_models.tokenizers.base import Ints, Tokenizer, TokenizerError
from dig_models.tokenizers.co_occurrence import CoOccurrenceVectors
from dig_models.tokenizers.conflicts import settle
from dig_models.tokenizers.registry import MissingExtra, tokenizer_class
from dig_models.tokenizers.sequences import Sequences
from dig_models.tokenizers.settings import Conflicts, Content
from jobs.dates import days_between
from jobs.entry import JobError
from jobs.train_inputs import TrainInputs


@dataclass(frozen=True, kw_only=True)
class Purchases:
    """Positives of the examples of the days that move weights: none of validation or evaluation.

    Attributes:
        user_P: users, numbered by their hashes.
        day_P: days since 1970-01-01 whose examples they are of.
        ts_P: time of the request, seconds of the local clock.
        item_P: item rows; 0 for items that training does not show.
    """

    user_P: Ints
    day_P: Ints
    ts_P: Ints
    item_P: Ints

    @classmethod
    def of(cls, inputs: TrainInputs, items: ItemTable) -> Purchases:
        """Read them, in the order of days, requests and their rows."""
        parts: list[list[Ints]] = [[np.zeros(0, np.int64)] for _ in range(4)]
        for day in days_between(inputs.window.train_first, inputs.window.fit_last):
            table = inputs.lake.read_arrow("examples", [day], columns=["user_hash", "ts", "item", "label"]).combine_chunks()
            kept_P = pc.list_flatten(table.column("label")).to_numpy() > 0
            row_P = pc.list_parent_indices(table.column("item")).to_numpy()[kept_P]
            item_P = items.rows(pc.list_flatten(table.column("item")).to_numpy()[kept_P])
            columns = (
                table.column("user_hash").to_numpy()[row_P],
                np.full(len(row_P), day.toordinal()),
                table.column("ts").to_numpy()[row_P],
            )
            for part, column in zip(parts, (*columns, item_P), strict=True):
                part.append(column.astype(np.int64))
        hash_P, day_P, ts_P, item_P = (np.concatenate(part) for part in parts)
        return cls(user_P=np.unique(hash_P, return_inverse=True)[1].astype(np.int64), day_P=day_P, ts_P=ts_P, item_P=item_P)

    def co_occurrence(self, items: ItemTable, spec: FeatureSpec, seed: int) -> CoOccurrenceVectors:
        """Item vectors from what each user bought on each day.

        Raises:
            ValueError: hardly anything was bought together.
        """
        _, basket_P = np.unique(np.stack([self.day_P, self.user_P]), axis=1, return_inverse=True)
        return CoOccurrenceVectors.of_baskets(items, spec, basket_P.reshape(-1).astype(np.int64), self.item_P, seed=seed)

    def sequences(self, seed: int) -> Sequences:
        """What each user bought in order of time; of one request in an order that is drawn.

        Examples keep the rows of a request by item hash, so in their order the next item would be the one of the larger hash. A basket has
        no order that says anything.
        """
        order = np.lexsort((np.random.default_rng(seed).random(len(self.ts_P)), self.ts_P))
        return Sequences.of(self.user_P[order], self.item_P[order])


def levels_fitted(levels: int, conflicts: Conflicts) -> int:
    """Levels of the tokenizer: those of the model, but for the one that a suffix takes."""
    return levels - 1 if conflicts == "suffix" else levels


def fitted(inputs: TrainInputs, kind: str, *, content: Content, conflicts: Conflicts, seed: int, settings: Strict | None) -> Tokenizer:
    """A tokenizer of the items that training shows.

    Args:
        inputs: what a training reads.
        kind: name of the method.
        content: what is known of an item.
        conflicts: what will become of items that share a SID.
        seed: of all that is drawn.
        settings: the kind's own; None for one that has none.

    Raises:
        JobError: a package is missing, or items or sequences are too few for this method.
    """
    spec, shape = inputs.config.dataset.spec(), inputs.config.model
    items = ItemTable.from_arrow(inputs.items_shown(), spec)
    options: dict[str, Any] = {"settings": settings} if settings else {}
    try:
        found, bought = tokenizer_class(kind), Purchases.of(inputs, items)
        vectors = bought.co_occurrence(items, spec, seed) if content == "co_occurrence" else None
        return found.fit(
            items,
            spec,
            levels=levels_fitted(shape.levels, conflicts),
            codes=shape.codes,
            seed=seed,
            content=vectors,
            sequences=bought.sequences(seed),
            **options,
        )
    except (ValueError, TokenizerError, MissingExtra) as error:
        raise JobError(f"tokenizer {kind}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """SIDs of all items known on the date.

    Attributes:
        items: these items; ``code_NL`` their SIDs, ``was_NL`` what the tokenizer gives them.
        shown: how many of them training shows.
    """

    items: ItemTable
    code_NL: Ints
    was_NL: Ints
    shown: int


def encoded(inputs: TrainInputs, tokenizer: Tokenizer, *, conflicts: Conflicts, before: KnownSids | None = None) -> Encoded:
    """Give every item known its SID.

    Args:
        inputs: what a training reads.
        tokenizer: fitted, now or for an earlier date.
        conflicts: what becomes of items that share a SID.
        before: SIDs that items had, which they keep (``nearest``) while the tokenizer gives them the same prefix.

    Raises:
        JobError: more items share a SID than a suffix tells apart.
    """
    spec = inputs.config.dataset.spec()
    everyone = ItemTable.from_arrow(inputs.items_known(), spec)
    shown_N = np.isin(everyone.hash_N, inputs.items_shown().column("item_hash").to_numpy())
    if conflicts == "nearest":  # what training shows goes before what it does not, and what was published before both
        was_NL = tokenizer.encode(everyone)
        code_NL = was_NL.copy()
        publish(code_NL, tokenizer.embed(everyone), tokenizer.code_LKD, everyone.hash_N, known_N=shown_N, before=before)
        return Encoded(items=everyone, code_NL=code_NL, was_NL=was_NL, shown=int(shown_N.sum()))
    try:
        code_NL = settle(tokenizer, everyone, conflicts).code_NL
    except ValueError as error:
        raise JobError(f"tokenizers.conflicts {conflicts}: {error}") from error
    return Encoded(items=everyone, code_NL=code_NL, was_NL=tokenizer.encode(everyone), shown=int(shown_N.sum()))
