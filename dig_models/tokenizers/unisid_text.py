"""Names of items as tokens of a language model, the optional input of UniSID (extra ``llm``).

A Hugging Face encoder in a local folder reads each name; what it gives for the name's own tokens (not for ``[CLS]`` and the like) is
averaged in ``S`` consecutive stretches. It is not trained, and nothing is fetched from anywhere.

Shape suffixes: ``N`` names, ``R`` names of a batch, ``P`` tokens of a name, ``S`` stretches, ``Y`` width of the encoder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dig_models.tokenizers.registry import missing

BATCH = 64
LONGEST = 64
EXTRA = "llm"


class TextEncoderError(ValueError):
    """The encoder of a tokenizer is not there or is another one; the message names the folder and what to do."""


class TextEncoder:
    """A frozen encoder, read from its folder when it is first needed.

    Attributes:
        path: folder with model and tokenizer, as ``save_pretrained`` writes them.
        tokens: stretches ``S`` of a name.
    """

    def __init__(self, path: Path, tokens: int, digest: str = "") -> None:
        """An encoder in a folder, which must be of this digest if one is given."""
        self.path, self.tokens, self._wanted = path, tokens, digest

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        if not (self.path / "config.json").is_file():
            raise TextEncoderError(
                f"encoder_path {self.path}: no config.json found, a folder with a Hugging Face encoder and its tokenizer expected; "
                "put it there, or fit without encoder_path"
            )
        if self._wanted and self._found != self._wanted:
            raise TextEncoderError(
                f"encoder_path {self.path}: an encoder of digest {self._found[:12]} found, the tokenizer was fitted with one of "
                f"{self._wanted[:12]}; restore it, or fit again"
            )
        try:
            from transformers import AutoModel, AutoTokenizer
        except ModuleNotFoundError as error:
            raise missing(f"encoder_path {self.path}", error, EXTRA) from None
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.path, local_files_only=True)
            return tokenizer, AutoModel.from_pretrained(self.path, local_files_only=True).eval()
        except (OSError, ValueError, KeyError) as error:
            raise TextEncoderError(
                f"encoder_path {self.path}: no whole encoder ({str(error).splitlines()[0]}); put it there anew"
            ) from None

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the names and contents of the folder's files, as it must be or, where nothing is asked for, as it is."""
        return self._wanted or self._found

    @cached_property
    def _found(self) -> str:
        sha = hashlib.sha256()
        for file in sorted(p for p in self.path.iterdir() if p.is_file()):
            sha.update(file.name.encode() + b"\0")
            with file.open("rb") as stream:
                sha.update(hashlib.file_digest(stream, "sha256").digest())
        return sha.hexdigest()

    @property
    def width(self) -> int:
        """Width ``Y`` of what the encoder gives."""
        return int(self._parts[1].config.hidden_size)

    @torch.no_grad()
    def of(self, names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Stretches of the names ``(N, S, Y)`` float32, and which of them have a token ``(N, S)``.

        Raises:
            TextEncoderError: there is no such encoder, or another one than at the fit.
            MissingExtra: transformers is not installed.
        """
        tokenizer, model = self._parts
        values, there = [torch.zeros(0, self.tokens, self.width)], [torch.zeros(0, self.tokens, dtype=torch.bool)]
        for at in range(0, len(names), BATCH):
            read = tokenizer(
                list(names[at : at + BATCH]),
                padding=True,
                truncation=True,
                max_length=LONGEST,
                return_tensors="pt",
                return_special_tokens_mask=True,
            )
            own_RP = read.pop("special_tokens_mask") == 0
            value_RSY, there_RS = self._stretches(model(**read).last_hidden_state.float(), own_RP)
            values.append(value_RSY)
            there.append(there_RS)
        return torch.cat(values), torch.cat(there)

    def _stretches(self, out_RPY: Tensor, own_RP: Tensor) -> tuple[Tensor, Tensor]:
        count_R1 = own_RP.sum(1, keepdim=True)
        at_RP = (own_RP.long().cumsum(1) - 1).clamp_min(0) * self.tokens // count_R1.clamp_min(1)
        weight_RPS = torch.nn.functional.one_hot(at_RP, self.tokens) * own_RP.unsqueeze(2)
        sum_RSY = weight_RPS.transpose(1, 2).to(out_RPY.dtype) @ out_RPY
        number_RS = weight_RPS.sum(1)
        return sum_RSY / number_RS.clamp_min(1).unsqueeze(2), number_RS > 0
