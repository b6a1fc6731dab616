"""Residual k-means over content vectors: level by level, what the centres so far leave is clustered again.

scikit-learn's ``KMeans`` is the engine. FAISS's was tried beside it, on the sentence vectors of 12,101 products (384 wide) with 256
codes, one thread: .7 against 2.6 seconds a level, but a mean squared distance of .327 against .321 on the first level and .215 against
.203 on the third, and 344 SIDs fewer. What makes the difference is the k-means++ start: FAISS given that start is as good, and takes
as long.
"""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from torch import Tensor

from dig_models.features import FeatureSpec
from dig_models.items import ItemTable
from dig_models.quantize.tree import nearest_codes
from dig_models.tokenizers.base import Ints, Tokenizer, without_unknown
from dig_models.tokenizers.content import ContentVectors
from dig_models.tokenizers.sequences import Sequences

Floats = NDArray[np.float32]


class ResidualKMeans(Tokenizer):
    """Nearest centres of residual k-means, ``code_LKD``."""

    kind = "rkmeans"

    def __init__(self, content: ContentVectors, code_LKD: Floats) -> None:
        super().__init__(content, *code_LKD.shape[:2])
        self._code_LKD = code_LKD

    @property
    def code_LKD(self) -> Floats:
        """See ``Tokenizer.code_LKD``."""
        return self._code_LKD

    def embed(self, items: ItemTable) -> Floats:
        """See ``Tokenizer.embed``: the vectors themselves."""
        return self.content.of(items)

    @classmethod
    def fit(
        cls,
        items: ItemTable,
        spec: FeatureSpec,
        *,
        levels: int,
        codes: int,
        seed: int,
        content: ContentVectors | None = None,
        sequences: Sequences | None = None,
    ) -> Self:
        """See ``Tokenizer.fit``."""
        content = content or ContentVectors.fit(items, spec, seed=seed)
        return cls(content, residual_kmeans(content.of(items)[1:], levels, codes, seed))

    def encode(self, items: ItemTable) -> Ints:
        """See ``Tokenizer.encode``."""
        return without_unknown(nearest_codes(self.content.of(items)[1:], self.code_LKD))

    def state(self) -> dict[str, Tensor]:
        """See ``Tokenizer.state``."""
        return {"code_LKD": torch.from_numpy(self.code_LKD)}

    @classmethod
    def from_state(cls, content: ContentVectors, levels: int, codes: int, state: dict[str, Tensor]) -> Self:
        """See ``Tokenizer.from_state``."""
        return cls(content, state["code_LKD"].view(levels, codes, -1).numpy())


def residual_kmeans(x_MD: Floats, levels: int, codes: int, seed: int) -> Floats:
    """Centres ``(L, K, D)``; where there are fewer distinct residuals than codes, the rest lie at the first centre and stay empty."""
    residual, centers = x_MD.astype(np.float32), []
    for level in range(levels):
        count = min(codes, len(np.unique(residual, axis=0)))
        fitted = KMeans(count, n_init=1, random_state=seed + level).fit(residual)
        center_KD = np.repeat(fitted.cluster_centers_[:1], codes, axis=0).astype(np.float32)
        center_KD[:count] = fitted.cluster_centers_
        residual = residual - center_KD[nearest_codes(residual, center_KD[None])[:, 0]]
        centers.append(center_KD)
    return np.stack(centers)
