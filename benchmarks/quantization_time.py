"""What does it cost to turn item vectors into SIDs: GAOQ against the training of an RQ-VAE, TIGER's and LETTER's?

Usage: ``python -m benchmarks.quantization_time [--items 12101] [--width 640] [--epochs 5 25] [--vectors FILE.npy]``. All get the same
vectors, drawn around centres of unequal weight or read from a file; how they were made is not counted, for any. GAOQ runs to its end.
An RQ-VAE at its published 20,000 epochs would take hours on one core, so each preset is trained twice, for few epochs: the difference is
the price of an epoch, the rest that of the start (k-means of the codes, and the codes of all items at the end), and more epochs are that
straight line continued. Seconds are CPU seconds of one thread, so other work on the machine counts little. Writes
``benchmarks/results/quantization_time.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from benchmarks.balanced_kmeans import Floats, drawn
from dig_models.features import FeatureSpec, FieldSpec, hash_id
from dig_models.items import ItemTable
from dig_models.quantize.gaoq import Gaoq, branching_of
from dig_models.tokenizers.given import GivenVectors
from dig_models.tokenizers.rqvae import RqVae, RqVaeSettings

RESULTS = Path(__file__).parent / "results"
CODES = 256
PUBLISHED = {"tiger": {"levels": 3, "epochs": 20_000}, "letter": {"levels": 4, "epochs": 20_000}}
"""SID lengths and epochs of the published runs, with 256 codes a level."""


def catalogue(count: int) -> tuple[ItemTable, FeatureSpec]:
    """So many items that have nothing but an id."""
    spec = FeatureSpec(item_fields=(FieldSpec(name="item_id"),), user_fields=(), context_fields=(), u2i_keys=("item",), windows=(7,))
    ids = sorted((f"item-{number}" for number in range(count)), key=hash_id)
    hash_N = np.array([np.iinfo(np.int64).min, *map(hash_id, ids)], dtype=np.int64)
    name_N = np.array(["", *ids], dtype=object)
    fields = {"item_id": np.zeros(count + 1, dtype=np.int64)}
    return ItemTable(hash_N=hash_N, id_N=name_N, name_N=name_N, fields=fields, numbers={}, key_KN=hash_N[None].copy()), spec


def gaoq_time(x_MD: Floats, repeats: int) -> dict[str, Any]:
    """Median CPU seconds of a whole fit."""
    branching, seconds = branching_of(len(x_MD), 3, CODES), []
    for seed in range(repeats):
        start = time.process_time()
        made = Gaoq.fit(x_MD, branching, seed)
        seconds.append(time.process_time() - start)
    return {
        "branching": list(branching),
        "cpu_seconds": round(statistics.median(seconds), 3),
        "sids": len(np.unique(made.code_ML, axis=0)),
    }


def rqvae_time(preset: str, x_MD: Floats, epochs: tuple[int, int], gaoq_seconds: float) -> dict[str, Any]:
    """CPU seconds of two short trainings, and what follows for longer ones."""
    items, spec = catalogue(len(x_MD))
    levels, published = PUBLISHED[preset]["levels"], PUBLISHED[preset]["epochs"]
    content = GivenVectors.of_vectors(items, spec, items.hash_N[1:], x_MD, seed=0)
    other_ML = np.random.default_rng(1).normal(size=(len(x_MD), RqVaeSettings.preset(preset).latent))
    collaborative = GivenVectors.of_vectors(items, spec, items.hash_N[1:], other_ML, seed=0) if preset == "letter" else None
    seconds = []
    for count in (1, *epochs):  # the first warms up and does not count
        settings = RqVaeSettings.preset(preset, epochs=count)
        start = time.process_time()
        RqVae.fit(items, spec, levels=levels, codes=CODES, seed=0, content=content, settings=settings, collaborative=collaborative)
        seconds.append(time.process_time() - start)
    seconds = seconds[1:]
    each = (seconds[1] - seconds[0]) / (epochs[1] - epochs[0])
    first = seconds[0] - epochs[0] * each
    at = {count: first + count * each for count in (200, published)}
    return {
        "levels": levels,
        "epochs_run": list(epochs),
        "cpu_seconds_run": [round(value, 2) for value in seconds],
        "cpu_seconds_an_epoch": round(each, 3),
        "cpu_seconds_at_start": round(first, 2),
        "run_over_gaoq": [round(value / gaoq_seconds, 1) for value in seconds],
        "extrapolated": {
            f"{count} epochs": {"cpu_seconds": round(value), "over_gaoq": round(value / gaoq_seconds)} for count, value in at.items()
        },
        "epochs_that_take_8_times_gaoq": round(max(8 * gaoq_seconds - first, 0.0) / each, 1),
    }


def main() -> None:
    """GAOQ, then each preset."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--items", type=int, default=12_101)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--vectors", type=Path, help="item vectors (M, D) instead of drawn ones")
    parser.add_argument("--epochs", type=int, nargs=2, default=(5, 25))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "quantization_time.json")
    args = parser.parse_args()
    x_MD = np.load(args.vectors).astype(np.float32) if args.vectors else drawn(args.items, 64, args.width, seed=0)
    torch.set_num_threads(1)
    with threadpool_limits(1):
        gaoq = gaoq_time(x_MD, args.repeats)
        print(json.dumps(gaoq), flush=True)
        rqvae = {preset: rqvae_time(preset, x_MD, tuple(args.epochs), gaoq["cpu_seconds"]) for preset in PUBLISHED}
    result = {
        "question": "CPU seconds of one thread from item vectors to SIDs: GAOQ whole, RQ-VAE for few epochs and by extrapolation",
        "machine": {"cpus": os.cpu_count(), "threads": 1, "load_average": [round(v, 2) for v in os.getloadavg()]},
        "vectors": {"items": len(x_MD), "width": x_MD.shape[1], "drawn": args.vectors is None},
        "gaoq": gaoq,
        "rqvae": rqvae,
    }
    print(json.dumps(result, indent=1))
    args.out.parent.mkdir(exist_ok=True, parents=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
