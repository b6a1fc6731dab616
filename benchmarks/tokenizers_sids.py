"""SIDs of ``benchmarks.tokenizers``: fitted once for all runs that would get the same, with what they are like.

Shape suffixes: ``N`` rows of the item table (row 0 unknown), ``L`` levels.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.tokenizers_data import DataSet, text_vectors
from benchmarks.tokenizers_modes import fit_arguments, kind_settings, reads_sequences
from dig_models.config import Strict
from dig_models.evaluate.sid_quality import measure
from dig_models.tokenizers.base import Tokenizer
from dig_models.tokenizers.conflicts import sinkhorn, suffix
from dig_models.tokenizers.diger import Diger
from dig_models.tokenizers.given import GivenVectors
from dig_models.tokenizers.registry import tokenizer_class
from dig_models.tokenizers.resid import ReSid
from dig_models.tokenizers.sequences import Sequences
from dig_models.tokenizers.settings import TokenizersConfig
from jobs.evaluate import finite
from jobs.lake import code_digest, digest_of
from jobs.runs import write_json
from jobs.sids_inputs import CODE

Ints = NDArray[np.int64]
Apart = Literal["suffix", "sinkhorn"]
MADE_BY = (*(module for module in CODE if module.startswith("dig_models.")), "benchmarks.tokenizers_data", "benchmarks.tokenizers_sids")
"""Modules that decide SIDs."""


@cache
def code_of(*modules: str) -> str:
    """Digest of the sources of modules, read once."""
    return code_digest(*modules)


def sids(
    data: DataSet,
    kind: str,
    changes: dict[str, str],
    learned: Sequences,
    *,
    levels: int,
    codes: int,
    seed: int,
    conflicts: Apart,
    work: Path,
) -> tuple[Ints, dict[str, Any]]:
    """SIDs, and what they are like before collisions are dealt with; kept in ``work/sids`` under a digest of all that decides them.

    Args:
        data: the catalogue and its texts.
        kind: of the tokenizer.
        changes: its settings, as on the command line.
        learned: sequences without what is judged on; a kind that does not read them is not given them.
        levels: SID length.
        codes: of a level.
        seed: of the fit.
        conflicts: what becomes of items that share a SID: one more token where any do, as many codes of it as it takes (TIGER), or other
            last codes (LETTER), as far as there are free ones.
        work: folder of text vectors and SIDs.

    Returns:
        Codes ``(N, L)`` or with a suffix ``(N, L + 1)``, and ``seconds`` of the fit, quality and the kind's own figures.
    """
    found, items = tokenizer_class(kind), data.items
    settings = kind_settings(found, changes)
    used = learned if reads_sequences(kind, settings) else None
    facts: dict[str, Any] = {
        "data": data.digest,
        "kind": kind,
        "settings": _settled(kind, settings),
        "shape": [levels, codes],
        "seed": seed,
    }
    facts |= {"sequences": _digest(used) if used else None, "conflicts": conflicts, "code": code_of(*MADE_BY)}
    folder = work / "sids" / digest_of(facts)
    if (folder / "sids.json").is_file():
        told: dict[str, Any] = json.loads((folder / "sids.json").read_text())
        return np.load(folder / "sids.npy"), told
    content = GivenVectors.of_vectors(items, data.spec, items.hash_N[1:], text_vectors(data, work), seed=seed)
    began = time.perf_counter()
    tokenizer = found.fit(
        items, data.spec, levels=levels, codes=codes, seed=seed, content=content, sequences=used, **fit_arguments(settings)
    )
    code_NL = tokenizer.encode(items)
    told = {"seconds": time.perf_counter() - began, **_quality(code_NL, codes), **own_figures(tokenizer)}
    if conflicts == "sinkhorn":
        code_NL = sinkhorn(code_NL, tokenizer.embed(items), tokenizer.code_LKD)
    elif told["collision_rate"] > 0:
        code_NL = suffix(code_NL, items.hash_N, codes=len(items))  # as many as it takes: a kind that collapses is a finding too
    told["shared_after"] = measure(code_NL[1:], int(code_NL.max()) + 1).collision_rate
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "sids.npy", code_NL)
    write_json(folder / "sids.json", finite(told))
    return code_NL, json.loads((folder / "sids.json").read_text())


def _settled(kind: str, settings: Strict | None) -> dict[str, Any] | None:
    """Settings in force; None for a kind that has none."""
    own = settings or getattr(TokenizersConfig(), kind, None)
    return own.model_dump(mode="json") if isinstance(own, Strict) else None


def _digest(sequences: Sequences) -> str:
    return hashlib.sha256(sequences.start.tobytes() + sequences.item_P.tobytes()).hexdigest()


def _quality(code_NL: Ints, codes: int) -> dict[str, Any]:
    quality = measure(code_NL[1:], codes)
    return {
        "collision_rate": quality.collision_rate,
        "largest_bucket": quality.largest_bucket,
        "entropy": quality.entropy,
        "entropy_ratio": quality.entropy_ratio,
        **{name: [getattr(level, name) for level in quality.levels] for name in ("used", "perplexity", "gini", "gini_all")},
    }


def own_figures(tokenizer: Tokenizer) -> dict[str, Any]:
    """What a kind tells of its fit: FAMAE's recalls and GAOQ's branching, the epochs of DIGER's joint training."""
    if isinstance(tokenizer, ReSid):
        famae = asdict(tokenizer.figures) if tokenizer.figures else None
        return {"famae": famae, "branching": list(tokenizer.gaoq.branching)}
    if isinstance(tokenizer, Diger):
        return {"joint": [epoch._asdict() for epoch in tokenizer.epochs]}
    return {}
