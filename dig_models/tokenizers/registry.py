"""Tokenizers by name. A kind's module is imported when it is asked for, so that none needs the packages of the others."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

from dig_models.features import FeatureSpec
from dig_models.tokenizers.base import SETTINGS, Tokenizer, TokenizerError

KINDS = {
    "dig": "dig.DigTokenizer",
    "diger": "diger.Diger",
    "resid": "resid.ReSid",
    "rkmeans": "rkmeans.ResidualKMeans",
    "rqvae": "rqvae.RqVae",
    "unisid": "unisid.UniSid",
}
"""Module and class of each kind, within this package."""

EXTRA = "tokenizers"
"""Optional extra of this project that holds what some kinds need beyond the rest of it."""


class UnknownKind(TokenizerError):
    """No tokenizer has this name; the message names those that there are."""


class MissingExtra(ImportError):
    """A kind needs a package that is not installed; the message says what to install."""


def tokenizer_class(kind: str) -> type[Tokenizer]:
    """The class of a kind.

    Raises:
        UnknownKind: there is none of this name.
        MissingExtra: a package that it needs is not installed.
    """
    if kind not in KINDS:
        raise UnknownKind(f"tokenizer {kind!r}: unknown, expected one of {', '.join(KINDS)}")
    module, name = KINDS[kind].split(".")
    try:
        found: type[Tokenizer] = getattr(import_module(f"{__package__}.{module}"), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("dig_models"):  # a fault of this project, not of what is installed
            raise
        raise missing(f"tokenizer {kind!r}", error, EXTRA) from None
    return found


def missing(what: str, error: ModuleNotFoundError, extra: str) -> MissingExtra:
    """The error that says which extra to install."""
    return MissingExtra(f"{what} needs the package {error.name}, which is not installed: pip install 'dig-pipeline[{extra}]'")


def load_tokenizer(path: Path, spec: FeatureSpec) -> Tokenizer:
    """What ``Tokenizer.save`` wrote, of whatever kind.

    Raises:
        TokenizerError: a file is missing or damaged, or holds a kind that is not known.
        FeatureSpecMismatch: made with another feature spec.
        MissingExtra: a package that its kind needs is not installed.
    """
    try:
        kind = json.loads((path / SETTINGS).read_text())["kind"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TokenizerError(f"{path / SETTINGS}: says no kind of tokenizer ({str(error).splitlines()[0]}); fit it again") from None
    try:
        return tokenizer_class(str(kind)).load(path, spec)
    except UnknownKind as error:
        raise UnknownKind(f"{path / SETTINGS}: {error}; it was written by another version of the code") from None
