"""Every kind of tokenizer with settings that fit in a moment, and a small catalogue with sequences to fit it on.

A new kind gets one entry in ``QUICK``: what its ``fit`` takes beyond what all take.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import synthetic

from dig_models.features import FeatureSpec
from dig_models.items import ItemTable
from dig_models.tokenizers.base import Tokenizer
from dig_models.tokenizers.dig import DigTokenizer
from dig_models.tokenizers.diger_settings import DigerSettings
from dig_models.tokenizers.famae import FamaeSettings
from dig_models.tokenizers.registry import tokenizer_class
from dig_models.tokenizers.rqvae import RqVaeSettings
from dig_models.tokenizers.sequences import Sequences
from dig_models.tokenizers.unisid import UniSidSettings

LEVELS, CODES, USERS = 3, 8, 80

_DIGER = {"layers": 1, "dim": 16, "feed_forward": 32, "heads": 2, "head_dim": 8, "history": 6, "epochs": 2, "batch": 64, "warmup_steps": 5}
_RQVAE = RqVaeSettings(epochs=30, batch=64, hidden=(32,), latent=8)
_SHORT = _RQVAE.model_copy(update={"epochs": 10})

QUICK: dict[str, dict[str, Any]] = {
    "dig": {},
    "diger": {"settings": DigerSettings(rqvae=_SHORT, **_DIGER)},
    "resid": {"settings": FamaeSettings(dim=16, layers=1, heads=2, hidden=32, batch=32, length=8, epochs=3)},
    "rkmeans": {},
    "rqvae": {"settings": _RQVAE},
    "unisid": {"settings": UniSidSettings(dim=16, heads=2, layers=1, epochs=8, batch=64, lr=3e-3)},
}
PENDING: tuple[str, ...] = ()
"""Kinds that the registry knows by name and whose module is not there yet; whoever adds one moves its name to ``QUICK``."""


def fit(kind: str, items: ItemTable, spec: FeatureSpec, *, seed: int = 1, sequences: Sequences | None = None) -> Tokenizer:
    """A tokenizer of ``LEVELS`` levels of ``CODES`` codes; DIG's is that of a model with random weights."""
    if kind == "dig":
        return DigTokenizer.of(synthetic.make_bundle(spec, items, seed=seed, levels=LEVELS, codes=CODES))
    known = sequences_of(items) if sequences is None else sequences
    return tokenizer_class(kind).fit(items, spec, levels=LEVELS, codes=CODES, seed=seed, sequences=known, **QUICK[kind])


def sequences_of(items: ItemTable, seed: int = 0) -> Sequences:
    """``USERS`` users, each of whom goes through items of two brands."""
    rng, user, item = np.random.default_rng(seed), [], []
    brand_N = items.fields["brand"]
    for each in range(USERS):
        liked = 1 + np.flatnonzero(np.isin(brand_N[1:], rng.choice(np.unique(brand_N[1:]), 2, replace=False)))
        rows = rng.permutation(liked)[: rng.integers(5, 13)]
        user += [each] * len(rows)
        item += rows.tolist()
    return Sequences.of(np.array(user), np.array(item))


def cold_items(spec: FeatureSpec, ids: list[str]) -> ItemTable:
    """Items that no fit has seen; their fields follow from their ids."""
    return synthetic.make_items(spec, ids)
