"""DIGER (arXiv 2601.19711): an RQ-VAE whose codes are trained on together with the generator that reads them.

An RQ-VAE is fitted on the items first (``rqvae.py``); then it and a T5 (``generator/t5.py``) learn as one from the users' sequences, with
Gumbel exploration against the collapse of codes (``diger_train.py``). Afterwards a SID is what an RQ-VAE gives: nearest residual codes of
the latent, without noise, a function of the item's vector alone. Collisions are resolved after the fit; the joint training knows no suffix.

Needs ``sequences`` and the extra ``generator`` (transformers) to fit, neither to encode.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from dig_models.features import FeatureSpec
from dig_models.generator.examples import Examples
from dig_models.generator.t5 import SidT5
from dig_models.items import ItemTable
from dig_models.tokenizers.base import Ints, Tokenizer
from dig_models.tokenizers.content import ContentVectors, Floats
from dig_models.tokenizers.diger_settings import DigerSettings
from dig_models.tokenizers.diger_train import Epoch, JointTraining
from dig_models.tokenizers.rqvae import RqVae
from dig_models.tokenizers.sequences import Sequences


class Diger(Tokenizer):
    """Codes of an RQ-VAE after joint training.

    Attributes:
        rqvae: the RQ-VAE as the joint training left it.
        epochs: what each epoch of the joint training brought, the share of items whose SID it changed among it; empty for one that was
            loaded.
        generator: the T5 that was trained with it, on SIDs without a suffix; ``None`` for one that was loaded: it is no part of the files.
    """

    kind = "diger"
    settings: DigerSettings

    def __init__(self, rqvae: RqVae, settings: DigerSettings, *, epochs: tuple[Epoch, ...] = (), generator: SidT5 | None = None) -> None:
        super().__init__(rqvae.content, rqvae.levels, rqvae.codes)
        self.rqvae, self.settings, self.epochs, self.generator = rqvae, settings, epochs, generator

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
        settings: DigerSettings | None = None,
    ) -> Self:
        """See ``Tokenizer.fit``; ``settings`` are of all parts.

        ``sequences`` are needed; none of what they tell may be what the result is judged on.

        Raises:
            ValueError: as ``Tokenizer.fit``; or there are no sequences, none with two events, or they are of another table.
            MissingExtra: transformers is not installed.
        """
        settings = settings or DigerSettings()
        examples = _examples(items, sequences)
        content = content or ContentVectors.fit(items, spec, seed=seed)
        made = RqVae.fit(items, spec, levels=levels, codes=codes, seed=seed, content=content, sequences=sequences, settings=settings.rqvae)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            joint = JointTraining(made, torch.from_numpy(content.of(items)[1:]), settings, seed)
            epochs = joint.run(examples)
        made.quality = made.report(items)
        return cls(made, settings, epochs=epochs, generator=joint.generator)

    def encode(self, items: ItemTable) -> Ints:
        """See ``Tokenizer.encode``: nearest residual codes, without noise."""
        return self.rqvae.encode(items)

    def embed(self, items: ItemTable) -> Floats:
        """See ``Tokenizer.embed``: the latents."""
        return self.rqvae.embed(items)

    @property
    def code_LKD(self) -> Floats:
        """See ``Tokenizer.code_LKD``."""
        return self.rqvae.code_LKD

    def state(self) -> dict[str, Tensor]:
        """See ``Tokenizer.state``."""
        return self.rqvae.state()

    @classmethod
    def from_state(
        cls, content: ContentVectors, levels: int, codes: int, state: dict[str, Tensor], settings: dict[str, Any] | None = None
    ) -> Self:
        """See ``Tokenizer.from_state``."""
        own = DigerSettings.model_validate(settings or {})
        return cls(RqVae.from_state(content, levels, codes, state, own.rqvae.model_dump(mode="json")), own)


def _examples(items: ItemTable, sequences: Sequences | None) -> Examples:
    if sequences is None:
        raise ValueError("diger learns from users' sequences and found none: give sequences=, or take a tokenizer that reads items alone")
    if len(sequences.item_P) and sequences.item_P.max() >= len(items):
        raise ValueError(
            f"sequences: item row {sequences.item_P.max()} found, the item table has rows 1..{len(items) - 1}; make them of this table"
        )
    examples = Examples.every(sequences)
    if not len(examples):
        raise ValueError(f"sequences: none of {len(sequences)} user(s) has two events, so there is nothing to predict; give more history")
    return examples
