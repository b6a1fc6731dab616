"""SID quality of SIDs that others released, against figures that were worked out elsewhere.

The file is not part of this project: ``pytest --reference-sids=letter_rqvae_index.json`` names LETTER's released SIDs of Amazon Beauty.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from dig_models.evaluate.sid_quality import measure

CODES = 256


@pytest.fixture(scope="module")
def code_NL(request: pytest.FixtureRequest) -> np.ndarray:
    path = request.config.getoption("--reference-sids")
    if not path:
        pytest.skip("no reference SIDs given: --reference-sids=FILE")
    index = json.loads(Path(path).read_text())
    return np.array([[int(re.fullmatch(r"<[a-d]_(\d+)>", token)[1]) for token in index[str(item)]] for item in range(len(index))])


def test_letter_s_sids_of_beauty_have_the_figures_that_are_known_of_them(code_NL: np.ndarray) -> None:
    assert code_NL.shape == (12_101, 4)
    found = measure(code_NL, CODES)
    first, *others = found.levels
    assert 100 * found.collision_rate == pytest.approx(0.107, abs=0.0005)
    assert (first.used, first.dead) == (197, 59)
    assert first.perplexity == pytest.approx(82.7, abs=0.05)
    assert first.gini_all == pytest.approx(0.757, abs=0.0005), "over all codes; over those that are used it is .684"
    assert first.gini == pytest.approx(0.684, abs=0.0005)
    assert [level.perplexity for level in others] == pytest.approx([247.0] * 3, abs=2.0)
    assert all(level.dead == 0 for level in others)
