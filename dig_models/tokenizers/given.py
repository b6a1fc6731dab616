"""Items as vectors that were made outside: sentence embeddings of their texts, item vectors of another model.

An item whose hash was not among the given ones (a cold item) gets the vector that ridge regression makes of its content vector
(``content.py``), zeros where the spec has no field that says anything. The unknown item in row 0 gets zeros.

Shape suffixes: ``N`` rows of the item table (row 0 unknown), ``V`` buckets of all fields, ``M`` items given, ``X`` items with a vector of
their own, ascending by hash, ``D`` width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import Ridge

from dig_models.cross_files import find
from dig_models.features import FeatureSpec
from dig_models.items import ItemTable
from dig_models.tokenizers.content import LEFT_OUT, WIDTH, ContentVectors, Floats

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class GivenVectors(ContentVectors):
    """Turns items into vectors that were given.

    Attributes:
        hash_X: hashes of the items with a vector of their own, ascending.
        vector_XD: these vectors; ``component_VD`` is for all other items.
    """

    kind: ClassVar[str] = "given"

    hash_X: Ints
    vector_XD: Floats

    @classmethod
    def of_vectors(
        cls, items: ItemTable, spec: FeatureSpec, hash_M: Ints, vector_MD: NDArray[np.floating[Any]], *, seed: int, width: int = WIDTH
    ) -> GivenVectors:
        """Keep vectors, and learn from the items that have one what the fields of the others say.

        One factor scales all vectors, such that the mean square of their entries is 1: what is near stays near.

        Args:
            items: the catalogue; given items that are not in it keep their vectors, but nothing is learned from them.
            spec: its fields.
            hash_M: hashes of the given items (``hash_id`` of their ids), in any order, each once.
            vector_MD: their vectors.
            seed: of the SVD of the fields.
            width: of the content vectors that the regression reads.

        Raises:
            ValueError: shapes that do not fit, an item twice, a number that is not finite, or no vector of an item of the catalogue.
        """
        hash_X, vector_XD = _checked(hash_M, vector_MD)
        row_X = items.rows(hash_X)
        if not (row_X > 0).any():
            raise ValueError(
                f"given vectors: none of {len(hash_X)} items is among the {len(items) - 1} of the catalogue; "
                "vectors go by the hash of the item id (features.hash_id)"
            )
        known_X = row_X > 0
        component_VD = regressed(items, spec, row_X[known_X], vector_XD[known_X], seed=seed, width=width)
        return cls(spec=spec, component_VD=component_VD, hash_X=hash_X, vector_XD=vector_XD)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See ``ContentVectors.arrays``."""
        return {"component_VD": self.component_VD, "hash_X": self.hash_X, "vector_XD": self.vector_XD}

    def of(self, items: ItemTable) -> Floats:
        """Vectors ``(N, D)`` float32: an item's own, or what its fields say; of the unknown item zeros.

        Raises:
            ValueError: fields that the spec does not have, or buckets out of range.
        """
        vector_ND = self._of_fields(items)
        at_N = find(self.hash_X, items.hash_N)
        own_N = at_N >= 0
        own_N[0] = False
        vector_ND[own_N] = self.vector_XD[at_N[own_N]]
        return vector_ND

    def _of_fields(self, items: ItemTable) -> Floats:
        if not len(self.component_VD):
            return np.zeros((len(items), self.vector_XD.shape[1]), dtype=np.float32)
        return super().of(items)


def _checked(hash_M: Ints, vector_MD: NDArray[np.floating[Any]]) -> tuple[Ints, Floats]:
    """Both by ascending hash, scaled."""
    if vector_MD.ndim != 2 or hash_M.shape != vector_MD.shape[:1] or not vector_MD.size:
        raise ValueError(f"given vectors: one row for each of {len(hash_M)} items expected, found an array of shape {vector_MD.shape}")
    wrong = np.flatnonzero(~np.isfinite(vector_MD).all(axis=1))
    if len(wrong):
        raise ValueError(f"given vectors: {len(wrong)} of {len(hash_M)} are not finite, the first in row {wrong[0]}")
    order = np.argsort(hash_M, kind="stable")
    hash_X = hash_M[order].astype(np.int64)
    twice = np.flatnonzero(hash_X[1:] == hash_X[:-1])
    if len(twice):
        raise ValueError(f"given vectors: item hash {hash_X[twice[0]]} has two vectors, expected one")
    vector_XD = vector_MD[order].astype(np.float64)
    return hash_X, (vector_XD / (float(np.sqrt(np.mean(np.square(vector_XD)))) or 1.0)).astype(np.float32)


def regressed(items: ItemTable, spec: FeatureSpec, row_X: Ints, vector_XD: Floats, *, seed: int, width: int = WIDTH) -> Floats:
    """What each bucket adds to the vector of an item that has none of its own, ``(V, D)``: ridge regression on content vectors.

    Without a field that says anything, or with a catalogue too small for content vectors, there are no rows.
    """
    if len(items) < 3 or not any(field.name != LEFT_OUT for field in spec.item_fields):
        return np.zeros((0, vector_XD.shape[1]), dtype=np.float32)
    content = ContentVectors.fit(items, spec, seed=seed, width=width)
    weight_DD = Ridge(alpha=1.0, fit_intercept=False).fit(content.of(items)[row_X], vector_XD).coef_.T
    return np.asarray(content.component_VD @ weight_DD, dtype=np.float32)
