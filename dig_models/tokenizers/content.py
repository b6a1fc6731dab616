"""Items as dense vectors of their static fields, without any interaction: latent semantic analysis.

Each field gives a row of 0 and 1 over its buckets (a multi-valued field is scaled to length 1), buckets weigh ``log(N / df)``, and a
truncated SVD keeps the directions that items share (Deerwester et al. 1990). The field ``item_id`` is left out: a hash of a name
says nothing of an item. Here it stands for the sentence embeddings that TIGER (arXiv 2305.05065) starts from.

Shape suffixes: ``N`` rows of the item table (row 0 unknown), ``V`` buckets of all fields, ``D`` width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.decomposition import TruncatedSVD

from dig_models.features import FeatureSpec, FieldSpec
from dig_models.items import ItemTable

Floats = NDArray[np.float32]
WIDTH = 64
LEFT_OUT = "item_id"


@dataclass(frozen=True, kw_only=True)
class ContentVectors:
    """Turns items into vectors.

    Attributes:
        kind: name of the way, also in settings and files.
        spec: whose item fields are read.
        component_VD: what each bucket adds to a vector, weight included.
    """

    kind: ClassVar[str] = "fields"

    spec: FeatureSpec
    component_VD: Floats

    @classmethod
    def fit(cls, items: ItemTable, spec: FeatureSpec, *, seed: int, width: int = WIDTH) -> ContentVectors:
        """Learn the directions from a catalogue; the mean square of the vectors' entries is 1.

        Raises:
            ValueError: there are fewer than two items, or no field but the item's own id.
        """
        if len(items) < 3 or not _fields(spec):
            raise ValueError(f"content vectors of {len(items) - 1} item(s) with {len(_fields(spec))} field(s): at least 2 and 1 expected")
        count_NV = one_hot(items, spec)[1:]
        found_V = np.asarray((count_NV != 0).sum(axis=0)).ravel()
        weight_V = np.log(count_NV.shape[0] / np.maximum(found_V, 1))
        weighted = count_NV @ sparse.diags_array(weight_V)
        svd = TruncatedSVD(n_components=min(width, min(weighted.shape) - 1), random_state=seed)
        vector_ND = svd.fit_transform(weighted)
        scale = float(np.sqrt(np.mean(np.square(vector_ND)))) or 1.0
        component_VD = (weight_V[:, None] * svd.components_.T / scale).astype(np.float32)
        return cls(spec=spec, component_VD=component_VD)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All that ``of`` needs beside the spec, by attribute."""
        return {"component_VD": self.component_VD}

    def of(self, items: ItemTable) -> Floats:
        """Vectors ``(N, D)`` float32; of an unknown item, or one whose buckets were never seen, zeros.

        Raises:
            ValueError: fields that the spec does not have, or buckets out of range.
        """
        return np.asarray(one_hot(items, self.spec) @ self.component_VD, dtype=np.float32)


def _fields(spec: FeatureSpec) -> list[FieldSpec]:
    return [field for field in spec.item_fields if field.name != LEFT_OUT]


def one_hot(items: ItemTable, spec: FeatureSpec) -> sparse.csr_array:
    """The fields side by side, ``(N, V)``; a numeric field is one column, ``sign(x) log(1 + |x|)``.

    Raises:
        ValueError: a bucket lies outside its declared range.
    """
    return sparse.csr_array(sparse.hstack([_columns(items, field) for field in _fields(spec)]))


def _columns(items: ItemTable, field: FieldSpec) -> sparse.csr_array:
    if field.is_number:
        value_N = items.numbers[field.name].astype(np.float64)
        return sparse.csr_array((np.sign(value_N) * np.log1p(np.abs(value_N)))[:, None])
    bucket_NW = items.fields[field.name].reshape(len(items), -1)
    low, high = int(bucket_NW.min(initial=0)), int(bucket_NW.max(initial=0))
    if low < 0 or high >= field.buckets:
        raise ValueError(f"field {field.name!r}: bucket {low if low < 0 else high} found, the spec declares 0..{field.buckets - 1}")
    row, column = np.nonzero(bucket_NW)
    count_N = np.bincount(row, minlength=len(items))
    value = 1.0 / np.sqrt(count_N[row])
    return sparse.csr_array((value, (row, bucket_NW[row, column])), shape=(len(items), field.buckets))
