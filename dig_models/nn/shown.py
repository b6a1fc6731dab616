"""What training has shown of the items; what it has not shown says nothing, and reads as missing in evaluation mode.

A bucket that no example showed still has the random row it started with, and the item-id bucket of an item that no example showed
has that row, or one that other items trained. A semantic ID that followed from either would follow from the spelling of an id.

Shape suffixes: ``T`` rows of the embedding table, ``F`` bucketed fields, ``N`` catalogue (row 0 unknown), ``M`` items looked up,
``J`` bucket columns, ``X`` items ever shown.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dig_models.cross_files import find
from dig_models.nn.embedding import FieldEmbedding
from dig_models.nn.norm import gathered

ITEM_ID = "item_id"


class Shown(nn.Module):
    """Rows of the item fields' table, and items, that a training step has read.

    All ranks note what any of them was shown, so they agree. Where nothing is noted, of a model that was never trained or was saved
    before this was kept, every bucket is read as it is.

    Attributes:
        bucket_T: rows of the table that a step has read.
        item_N: items of the catalogue in force that a step has read with their id.
    """

    bucket_T: Tensor
    item_N: Tensor
    start_F: Tensor

    def __init__(self, fields: FieldEmbedding) -> None:
        super().__init__()
        names = [f.name for f in (*fields.single, *fields.bags)]
        self.id_column = names.index(ITEM_ID) if ITEM_ID in [f.name for f in fields.single] else None
        self.register_buffer("bucket_T", torch.zeros(fields.table.num_embeddings, dtype=torch.bool))
        self.register_buffer("item_N", torch.zeros(0, dtype=torch.bool))
        self.register_buffer("start_F", torch.tensor([fields.offset[n] for n in names], dtype=torch.int64), persistent=False)
        self._hash_N = self._hash_X = np.zeros(0, dtype=np.int64)

    def enter(self, hash_N: NDArray[np.int64]) -> None:
        """Another catalogue comes into force."""
        self._hash_X, self._hash_N = self.hashes(), hash_N
        self.item_N = torch.from_numpy(_among(self._hash_X, hash_N)[0]).to(self.item_N.device)

    def hashes(self) -> NDArray[np.int64]:
        """Hashes of all items that were shown with their id, also of those outside the catalogue, ``(X,)`` ascending."""
        return np.union1d(self._hash_X, self._hash_N[self.item_N.cpu().numpy()])

    def take(self, hash_X: NDArray[np.int64]) -> None:
        """Exactly these items (ascending hashes) were shown with their id."""
        self._hash_X = hash_X
        self.item_N = torch.from_numpy(_among(hash_X, self._hash_N)[0]).to(self.item_N.device)

    def of(self, hash_M: NDArray[np.int64]) -> Tensor:
        """Whether items, which need not be in the catalogue, were shown with their id; bool ``(M,)`` on the CPU."""
        there_M, at_M = _among(self._hash_N, hash_M)
        own_M = there_M & (self.item_N.cpu().numpy()[at_M] if len(self._hash_N) else False)
        return torch.from_numpy(own_M | _among(self._hash_X, hash_M)[0])

    @torch.no_grad()
    def note(self, item_M: Tensor, masked_M: Tensor, index_NJ: Tensor) -> None:
        """A training step reads these rows of the catalogue, all buckets of them but the ids of the masked ones; all ranks call it.

        Ranks tell each other only what is new to them, so a step costs what its batch holds and not what the catalogue does, and
        all of them agree after every step.
        """
        own_M = ~masked_M & (item_M > 0)
        index_MJ = self.without_id(index_NJ.index_select(0, item_M), ~own_M)
        fresh_M = (own_M & ~self.item_N[item_M]) | ~self.bucket_T[index_MJ].all(dim=1)
        told_X = gathered(item_M[fresh_M] * 2 + own_M[fresh_M])
        item_X, own_X = told_X // 2, told_X % 2 > 0
        self.item_N[item_X[own_X]] = True
        self.bucket_T[self.without_id(index_NJ.index_select(0, item_X), ~own_X).flatten()] = True

    def read(self, index_MJ: Tensor, item_M: Tensor, masked_M: Tensor | None) -> Tensor:
        """Packed buckets of rows of the catalogue as the encoder is to read them, ``(M, J)``.

        A training step reads all but the ids that it masks. Between the steps statistics and codes follow every bucket as it is,
        for most of them will yet be shown; in evaluation mode see ``known``.
        """
        if masked_M is not None:
            return self.without_id(index_MJ, masked_M)
        return index_MJ if self.training else self.known(index_MJ, self.item_N.index_select(0, item_M))

    @property
    def never(self) -> float:
        """Share of the catalogue that no step has read with its id."""
        items = max(len(self.item_N) - 1, 1)
        return 1.0 - int(self.item_N[1:].sum()) / items

    def known(self, index_MJ: Tensor, own_M: Tensor) -> Tensor:
        """Packed buckets with what was never shown as missing, ``(M, J)``; ``own_M`` as ``of`` gives it."""
        if not bool(self.bucket_T.any()):
            return index_MJ
        missing_MJ = self.start_F[torch.bucketize(index_MJ, self.start_F, right=True) - 1]
        return self.without_id(torch.where(self.bucket_T[index_MJ], index_MJ, missing_MJ), ~own_M)

    def without_id(self, index_MJ: Tensor, masked_M: Tensor) -> Tensor:
        """Packed buckets with the item ids of some items as missing, ``(M, J)``; where no field is called ``item_id``, as they are."""
        if self.id_column is None:
            return index_MJ
        index_MJ = index_MJ.clone()
        index_MJ[:, self.id_column] = torch.where(masked_M, self.start_F[self.id_column], index_MJ[:, self.id_column])
        return index_MJ


def _among(sorted_X: NDArray[np.int64], hash_M: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Whether and where hashes are among ascending ones."""
    at_M = find(sorted_X, hash_M)
    return at_M >= 0, at_M
