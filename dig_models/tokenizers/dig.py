"""DIG's own semantic IDs (arXiv 2605.14853) as a tokenizer: the encoder and codebooks of a trained ranker, beside the two-stage ones.

Shape suffixes: ``N`` rows of the item table (row 0 unknown), ``L`` levels, ``K`` codes, ``D`` width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dig_models.bundle import Bundle, BundleError, load_bundle, save_bundle
from dig_models.dig import Dig
from dig_models.features import FeatureSpec
from dig_models.index.encode import chunks, encode_rows, item_codes
from dig_models.items import ItemTable
from dig_models.tokenizers.base import SETTINGS, Ints, Tokenizer, TokenizerError, read_settings, write_settings
from dig_models.tokenizers.content import ContentVectors, Floats
from dig_models.tokenizers.sequences import Sequences

MODEL = "model"


class DigTokenizer(Tokenizer):
    """Codes of a trained bundle.

    Attributes:
        bundle: the model, its catalogue and what the training run said about itself.
    """

    kind = "dig"

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(EncoderVectors.of_model(bundle.model), bundle.model.config.levels, bundle.model.config.codes)
        self.bundle = bundle

    @classmethod
    def of(cls, bundle: Bundle) -> Self:
        """The tokenizer that a trained ranker holds.

        Raises:
            TokenizerError: the model has no codebooks, or keeps two embeddings of an item.
        """
        if not bool(bundle.model.quantizer.built):
            raise TokenizerError(
                "this bundle's model has no codebooks (it was trained with loss.recall 0 or stopped in its warm-up), "
                "so it gives no semantic IDs; take a version that was trained through"
            )
        if bundle.model.token_encoder is not None:
            raise TokenizerError("model.rank_gradient_to_encoder: false is an ablation, found in the bundle's model; train with true")
        return cls(bundle)

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
    ) -> NoReturn:
        """There is no such fit: the ranker's training learns the codes.

        Raises:
            TokenizerError: always; it says how to make one.
        """
        raise TokenizerError(
            "DIG's codes are learned by the training of its ranker (jobs.train), not fitted to a catalogue: "
            "train a model and make the tokenizer of its bundle, DigTokenizer.of(load_bundle(path))"
        )

    @torch.no_grad()
    def encode(self, items: ItemTable) -> Ints:
        """See ``Tokenizer.encode``: what the index publishes, before collisions are resolved."""
        code_NL = np.full((len(items), self.levels), -1, dtype=np.int64)
        e_ND = torch.from_numpy(self.embed(items))
        code_NL[1:] = item_codes(self.bundle.model, items.hash_N, e_ND).numpy()[1:]
        return code_NL

    def embed(self, items: ItemTable) -> Floats:
        """See ``Tokenizer.embed``: ``e_v``. Items that keep their codes (a frozen assignment) may lie nearer to others."""
        return self.content.of(items)

    @property
    def code_LKD(self) -> Floats:
        """See ``Tokenizer.code_LKD``."""
        codes: Floats = self.bundle.model.quantizer.code_LKD.numpy()
        return codes

    def state(self) -> dict[str, Tensor]:
        """See ``Tokenizer.state``: the model's. A folder holds the whole bundle, see ``save``."""
        return dict(self.bundle.model.state_dict())

    @classmethod
    def from_state(cls, content: ContentVectors, levels: int, codes: int, state: dict[str, Tensor]) -> NoReturn:
        """A bundle is more than tensors.

        Raises:
            TokenizerError: always; ``load`` is the way.
        """
        raise TokenizerError("a DIG tokenizer comes back from its bundle, not from tensors alone: use DigTokenizer.load or .of")

    def save(self, path: Path) -> None:
        """See ``Tokenizer.save``; the bundle lies in the folder ``model``."""
        path.mkdir(parents=True, exist_ok=True)
        (path / SETTINGS).unlink(missing_ok=True)
        save_bundle(path / MODEL, self.bundle.model, self.bundle.items, self.bundle.info)
        settings = {"kind": self.kind, "format": self.format, "levels": self.levels, "codes": self.codes}
        write_settings(path, {**settings, "spec": self.bundle.spec.digest})

    @classmethod
    def load(cls, path: Path, spec: FeatureSpec) -> Self:
        """See ``Tokenizer.load``."""
        read_settings(path, cls, spec)
        try:
            return cls.of(load_bundle(path / MODEL, spec))
        except BundleError as error:
            raise TokenizerError(f"{path}: holds no whole tokenizer ({str(error).splitlines()[0]})") from None


@dataclass(frozen=True, kw_only=True)
class EncoderVectors(ContentVectors):
    """Embeddings ``e_v`` of a ranker's item encoder; they are kept with its bundle, so there are no arrays.

    Attributes:
        model: the ranker.
    """

    kind: ClassVar[str] = "encoder"

    model: Dig

    @classmethod
    def of_model(cls, model: Dig) -> Self:
        """Those of a model in evaluation mode."""
        return cls(spec=model.spec, component_VD=np.zeros((0, model.config.dim), dtype=np.float32), model=model.eval())

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See ``ContentVectors.arrays``: none."""
        return {}

    def of(self, items: ItemTable) -> Floats:
        """Embeddings ``(N, D)`` float32 of any table, cold items included; the unknown item's are those of its empty fields.

        Raises:
            ValueError: a bucket is out of the range that the spec declares.
        """
        return np.concatenate([encode_rows(self.model, items, slice(*rows)).numpy() for rows in chunks(len(items))])
