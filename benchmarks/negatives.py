"""Whether negatives are told apart by zero crosses alone, and what each u2t teacher makes of that.

    python -m benchmarks.negatives [--date 2017-11-08] [--requests 400]

A random negative is an item that the user mostly never met: its crosses are zero, a positive's often are not. A model with one feature,
"all user-to-item crosses are zero", then tells them apart; its AUC is that of the feature. That is honest where the model sees ``c_uv``
itself, because serving knows it too. On the retrieval path it is honest as far as the exact mean of the prefix says it, which is what
serving knows; a teacher by which the same feature does better gives the label away in training (``docs/reference/model.md``). Of a model
that reads the affinity, "affinity is not 0" is one more such feature.

Measured twice on the same requests of the validation days, with the same uniform draws: ``uniform``, these alone, and ``as_trained``,
beside them the history and popular negatives of the settings in force. An item of the history was met by construction, so the second
figure is the lower one and says nothing of random draws; it says what training sees. Hard negatives are in neither. Nothing is trained.
Writes ``benchmarks/results/negatives.json`` and ``negatives.png``.

Shape suffixes: ``R`` rows, ``L`` levels, ``C`` model crosses, ``N`` catalogue rows, ``P`` prefixes of a level.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from benchmarks.judging import add_options, asked, plainly, result_name
from dig_models import u2t
from dig_models.affinity import Affinity, beside
from dig_models.batch import Batch
from dig_models.bundle import Bundle, load_bundle
from dig_models.crosses import CrossStore
from dig_models.evaluate import ranking
from dig_models.features import SOURCE_EXPOSED, SOURCE_RANDOM, FeatureSpec
from dig_models.train.data import RequestTable, collate, pair_lookup, popular_chances, request_columns
from jobs.config import Config
from jobs.dates import days_between
from jobs.evaluate import finite
from jobs.lake import Lake
from jobs.runs import write_json

TEACHERS = ("batch_mean", "leave_one_out", "catalogue_sample")
ANY = "any"
"""Stands for all u2i keys together."""
AFFINITY = "affinity"
"""Stands for the affinity, the last cross of a model that reads it."""
UNIFORM, AS_TRAINED = "uniform", "as_trained"
"""Draws of negatives: from the catalogue alone; and with those of histories and of popular items that the settings ask for."""
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def u2i_columns(spec: FeatureSpec, key: str) -> slice:
    """Columns of the model crosses of a u2i key, or of all (``ANY``); after them come popularity and offers, then the ``AFFINITY``."""
    step = len(spec.windows) + 1
    if key == AFFINITY:
        return slice(spec.cross_width, spec.cross_width + 1)
    if key == ANY:
        return slice(0, len(spec.u2i_keys) * step)
    at = spec.u2i_keys.index(key)
    return slice(at * step, (at + 1) * step)


def met(cross_RC: Floats, spec: FeatureSpec, key: str) -> NDArray[np.bool_]:
    """Whether some cross of a key is not zero, ``(R,)``: the one feature."""
    found: NDArray[np.bool_] = (cross_RC[:, u2i_columns(spec, key)] != 0).any(axis=1)
    return found


def told_apart(cross_RC: Floats, label_R: NDArray[np.floating[Any]], spec: FeatureSpec, key: str = ANY) -> float:
    """AUC of the one feature ``met``; NaN if one label is missing."""
    return ranking.auc(met(cross_RC, spec, key).astype(np.float64), label_R)


def prefix_means(cross_NC: Floats, prefix_N: Ints) -> Floats:
    """Mean of the crosses over the items that share a prefix, for every item row, ``(N, C)``; row 0 is no item."""
    _, of_N = np.unique(prefix_N[1:], return_inverse=True)
    member_PN = sparse.csr_matrix((np.ones(len(of_N), np.float32), (of_N, np.arange(len(of_N)))))
    mean_PC = (member_PN @ cross_NC[1:]) / np.asarray(member_PN.sum(axis=1))
    return np.concatenate([cross_NC[:1], np.asarray(mean_PC, dtype=np.float32)[of_N]])


def exact_means(batch: Batch, store: CrossStore, spec: FeatureSpec, key_NL: Ints, affinity: Affinity | None = None) -> Floats:
    """Exact ``u2t_l`` of each row, ``(R, L, C)``: what serving knows of the row's prefix."""
    item_R, request_R = batch.item_R.numpy(), batch.request_R.numpy()
    out_RLC = np.zeros((batch.rows, key_NL.shape[1], batch.cross_RC.shape[1]), dtype=np.float32)
    for b in range(batch.requests):
        rows = np.flatnonzero(request_R == b)
        asked = (int(batch.user_hash_B[b]), int(batch.ts_B[b]), int(batch.offer_B[b]))
        cross_NC = spec.transform(store.catalogue(*asked))
        if affinity is not None:
            cross_NC = beside(cross_NC, affinity.catalogue(batch.history_BH[b : b + 1].numpy())[0])
        for level in range(key_NL.shape[1]):
            out_RLC[rows, level] = prefix_means(cross_NC, key_NL[:, level])[item_R[rows]]
    return out_RLC


