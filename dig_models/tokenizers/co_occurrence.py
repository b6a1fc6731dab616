"""Items as dense vectors of what they were bought together with, as two-stage systems make them; new items follow from their fields.

Two items co-occur where one user bought both on one day. Positive pointwise mutual information of the counts, contexts smoothed by the
power 3/4 (Levy, Goldberg and Dagan 2015), is cut by a truncated SVD, ``U sqrt(S)``; vectors are scaled to one length. An item with fewer
than ``MIN_BASKETS`` such days gets the vector that ridge regression makes of its content vector (``content.py``). Whoever fits this
decides which days it sees: none that a model trained on the SIDs is judged on.

Shape suffixes: ``N`` rows of the item table (row 0 unknown), ``P`` purchases, ``S`` baskets, ``V`` buckets of all fields, ``X`` items with
a vector of their own, ``D`` width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.decomposition import TruncatedSVD

from dig_models.features import FeatureSpec
from dig_models.items import ItemTable
from dig_models.tokenizers.content import WIDTH, Floats
from dig_models.tokenizers.given import GivenVectors, regressed

Ints = NDArray[np.int64]
MIN_BASKETS = 3
SMOOTHING = 0.75


@dataclass(frozen=True, kw_only=True)
class CoOccurrenceVectors(GivenVectors):
    """Turns items into vectors of what they were bought with; all have one length, those that follow from fields too."""

    kind: ClassVar[str] = "co_occurrence"

    @classmethod
    def of_baskets(
        cls, items: ItemTable, spec: FeatureSpec, basket_P: Ints, item_P: Ints, *, seed: int, width: int = WIDTH
    ) -> CoOccurrenceVectors:
        """Learn from purchases; the mean square of the vectors' entries is 1.

        Args:
            items: the catalogue.
            spec: its fields.
            basket_P: which basket a purchase belongs to, any numbers.
            item_P: item row bought; 0 is left out, and so is what a basket repeats.
            seed: of the SVDs.
            width: of the vectors, less if there are not so many items.

        Raises:
            ValueError: fewer than three items were bought with another one in ``MIN_BASKETS`` baskets.
        """
        ppmi_NN, basket_N = _ppmi(basket_P[item_P > 0], item_P[item_P > 0], len(items))
        own_X = np.flatnonzero((basket_N >= MIN_BASKETS) & (np.diff(ppmi_NN.indptr) > 0))
        if len(own_X) < 3:
            raise ValueError(
                f"{len(own_X)} item(s) were bought beside another one in {MIN_BASKETS} baskets, at least 3 expected: "
                "there is nothing to learn co-occurrence from; take SIDs from fields"
            )
        svd = TruncatedSVD(n_components=min(width, len(own_X) - 1), random_state=seed)
        vector_XD = svd.fit_transform(ppmi_NN[own_X]) / np.sqrt(np.maximum(svd.singular_values_, 1e-12))
        vector_XD = _one_length(vector_XD)
        order = np.argsort(items.hash_N[own_X], kind="stable")
        return cls(
            spec=spec,
            component_VD=regressed(items, spec, own_X, vector_XD, seed=seed, width=width),
            hash_X=items.hash_N[own_X][order],
            vector_XD=vector_XD[order],
        )

    def _of_fields(self, items: ItemTable) -> Floats:
        return _one_length(super()._of_fields(items))


def _ppmi(basket_P: Ints, item_P: Ints, rows: int) -> tuple[sparse.csr_array, Ints]:
    """Positive PMI ``(N, N)`` of items in one basket, and in how many baskets with another item each lies, ``(N,)``."""
    _, of_P = np.unique(basket_P, return_inverse=True)
    bought_SN = sparse.csr_array((np.ones(len(item_P)), (of_P, item_P)), shape=(int(of_P.max(initial=-1)) + 1, rows))
    bought_SN.data[:] = 1.0
    bought_SN = bought_SN[np.diff(bought_SN.indptr) > 1]
    pair_NN = sparse.coo_array(bought_SN.T @ bought_SN)
    apart = pair_NN.row != pair_NN.col
    row, column, count = pair_NN.row[apart], pair_NN.col[apart], pair_NN.data[apart]
    total_N = np.bincount(row, weights=count, minlength=rows)
    basket_N = np.asarray(bought_SN.sum(axis=0)).ravel().astype(np.int64)
    if not len(count):
        return sparse.csr_array((rows, rows)), basket_N
    context_N = total_N**SMOOTHING
    # log p(i, j) / (p(i) p_smoothed(j)); counts of all pairs cancel against those of the row.
    pmi = np.log(count) + np.log(context_N.sum()) - np.log(total_N[row]) - np.log(context_N[column])
    positive = pmi > 0
    ppmi = sparse.csr_array((pmi[positive], (row[positive], column[positive])), shape=(rows, rows))
    return ppmi, basket_N


def _one_length(vector_ND: NDArray[np.floating[Any]]) -> Floats:
    """Rows scaled to length ``sqrt(D)``; zeros stay zeros."""
    length_N1 = np.linalg.norm(vector_ND, axis=1, keepdims=True)
    scaled_ND = np.sqrt(vector_ND.shape[1]) * vector_ND / np.where(length_N1 > 0, length_N1, 1.0)
    return np.asarray(scaled_ND, dtype=np.float32)
