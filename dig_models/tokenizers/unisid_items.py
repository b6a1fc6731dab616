"""Items as sets of tokens, and the categories that UniSID's positives share.

A token is a bucket of a field; all fields but ``item_id`` (a hash of a name says nothing of an item) share one numbering, in which 0 is
no token. How many tokens an item can have follows from the spec, never from the table that the item lies in.

Shape suffixes: ``N`` rows of the item table (row 0 unknown), ``M`` items, ``W`` buckets of a field, ``T`` bucket tokens, ``F`` numeric
fields, ``L`` levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dig_models.features import FeatureSpec, FieldSpec
from dig_models.items import ItemTable
from dig_models.tokenizers.content import LEFT_OUT, Floats

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class FieldTokens:
    """Reads items as bucket tokens and numbers.

    Attributes:
        spec: whose item fields are read.
        field_tokens: buckets of a multi-valued or text field that are read; further ones are left out.
    """

    spec: FeatureSpec
    field_tokens: int

    @property
    def hashed(self) -> tuple[FieldSpec, ...]:
        """Fields of buckets, in the order of the spec."""
        return tuple(f for f in self.spec.item_fields if not f.is_number and f.name != LEFT_OUT)

    @property
    def numeric(self) -> tuple[FieldSpec, ...]:
        """Fields that are a number."""
        return tuple(f for f in self.spec.item_fields if f.is_number)

    @property
    def count(self) -> int:
        """How many tokens there are to tell apart, 0 (none) included."""
        return 1 + sum(f.buckets - 1 for f in self.hashed)

    def of_words(self) -> Ints:
        """Tokens of multi-valued and text fields, ascending: what a summary is made of."""
        at, out = 1, [np.zeros(0, dtype=np.int64)]
        for field in self.hashed:
            if field.kind in ("multi", "text"):
                out.append(np.arange(at, at + field.buckets - 1))
            at += field.buckets - 1
        return np.concatenate(out)

    def buckets(self, items: ItemTable) -> Ints:
        """Bucket tokens ``(N, T)``, 0 where there is none.

        Raises:
            ValueError: a bucket lies outside its declared range.
        """
        at, columns = 0, [np.zeros((len(items), 0), dtype=np.int64)]
        for field in self.hashed:
            bucket_NW = _checked(items, field)
            width = self.field_tokens if field.kind in ("multi", "text") else 1
            columns.append(_leading(bucket_NW, width, at))
            at += field.buckets - 1
        return np.concatenate(columns, axis=1)

    def numbers(self, items: ItemTable) -> Floats:
        """``sign(x) log(1 + |x|)`` of the numeric fields, ``(N, F)``."""
        values = [items.numbers[f.name].astype(np.float64) for f in self.numeric]
        value_NF = np.stack(values, axis=1) if values else np.zeros((len(items), 0))
        return np.asarray(np.sign(value_NF) * np.log1p(np.abs(value_NF)), dtype=np.float32)


def _checked(items: ItemTable, field: FieldSpec) -> Ints:
    bucket_NW = items.fields[field.name].reshape(len(items), -1).astype(np.int64)
    low, high = int(bucket_NW.min(initial=0)), int(bucket_NW.max(initial=0))
    if low < 0 or high >= field.buckets:
        raise ValueError(f"field {field.name!r}: bucket {low if low < 0 else high} found, the spec declares 0..{field.buckets - 1}")
    return bucket_NW


def _leading(bucket_NW: Ints, width: int, at: int) -> Ints:
    """The first ``width`` buckets of each row that are not 0, as tokens, ``(N, width)``."""
    order_NW = (bucket_NW == 0).argsort(axis=1, kind="stable")[:, :width]
    kept_NW = np.take_along_axis(bucket_NW, order_NW, axis=1)
    out = np.zeros((len(bucket_NW), width), dtype=np.int64)
    out[:, : kept_NW.shape[1]] = np.where(kept_NW > 0, kept_NW + at, 0)
    return out


@dataclass(frozen=True)
class Paths:
    """Which items are alike at each level, and how to draw one that is.

    Attributes:
        group_LM: items of a level with one number are positives of each other there; tighter with depth, at the end the item alone.
    """

    group_LM: Ints

    @classmethod
    def of(cls, items: ItemTable, fields: tuple[str, ...], levels: int) -> Paths:
        """From the category path.

        Level ``l`` of ``L`` shares the first ``ceil(l C / L)`` of ``C`` category fields, or ``l`` where there are fewer fields than levels;
        at a level below them, and where an item lacks one of these categories, it has no other item beside it.
        """
        alone_M = np.arange(len(items) - 1, dtype=np.int64)
        group_LM = np.empty((levels, len(alone_M)), dtype=np.int64)
        for level in range(1, levels + 1):
            depth = -(-level * len(fields) // levels) if len(fields) >= levels else level
            group_LM[level - 1] = _group(items, fields[:depth]) if depth <= len(fields) else alone_M
        return cls(group_LM)

    def companions(self, anchor_B: Ints, rng: np.random.Generator) -> Ints:
        """For each anchor an item of its group at a random level, perhaps itself, ``(B,)``."""
        level_B, out = rng.integers(0, len(self.group_LM), len(anchor_B)), anchor_B.copy()
        for level, group_M in enumerate(self.group_LM):
            mine = np.flatnonzero(level_B == level)
            order = group_M.argsort(kind="stable")
            ascending = group_M[order]
            first = np.searchsorted(ascending, group_M[anchor_B[mine]], side="left")
            size = np.searchsorted(ascending, group_M[anchor_B[mine]], side="right") - first
            out[mine] = order[first + (rng.random(len(mine)) * size).astype(np.int64)]
        return out


def _group(items: ItemTable, fields: tuple[str, ...]) -> Ints:
    """Number of the categories that an item has in all of these fields, ``(M,)``; of its own where one is missing."""
    value_MF = np.stack([items.fields[name][1:] for name in fields], axis=1)
    _, group_M = np.unique(value_MF, axis=0, return_inverse=True)
    missing_M = (value_MF == 0).any(axis=1)
    return np.where(missing_M, len(group_M) + np.arange(len(group_M)), group_M.reshape(-1)).astype(np.int64)


def category_path(items: ItemTable, spec: FeatureSpec, wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    """The fields of the category path, from coarse to fine.

    Args:
        items: the catalogue.
        spec: its fields.
        wanted: taken as they are; by default all single-valued categorical fields with two values or more, by their number of values.

    Raises:
        ValueError: a wanted field is not a categorical item field of the spec.
    """
    there = [f.name for f in spec.item_fields if f.kind == "categorical" and f.name != LEFT_OUT]
    if wanted is not None:
        for name in wanted:
            if name not in there:
                raise ValueError(f"category path: field {name!r} found, single-valued categorical item fields expected: {', '.join(there)}")
        return wanted
    values = {name: len(np.unique(items.fields[name][1:])) for name in there}
    return tuple(sorted((name for name in there if values[name] > 1), key=lambda name: values[name]))
