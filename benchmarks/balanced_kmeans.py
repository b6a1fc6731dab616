"""What does balanced k-means cost, ours and the library's, and how much looser than free clusters are even ones?

Usage: ``python -m benchmarks.balanced_kmeans [--repeats 5]``. Items are drawn around centres of unequal weight, once for each repeat, and
every method sees the same: ``dig_models.quantize.balanced``, ``k_means_constrained.KMeansConstrained`` where it is installed (the project
does not depend on it), both started once and with sizes that differ by at most one, and ``sklearn.cluster.KMeans`` without limits, as the
inertia to compare with. Seconds are CPU seconds of one thread, so other work on the machine counts little. Writes
``benchmarks/results/balanced_kmeans.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from dig_models.quantize.balanced import balanced_kmeans

RESULTS = Path(__file__).parent / "results"
SIZES = ((375, 40), (12_000, 32))
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def drawn(items: int, clusters: int, width: int, seed: int) -> Floats:
    """Items around four times as many centres as there are clusters, of unequal weight."""
    rng = np.random.default_rng(seed)
    center_GD = rng.normal(size=(4 * clusters, width))
    of_M = rng.choice(4 * clusters, items, p=rng.dirichlet(np.full(4 * clusters, 2.0)))
    return np.asarray(center_GD[of_M] + rng.normal(size=(items, width)), dtype=np.float32)


def inertia(x_MD: Floats, label_M: Ints) -> float:
    """Sum of squared distances to the means of the clusters."""
    return float(sum(np.square(x_MD[label_M == k] - x_MD[label_M == k].mean(0)).sum() for k in np.unique(label_M)))


def methods() -> dict[str, Callable[[Floats, int, int], Ints]]:
    """Each by name: items, clusters and seed to labels."""

    def free(x_MD: Floats, clusters: int, seed: int) -> Ints:
        return np.asarray(KMeans(clusters, n_init=1, random_state=seed).fit_predict(x_MD), dtype=np.int64)

    def ours(x_MD: Floats, clusters: int, seed: int) -> Ints:
        return balanced_kmeans(x_MD, clusters, seed).label_M

    def library(x_MD: Floats, clusters: int, seed: int) -> Ints:
        low, high = len(x_MD) // clusters, -(-len(x_MD) // clusters)
        fitted = KMeansConstrained(clusters, size_min=low, size_max=high, n_init=1, random_state=seed, n_jobs=1).fit(x_MD)
        return np.asarray(fitted.labels_, dtype=np.int64)

    found: dict[str, Callable[[Floats, int, int], Ints]] = {"free": free, "ours": ours}
    try:
        from k_means_constrained import KMeansConstrained
    except ImportError:
        print("k-means-constrained is not installed: measured without it")
        return found
    return found | {"library": library}


def measure(items: int, clusters: int, width: int, repeats: int) -> dict[str, Any]:
    """Medians of one size."""
    seconds: dict[str, list[float]] = {}
    ratio: dict[str, list[float]] = {}
    spread: dict[str, int] = {}
    for repeat in range(repeats):
        x_MD = drawn(items, clusters, width, repeat)
        base = 1.0
        for name, method in methods().items():
            start = time.process_time()
            label_M = method(x_MD, clusters, repeat)
            seconds.setdefault(name, []).append(time.process_time() - start)
            size_K = np.bincount(label_M, minlength=clusters)
            spread[name] = max(spread.get(name, 0), int(size_K.max() - size_K.min()))
            loose = inertia(x_MD, label_M)
            base = loose if name == "free" else base
            ratio.setdefault(name, []).append(loose / base)
    each = {
        name: {
            "cpu_seconds": round(statistics.median(seconds[name]), 4),
            "inertia": round(statistics.median(ratio[name]), 4),
            "largest_difference_of_sizes": spread[name],
        }
        for name in seconds
    }
    return {"items": items, "clusters": clusters, "width": width, **each}


def main() -> None:
    """Every size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    with threadpool_limits(1):
        rows = [measure(items, clusters, args.width, args.repeats) for items, clusters in SIZES]
    result = {
        "question": "CPU seconds of balanced k-means, ours and k-means-constrained, and its inertia over that of free k-means",
        "machine": {"cpus": os.cpu_count(), "threads": 1, "load_average": [round(v, 2) for v in os.getloadavg()]},
        "repeats": args.repeats,
        "rows": rows,
    }
    print(json.dumps(result, indent=1))
    args.out.mkdir(exist_ok=True, parents=True)
    (args.out / "balanced_kmeans.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