def taught(batch: Batch, key_NL: Tensor, buckets: u2t.CatalogueBuckets, bundle: Bundle, store: CrossStore, seed: int) -> dict[str, Floats]:
    """``u2t_l`` of each row by each teacher, ``(R, L, C)``."""
    config, key_RL = bundle.model.config, key_NL[batch.item_R]
    drawn_RLS = buckets.draw(key_RL, config.u2t_samples, torch.Generator().manual_seed(seed))
    means = {
        "batch_mean": u2t.batch_mean(key_RL, batch.cross_RC),
        "leave_one_out": u2t.leave_one_out(key_RL, batch.cross_RC, config.u2t_min_bucket),
        "catalogue_sample": u2t.catalogue_sample(drawn_RLS, batch, pair_lookup(store, bundle.spec), bundle.model.affinity),
    }
    return {name: mean.numpy() for name, mean in means.items()}


def drawn_by(config: Config, draws: str) -> dict[str, int]:
    """Negatives a request of ``UNIFORM`` or ``AS_TRAINED`` draws, as arguments of ``collate``."""
    train = config.train
    further = {"history_negatives": train.history_negatives, "popular_negatives": train.popular_negatives}
    return {"random_negatives": train.random_negatives, **(further if draws == AS_TRAINED else dict.fromkeys(further, 0))}


def measure(config: Config, bundle: Bundle, requests: RequestTable, store: CrossStore, *, most: int) -> dict[str, Any]:
    """AUC of the one feature, by what the model sees in its place, for either draw of negatives.

    Args:
        config: batch size and negatives of training.
        bundle: its SIDs are the prefixes.
        requests: examples to draw batches from.
        store: crosses of any pair.
        most: requests at most.

    Returns:
        The bundle's lineage, and under ``UNIFORM`` and ``AS_TRAINED`` what ``measure_draws`` finds.
    """
    found = {name: measure_draws(config, bundle, requests, store, drawn_by(config, name), most=most) for name in (UNIFORM, AS_TRAINED)}
    return {"lineage": bundle.info["lineage"], "requests": min(most, len(requests)), **found}


