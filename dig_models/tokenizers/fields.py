"""Items as their fields side by side, each an embedding of its own that was learned from what users did (``famae.py``).

A field's vocabulary is what the fitted catalogue has of it; a bucket that no fitted item has says nothing. The item itself is the first
field, by its own hash: a fitted item is its own value whatever fields the data set declares, and an item that came later has none. Number
0 of every vocabulary means "not known", be it missing, masked or new; its embedding is the field's mask vector.

Shape suffixes: ``N`` rows of the item table (row 0 unknown), ``F`` fields, ``W`` values of an item in a field (0-padded), ``V`` values of a
vocabulary, ``D`` width of a field.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dig_models.cross_files import find
from dig_models.features import FeatureSpec, FieldSpec
from dig_models.items import ItemTable
from dig_models.tokenizers.content import LEFT_OUT, ContentVectors, Floats

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class FieldVocabulary:
    """What the fields of a catalogue hold, numbered.

    Attributes:
        spec: whose item fields are read; numbers and the item-id field are not.
        hash_X: hashes of the fitted items, ascending; the item with ``hash_X[i]`` is number ``i + 1`` of the first field.
        known: of each other field its buckets in the fitted catalogue, ascending; ``known[f][i]`` is number ``i + 1``.
    """

    spec: FeatureSpec
    hash_X: Ints
    known: tuple[Ints, ...]

    @classmethod
    def of(cls, items: ItemTable, spec: FeatureSpec) -> FieldVocabulary:
        """The vocabulary of a catalogue.

        Raises:
            ValueError: a bucket lies outside its declared range.
        """
        known = tuple(np.unique(_buckets(items, each)[1:]) for each in read_fields(spec))
        return cls(spec=spec, hash_X=items.hash_N[1:].astype(np.int64), known=tuple(bucket[bucket > 0] for bucket in known))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the fields, the item itself first."""
        return (LEFT_OUT, *(each.name for each in read_fields(self.spec)))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Values of each vocabulary, number 0 not counted."""
        return (len(self.hash_X), *map(len, self.known))

    def numbers(self, items: ItemTable) -> list[Ints]:
        """The items' values by number, ``(N, W)`` for each field; 0 where nothing is known, and behind the last value.

        Raises:
            ValueError: a bucket lies outside its declared range.
        """
        own_N1 = _numbers(self.hash_X, items.hash_N[:, None])
        own_N1[0] = 0
        return [own_N1, *(_numbers(known, _buckets(items, each)) for known, each in zip(self.known, read_fields(self.spec), strict=True))]


def read_fields(spec: FeatureSpec) -> list[FieldSpec]:
    """Fields of the spec that are embedded: all but numbers and the item id, in whose place the item itself stands."""
    return [each for each in spec.item_fields if not each.is_number and each.name != LEFT_OUT]


def _buckets(items: ItemTable, of: FieldSpec) -> Ints:
    bucket_NW = np.asarray(items.fields[of.name]).reshape(len(items), -1)
    low, high = int(bucket_NW.min(initial=0)), int(bucket_NW.max(initial=0))
    if low < 0 or high >= of.buckets:
        raise ValueError(f"field {of.name!r}: bucket {low if low < 0 else high} found, the spec declares 0..{of.buckets - 1}")
    return bucket_NW.astype(np.int64)


def _numbers(known_V: Ints, value_NW: Ints) -> Ints:
    """Numbers of values among those known, 0 for others."""
    return find(known_V, value_NW.ravel()).reshape(value_NW.shape) + 1


@dataclass(frozen=True, kw_only=True)
class FieldEmbeddings(ContentVectors):
    """Turns items into the embeddings of their fields, side by side.

    Attributes:
        hash_X: see ``FieldVocabulary``.
        known_W, count_F: the known buckets of all other fields end to end, and how many each has.
        table_TD: embeddings of all fields end to end, the item itself first; each field's first row is its mask vector.
    """

    kind: ClassVar[str] = "field_embeddings"

    component_VD: Floats = field(default_factory=lambda: np.zeros((0, 0), dtype=np.float32))
    hash_X: Ints
    known_W: Ints
    count_F: Ints
    table_TD: Floats

    @classmethod
    def of_tables(cls, vocabulary: FieldVocabulary, tables: Sequence[Floats]) -> FieldEmbeddings:
        """From the tables of all fields, ``(V + 1, D)`` each."""
        return cls(
            spec=vocabulary.spec,
            hash_X=vocabulary.hash_X,
            known_W=np.concatenate([np.zeros(0, dtype=np.int64), *vocabulary.known]),
            count_F=np.array([len(bucket) for bucket in vocabulary.known], dtype=np.int64),
            table_TD=np.concatenate(list(tables)).astype(np.float32),
        )

    @property
    def vocabulary(self) -> FieldVocabulary:
        """Of the fitted catalogue."""
        return FieldVocabulary(
            spec=self.spec, hash_X=self.hash_X, known=tuple(np.split(self.known_W, self.count_F.cumsum()[:-1])[: len(self.count_F)])
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See ``ContentVectors.arrays``."""
        return {"hash_X": self.hash_X, "known_W": self.known_W, "count_F": self.count_F, "table_TD": self.table_TD}

    def of(self, items: ItemTable) -> Floats:
        """Vectors ``(N, F D)`` float32: a value's embedding, the mean of several, the mask vector of a field without any; row 0 is zeros.

        Raises:
            ValueError: a bucket lies outside its declared range.
        """
        vocabulary, parts = self.vocabulary, []
        rows = np.cumsum([size + 1 for size in vocabulary.sizes])
        for number_NW, table_VD in zip(vocabulary.numbers(items), np.split(self.table_TD, rows[:-1]), strict=True):
            count_N1 = (number_NW > 0).sum(1, keepdims=True)
            sum_ND = np.zeros((len(items), table_VD.shape[1]), dtype=np.float32)
            for number_N in number_NW.T:
                sum_ND += np.where(number_N[:, None] > 0, table_VD[number_N], 0.0)
            parts.append(np.where(count_N1 > 0, sum_ND / np.maximum(count_N1, 1), table_VD[0]))
        vector_ND = np.concatenate(parts, axis=1).astype(np.float32)
        vector_ND[0] = 0.0
        return vector_ND
