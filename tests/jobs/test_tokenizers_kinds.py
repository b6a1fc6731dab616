"""Every kind of tokenizer through the tokenizer benchmark, with settings that are tiny."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import tokenizers
from benchmarks.tokenizers_modes import MODES
from benchmarks.tokenizers_table import LABELS
from tests.jobs.test_tokenizers_benchmark import RESID, TINY, given_vectors, home

__all__ = ["given_vectors", "home"]  # fixtures

pytestmark = pytest.mark.slow
SMALL = {
    "rqvae": {"epochs": "2", "latent": "8"},
    "rqvae:letter": {"clusters": "2"},
    "resid": RESID,
    "unisid": {"epochs": "1", "dim": "8", "heads": "2", "layers": "1"},
    "diger": {"epochs": "1", "layers": "1", "dim": "16", "feed_forward": "16", "heads": "2", "head_dim": "8", "history": "4"},
}
NAMES = [*MODES["quick"].compared, "rqvae:tiger", "rqvae:letter", "diger:joint", "diger:detached"]


@pytest.mark.usefixtures("given_vectors")
def test_every_kind_and_variant_comes_through(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(tokenizers.MODES, "quick", TINY.model_copy(update={"kinds": SMALL}))
    argv = ["tokenizers", "--data", str(home), "--datasets", "tiny", "--kinds", *NAMES, "--levels", "2", "--codes", "8"]
    monkeypatch.setattr(sys, "argv", [*argv, "--work", str(tmp_path / "work"), "--results", str(tmp_path)])
    tokenizers.main()
    rows = json.loads((tmp_path / "tokenizers.json").read_text())["rows"]
    shown = capsys.readouterr().out
    for name in LABELS.values():
        assert f"| {name} |" in shown
    assert len(rows) == len(NAMES) == len(LABELS)
    for row in rows:
        assert row["judged"] == 9 and 0 <= row["figures"]["ndcg@10"]["mean"] <= 1
        if row["sids"]:
            assert len(row["sids"]["used"]) == len(row["sids"]["history_overlap"]) == 2 and row["sids"]["shared_after"] == 0
    diger = next(row for row in rows if row["kind"] == "diger")
    assert len(diger["sids"]["joint"]) == 1 and diger["sids"]["joint"][0]["generator"] > 0
    resid = next(row for row in rows if row["kind"] == "resid")
    assert len(resid["sids"]["branching"]) == 2
