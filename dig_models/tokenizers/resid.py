"""ReSID (arXiv 2602.02338): semantic IDs from what users did, without a language model.

FAMAE (``famae.py``) learns embeddings of the item's fields, the item itself among them, that predict a user's next item; GAOQ
(``quantize/gaoq.py``) quantizes them, side by side, into SIDs of which no two fitted items share one.

A fitted item keeps its SID, found by its hash. The paper says nothing of items that come later. Here such an item's own embedding is the
id's mask vector; level by level it goes to the nearest node, and on the last level to the anchor nearest to it that no fitted item of the
bucket has, if there is one. Each is encoded for itself, so what else is in the table changes nothing; the price is that two new items may
get the same SID, and that a new item shares one with a fitted item where the bucket is full.

Shape suffixes: ``N`` rows of the item table (row 0 unknown), ``X`` fitted items by hash, ``L`` levels, ``K`` codes, ``D`` width.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from dig_models.cross_files import find
from dig_models.features import FeatureSpec
from dig_models.items import ItemTable
from dig_models.quantize.gaoq import Gaoq, branching_of
from dig_models.quantize.tree import codebooks_of
from dig_models.tokenizers.base import Ints, Tokenizer, without_unknown
from dig_models.tokenizers.content import ContentVectors, Floats
from dig_models.tokenizers.famae import FamaeFigures, fit_famae
from dig_models.tokenizers.fields import FieldEmbeddings
from dig_models.tokenizers.sequences import Sequences
from dig_models.tokenizers.settings import FamaeSettings, ReSidSettings

__all__ = ["ReSid", "ReSidSettings"]


class ReSid(Tokenizer):
    """Codes of GAOQ over FAMAE's field embeddings.

    Attributes:
        gaoq: the quantizer; its ``code_ML`` is in the order of ``content.hash_X``.
        figures: of FAMAE's training; None for one that was loaded.
    """

    kind = "resid"
    content: FieldEmbeddings

    def __init__(
        self, content: FieldEmbeddings, levels: int, codes: int, gaoq: Gaoq, code_LKD: Floats, figures: FamaeFigures | None = None
    ) -> None:
        super().__init__(content, levels, codes)
        self.gaoq, self._code_LKD, self.figures = gaoq, code_LKD, figures

    @property
    def code_LKD(self) -> Floats:
        """See ``Tokenizer.code_LKD``: of each code the mean of what the codes before leave of its fitted items."""
        return self._code_LKD

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
        settings: FamaeSettings | None = None,
    ) -> Self:
        """See ``Tokenizer.fit``; ``settings`` are FAMAE's, or ``ReSidSettings`` with a branching.

        ``sequences`` are needed; ``content`` is not read: the vectors are those that FAMAE learns. ``levels`` is 2 or more, the paper has
        3. ``codes`` is what no level exceeds: the branching follows from the catalogue's size unless it is set.

        Raises:
            ValueError: no sequences, or none with two items; items that do not fit into ``levels`` of ``codes``; a branching of another
                length or with more than ``codes`` children; more anchors than ``dim`` times the number of fields.
        """
        if sequences is None:
            raise ValueError("ReSID learns from what users did: sequences expected, none given; rkmeans and rqvae need none")
        settings = settings or ReSidSettings()
        branching = _branching(len(items) - 1, levels, codes, getattr(settings, "branching", ()))
        embeddings, figures = fit_famae(items, spec, sequences, seed=seed, settings=settings)
        x_MD = embeddings.of(items)[1:]
        gaoq = Gaoq.fit(x_MD, branching, seed)
        return cls(embeddings, levels, codes, gaoq, codebooks_of(x_MD, gaoq.code_ML, codes, seed).code_LKD, figures)

    def encode(self, items: ItemTable) -> Ints:
        """See ``Tokenizer.encode``: fitted items keep their own codes, others get the nearest free ones."""
        at_N = find(self.content.hash_X, items.hash_N)
        code_NL = self.gaoq.code_ML[at_N]
        cold_N = at_N < 0
        cold_N[0] = False
        code_NL[cold_N] = self.gaoq.nearest(self.content.of(items)[cold_N])
        return without_unknown(code_NL[1:])

    def embed(self, items: ItemTable) -> Floats:
        """See ``Tokenizer.embed``: field embeddings side by side. Clusters are balanced: another node may lie nearer."""
        return self.content.of(items)

    def state(self) -> dict[str, Tensor]:
        """See ``Tokenizer.state``."""
        arrays = {**self.gaoq.arrays(), "code_LKD": self._code_LKD}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    @classmethod
    def from_state(cls, content: ContentVectors, levels: int, codes: int, state: dict[str, Tensor]) -> Self:
        """See ``Tokenizer.from_state``.

        Raises:
            ValueError: the vectors are not field embeddings.
        """
        if not isinstance(content, FieldEmbeddings):
            raise ValueError(f"content vectors of kind {content.kind!r}, {FieldEmbeddings.kind!r} expected")
        arrays = {name: tensor.numpy() for name, tensor in state.items()}
        code_LKD = arrays.pop("code_LKD")
        return cls(content, levels, codes, Gaoq.from_arrays(arrays), code_LKD)


def _branching(items: int, levels: int, codes: int, given: tuple[int, ...]) -> tuple[int, ...]:
    """The given branching, or the one that suits the catalogue."""
    if not given:
        return branching_of(items, levels, codes)
    shown = "x".join(map(str, given))
    if len(given) != levels:
        raise ValueError(f"resid.branching {shown} has {len(given)} level(s), the tokenizer {levels}")
    if max(given) > codes:
        raise ValueError(
            f"resid.branching {shown} needs {max(given)} codes on a level, {codes} are allowed: set codes to {max(given)} or more"
        )
    return given
