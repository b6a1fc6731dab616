"""What every tokenizer does: fit on a catalogue, give codes to items, be kept in a folder and come back from it.

Items come in as vectors: of their fields (``content.py``), of what they were bought with (``co_occurrence.py``), or made outside
(``given.py``).

Shape suffixes: ``N`` rows of the item table (row 0 unknown), ``L`` levels, ``K`` codes, ``D`` width.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dig_models.config import Strict
from dig_models.evaluate.sid_quality import SidQuality, measure
from dig_models.features import FeatureSpec
from dig_models.files import replace_text
from dig_models.items import ItemTable
from dig_models.tokenizers.co_occurrence import CoOccurrenceVectors
from dig_models.tokenizers.content import ContentVectors, Floats
from dig_models.tokenizers.fields import FieldEmbeddings
from dig_models.tokenizers.given import GivenVectors
from dig_models.tokenizers.sequences import Sequences

Ints = NDArray[np.int64]
STATE, SETTINGS = "tokenizer.safetensors", "tokenizer.json"
_CONTENT = "content."
CONTENT_KINDS: dict[str, type[ContentVectors]] = {
    each.kind: each for each in (ContentVectors, CoOccurrenceVectors, FieldEmbeddings, GivenVectors)
}
"""Ways of making vectors of items, by the name that is stored."""


class TokenizerError(ValueError):
    """A stored tokenizer is missing, damaged or of another kind; the message names the file and what was expected."""


class Tokenizer(ABC):
    """SIDs made beforehand.

    Attributes:
        kind: name of the method, also in settings and files.
        format: what the stored settings and tensors mean. A change of the code under which those of old would give other SIDs, or none,
            raises it: an old folder is then refused instead of being read as something that it was not.
        content: items as vectors.
        levels: SID length L; codes: size K of each level's codebook.
        settings: those of its own, if the kind has any; they are kept beside the tensors and handed to ``from_state`` as ``settings``,
            a dictionary. A kind whose tensors say all leaves this None.
    """

    kind: ClassVar[str]
    format: ClassVar[int] = 1
    settings: Strict | None = None

    def __init__(self, content: ContentVectors, levels: int, codes: int) -> None:
        self.content, self.levels, self.codes = content, levels, codes

    @classmethod
    @abstractmethod
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
        """Learn from a catalogue; the same catalogue, sequences and seed give the same codes.

        Args:
            items: the catalogue.
            spec: its fields.
            levels: SID length.
            codes: codes of a level.
            seed: of all that is drawn; the global generators are left as they were.
            content: what makes vectors of items; by default fitted here, on their fields alone.
            sequences: what users did with these items, rows of ``items``; a method that reads none ignores them.

        Raises:
            ValueError: the catalogue is too small, sequences are needed and there are none, or a field does not fit the spec.
        """

    @abstractmethod
    def encode(self, items: ItemTable) -> Ints:
        """Codes ``(N, L)`` of any table, cold items included; -1 for the unknown item in row 0."""

    @abstractmethod
    def embed(self, items: ItemTable) -> Floats:
        """What is quantized, ``(N, D)``: codes are the nearest to it and to what the codes before leave of it."""

    @property
    @abstractmethod
    def code_LKD(self) -> Floats:
        """Code vectors."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """All tensors that ``encode`` needs, without the content vectors'."""

    @classmethod
    @abstractmethod
    def from_state(cls, content: ContentVectors, levels: int, codes: int, state: dict[str, Tensor]) -> Self:
        """The tokenizer that ``state`` is of."""

    def report(self, items: ItemTable) -> SidQuality:
        """Use of the codes and collisions of a table's items.

        Raises:
            ValueError: the table holds no item but the unknown one.
        """
        return measure(self.encode(items)[1:], self.codes)

    def save(self, path: Path) -> None:
        """Write it to a folder; ``tokenizer.json`` comes last, so a folder without it is none."""
        path.mkdir(parents=True, exist_ok=True)
        (path / SETTINGS).unlink(missing_ok=True)
        content = {name: torch.from_numpy(array) for name, array in self.content.arrays().items()}
        tensors = {**{f"{_CONTENT}{name}": tensor for name, tensor in content.items()}, **self.state()}
        save_file({name: value.contiguous() for name, value in tensors.items()}, path / STATE)
        settings = {"kind": self.kind, "format": self.format, "levels": self.levels, "codes": self.codes, "spec": self.content.spec.digest}
        own = None if self.settings is None else self.settings.model_dump(mode="json")
        write_settings(path, {**settings, "content": self.content.kind, "settings": own})

    @classmethod
    def load(cls, path: Path, spec: FeatureSpec) -> Self:
        """What ``save`` wrote.

        Raises:
            TokenizerError: a file is missing or damaged, or holds a tokenizer of another kind.
            FeatureSpecMismatch: made with another feature spec.
        """
        settings = read_settings(path, cls, spec)
        try:
            tensors = load_file(path / STATE)
            stored = {name: tensors.pop(name).numpy() for name in list(tensors) if name.startswith(_CONTENT)}
            arrays = {name.removeprefix(_CONTENT): array for name, array in stored.items()}
            levels, codes, own = int(settings["levels"]), int(settings["codes"]), settings.get("settings")
            content = _content_kind(settings["content"])(spec=spec, **arrays)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise _not_whole(path, error) from None
        try:
            return cls.from_state(content, levels, codes, tensors, **({} if own is None else {"settings": own}))
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise TokenizerError(f"{path / STATE}: not the tensors of a {cls.kind} tokenizer ({str(error).splitlines()[0]})") from None


def read_settings(path: Path, wanted: type[Tokenizer], spec: FeatureSpec) -> dict[str, Any]:
    """``tokenizer.json`` of a folder.

    Raises:
        TokenizerError: it is missing or damaged, of another kind than ``wanted``, or of another format.
        FeatureSpecMismatch: made with another feature spec.
    """
    try:
        settings = json.loads((path / SETTINGS).read_text())
        found, digest = str(settings["kind"]), str(settings["spec"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _not_whole(path, error) from None
    if found != wanted.kind:
        raise TokenizerError(f"{path}: a tokenizer of kind {found!r} found, {wanted.kind!r} expected")
    if settings.get("format") != wanted.format:
        raise TokenizerError(
            f"{path / SETTINGS}: format {settings.get('format')!r} of {found} found, this code reads format {wanted.format}: "
            "read it with the code that wrote it, or fit it again"
        )
    spec.require(digest, f"tokenizer {path}")
    return dict(settings)


def write_settings(path: Path, settings: dict[str, Any]) -> None:
    """Write ``tokenizer.json``: what makes a folder a tokenizer, so it comes last."""
    replace_text(path / SETTINGS, json.dumps(settings, indent=2, sort_keys=True) + "\n")


def _not_whole(path: Path, error: Exception) -> TokenizerError:
    return TokenizerError(f"{path}: holds no whole tokenizer ({str(error).splitlines()[0]}); make it again")


def _content_kind(name: str) -> type[ContentVectors]:
    if name not in CONTENT_KINDS:
        raise ValueError(f"content vectors of kind {name!r}, known are {', '.join(sorted(CONTENT_KINDS))}")
    return CONTENT_KINDS[name]


def without_unknown(code_ML: Ints) -> Ints:
    """Codes of rows ``1..N-1`` as codes of all rows."""
    return np.concatenate([np.full((1, code_ML.shape[1]), -1, dtype=np.int64), code_ML])