def measure_draws(
    config: Config, bundle: Bundle, requests: RequestTable, store: CrossStore, drawn: dict[str, int], *, most: int
) -> dict[str, Any]:
    """The figures of one draw; ``negatives`` are all that were drawn, ``drawn`` (arguments of ``collate``) a request at most."""
    label_R, source_R, whole = _rows(config, bundle, requests, store, drawn, most)
    own_RC, open_R, negative_R = whole.pop("own"), source_R != SOURCE_EXPOSED, source_R == SOURCE_RANDOM
    own_crosses = {
        name: [_own(of_RLC[open_R, level], own_RC[open_R]) for level in range(of_RLC.shape[1])] for name, of_RLC in whole.items()
    }
    keys: dict[str, Any] = {}
    for key in (*bundle.spec.u2i_keys, ANY, *((AFFINITY,) if bundle.model.affinity is not None else ())):
        never_R = ~met(own_RC, bundle.spec, key)
        keys[key] = {
            "never_met": {
                "open_positives": float(never_R[open_R & (label_R > 0)].mean()),
                "negatives": float(never_R[negative_R].mean()),
            },
            "ranking_path": {
                "open": told_apart(own_RC[open_R], label_R[open_R], bundle.spec, key),
                "exposed": told_apart(own_RC[~open_R], label_R[~open_R], bundle.spec, key),
            },
            "retrieval_path": {
                name: [told_apart(of_RLC[open_R, level], label_R[open_R], bundle.spec, key) for level in range(of_RLC.shape[1])]
                for name, of_RLC in whole.items()
            },
        }
    rows = {"open_positives": int(label_R[open_R].sum()), "negatives": int(negative_R.sum())}
    return {"drawn": drawn, "own_crosses": own_crosses, "rows": rows, "keys": keys}


def _rows(
    config: Config, bundle: Bundle, requests: RequestTable, store: CrossStore, drawn: dict[str, int], most: int
) -> tuple[Floats, Ints, dict[str, Floats]]:
    """Label and source of each row, ``(R,)``, and what is seen of it: its ``own`` crosses ``(R, C)``, else ``(R, L, C)``."""
    spec, shape, seed = bundle.spec, bundle.model.config, config.train.seed
    code_NL, affinity = torch.from_numpy(np.asarray(bundle.codes_NL, dtype=np.int64)), bundle.model.affinity
    key_NL = u2t.bucket_keys(code_NL, shape.codes, shape.bucket_key)
    buckets = u2t.CatalogueBuckets.of(code_NL, shape.codes, shape.bucket_key)
    order = np.random.default_rng(seed).permutation(len(requests))[:most]
    chance_N = popular_chances(store, spec, int(requests.ts_B.min())) if drawn["popular_negatives"] else None
    seen: dict[str, list[Floats]] = {name: [] for name in ("own", "exact", *TEACHERS)}
    label: list[Floats] = []
    source: list[Ints] = []
    for step, at in enumerate(range(0, len(order), config.train.requests_per_batch)):
        batch = collate(
            requests,
            order[at : at + config.train.requests_per_batch],
            spec=spec,
            items=bundle.items,
            lookup=pair_lookup(store, spec),
            keep_rate=float(bundle.info["keep_rate"]),
            **drawn,
            chance_N=chance_N,
            rng=np.random.default_rng([seed, step]),
            open_positives=shape.open_positives,
            affinity=affinity,
        )
        seen["own"].append(batch.cross_RC.numpy())
        seen["exact"].append(exact_means(batch, store, spec, key_NL.numpy(), affinity))
        for name, mean_RLC in taught(batch, key_NL, buckets, bundle, store, seed + step).items():
            seen[name].append(mean_RLC)
        label.append(batch.label_R.numpy())
        source.append(batch.source_R.numpy())
    return np.concatenate(label), np.concatenate(source), {name: np.concatenate(parts) for name, parts in seen.items()}


def _own(u2t_RC: Floats, own_RC: Floats) -> float:
    """Share of rows whose ``u2t_l`` is nothing but their own crosses: the retrieval path is then shown what only ranking may see."""
    return float(np.isclose(u2t_RC, own_RC, rtol=1e-5, atol=1e-6).all(axis=1).mean())


