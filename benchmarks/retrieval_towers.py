"""FAISS HNSW over two-tower vectors, for ``benchmarks.retrieval``: what a vector index costs at the recall that the beam has.

Item vectors lie around their SIDs (the sum of random code vectors that shrink by level, and noise), user vectors around three items;
both have unit length, so the inner product is the cosine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.retrieval_world import USERS, Size
from dig_models.retrieve.trie import Trie

WIDTH, LINKS, BUILD = 32, 16, 40
Floats = NDArray[np.float32]


def hnsw(
    size: Size,
    work: Path,
    batches: tuple[int, ...],
    recall: float | None,
    limit: int,
    timed: Callable[[Callable[[Any], object], int], dict[str, float]],
) -> dict[str, Any]:
    """Build, tune and time the index.

    Args:
        size: the catalogue.
        work: where it lies.
        batches: requests at a time.
        recall: share of the exact list to be found; None takes what the beam should have, 0.95.
        limit: length of the lists.
        timed: times calls that are given request indices.
    """
    import faiss

    faiss.omp_set_num_threads(2)
    item_MD, user_BD = vectors(size, work)
    began = time.perf_counter()
    index = faiss.IndexHNSWFlat(WIDTH, LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = BUILD
    index.add(item_MD)
    built = time.perf_counter() - began
    exact = faiss.IndexFlatIP(WIDTH)
    exact.add(item_MD)
    sample_BD = user_BD[:64]
    wanted_BJ = exact.search(sample_BD, limit)[1]
    del exact
    target, reached, effort = 0.95 if recall is None else recall, 0.0, 8
    while reached < target and effort < 8192:
        effort *= 2
        index.hnsw.efSearch = effort
        found_BJ = index.search(sample_BD, limit)[1]
        reached = float(np.mean([len(np.intersect1d(f, w)) / limit for f, w in zip(found_BJ, wanted_BJ, strict=True)]))
    out = {str(batch): timed(lambda at: index.search(user_BD[at], limit), batch) for batch in batches}
    return {"batches": out, "recall": reached, "asked": target, "ef_search": effort, "build_s": round(built, 1)}


def vectors(size: Size, work: Path) -> tuple[Floats, Floats]:
    """Unit vectors of the items ``(M, 32)``, in the order of their rows, and of ``USERS`` users."""
    rng = np.random.default_rng(5)
    codes_NL = Trie.load(work / size.name / "trie", size.levels).item_codes()
    item_MD = 0.3 * rng.standard_normal((size.items, WIDTH), dtype=np.float32)
    for level in range(size.levels):
        item_MD += 0.6**level * rng.standard_normal((size.codes, WIDTH), dtype=np.float32)[codes_NL[1:, level]]
    item_MD /= np.linalg.norm(item_MD, axis=1, keepdims=True)
    user_BD = item_MD[rng.integers(0, size.items, (USERS, 3))].sum(axis=1) + 0.3 * rng.standard_normal((USERS, WIDTH), dtype=np.float32)
    return item_MD, user_BD / np.linalg.norm(user_BD, axis=1, keepdims=True)