def plot(found: dict[str, Any]) -> Figure:
    """AUC of the one feature by level and teacher, for the item itself and for any key; the dashed line is what serving knows.

    A row of panels for each draw of negatives.
    """
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    colors = {"batch_mean": "#c2571a", "leave_one_out": "#b08900", "catalogue_sample": "#0b6e99"}
    panels = figure.subplots(2, 2, sharey=True)
    for draws, side_by_side in zip((UNIFORM, AS_TRAINED), panels, strict=True):
        for axes, key in zip(side_by_side, ("item", ANY), strict=True):
            of = found[draws]["keys"][key]
            paths, own = of["retrieval_path"], of["ranking_path"]["open"]
            level = np.arange(1, len(paths["exact"]) + 1)
            for name, color in colors.items():
                axes.plot(level, paths[name], "o-", color=color, label=f"teacher {name}")
            axes.plot(level, paths["exact"], "s--", color="#24292f", label="exact mean, known at serving")
            axes.axhline(own, color="#6a737d", linewidth=1, linestyle=":", label="own crosses (ranking path)")
            axes.set(xlabel="level", xticks=level, title=f"{draws} ({drawn_line(found[draws]['drawn'])}), {key} key")
            axes.title.set_size(10)
            axes.grid(axis="y", color="#d9dee3")
            axes.spines[["top", "right"]].set_visible(False)
        side_by_side[0].set(ylabel='AUC of "crosses are not all zero"')
    figure.suptitle("Negatives told apart by zeros, by what is drawn a request")
    figure.axes[0].legend(frameon=False, fontsize=8)
    return figure


def drawn_line(drawn: dict[str, int]) -> str:
    """Negatives a request in words: ``30 random, 10 history``."""
    return ", ".join(f"{count} {name.removesuffix('_negatives')}" for name, count in drawn.items() if count)


def lines(found: dict[str, Any]) -> Iterator[str]:
    """What is printed: for each draw the shares of rows shown their own crosses, then the AUCs of each key by level."""
    for draws in (UNIFORM, AS_TRAINED):
        of = found[draws]
        yield f"{draws}: negatives a request {drawn_line(of['drawn'])}"
        for name, shares in of["own_crosses"].items():
            yield f"  {name:18} is the row's own crosses in " + " ".join(f"{share:.3f}" for share in shares)
        for key, by in of["keys"].items():
            never = by["never_met"]
            yield (
                f"  {key}: own crosses {by['ranking_path']['open']:.3f}, exposed rows {by['ranking_path']['exposed']:.3f}, "
                f"never met {never['negatives']:.3f} of negatives, {never['open_positives']:.3f} of positives"
            )
            for name, values in by["retrieval_path"].items():
                yield f"    {name:18}" + " ".join(f"{value:.3f}" for value in values)


@plainly
def main() -> None:
    """Parse the options, measure on the validation days of a finished run, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_options(parser, of="of a finished training; ")
    parser.add_argument("--requests", type=int, default=400)
    args = parser.parse_args()
    config, day = asked(parser, args)
    window, lake = config.run_window(day), Lake(config.paths.at("lake"))
    bundle = load_bundle(Path(config.paths.at("checkpoints")) / day.isoformat() / "bundle", config.dataset.spec())
    days = days_between(window.validation_first, window.train_last)
    table = lake.read_arrow("examples", days, columns=request_columns(bundle.spec))
    requests = RequestTable.from_arrow(table, bundle.spec, bundle.items)
    store = CrossStore.open(lake.folder("cross_arrays", day), bundle.spec, bundle.items)
    found = measure(config, bundle, requests, store, most=args.requests)
    found = {"date": day.isoformat(), "dataset": config.dataset.name, "days": [d.isoformat() for d in days], **found}
    args.results.mkdir(parents=True, exist_ok=True)
    kept = result_name(config, "negatives")
    write_json(args.results / f"{kept}.json", finite(found))
    plot(found).savefig(args.results / f"{kept}.png", dpi=150)
    print("\n".join(lines(found)))


if __name__ == "__main__":
    main()
