"""What an item loses that training did not know by its id: its SID, its embedding, and its place in lists.

    python -m benchmarks.cold_items [--date 2017-11-08] [--share 0.1] [--requests 500] [--bundles IN_FORCE WITHOUT]

A cold item's id bucket reads as unknown (``dig_models.nn.shown``), and ``model.item_id_dropout`` is there so that what is left gives it a
sensible SID. Here a share of the items that training has shown is held out by id: the model is told that it never saw their ids. Two
models are compared on the same items, one with the dropout in force and one with 0: both are trained in homes of their own under
``<paths.home>/benchmarks/cold_items``, or taken from ``--bundles``, such as those of the ablation's rows ``dig`` and ``no_id_dropout``.

- ``prefix_agreement``: share of the held items whose first l codes are those that they have with their id; of the last level, the SID.
  ``by_chance``: the same for two items of the catalogue drawn at random.
- ``cosine``: mean cosine of the embeddings with and without the id.
- ``recall@10``: over the requests with a held item among their positives, of these alone, in lists of the whole catalogue; with their
  ids, without, and the difference, paired over users.

Only the id is held out. The examples of these items have trained the values of their other fields, and their crosses (popularity, what the
user bought before) stay: a product on its first day has neither, so this says the least that it loses.

Writes ``benchmarks/results/cold_items.json`` and ``.txt``. Shape suffixes: ``X`` held items, ``N`` catalogue rows, ``L`` levels, ``D``
width, ``Q`` requests.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.nn import functional as F

from benchmarks.judging import (
    Floats,
    Ints,
    Judged,
    add_options,
    add_validation,
    asked,
    changes_of,
    facts,
    part_of,
    plainly,
    result_name,
    trained,
)
from dig_models.bundle import Bundle, load_bundle
from dig_models.evaluate.lists import VARIANTS, Contender, Search, recommend_all
from dig_models.retrieve.rerank import Retriever
from jobs.config import Config
from jobs.entry import JobError
from jobs.evaluate import finite
from jobs.files import replace_text
from jobs.runs import write_json

K = 10
METHODS = {"dig": "re-ranked", "dig_path": "by path score"}


def held_out(bundles: Sequence[Bundle], share: float, seed: int) -> Ints:
    """Rows ``(X,)`` of items to hold out: a random share of those that the training of every model has shown with their id.

    Raises:
        JobError: the models have different catalogues, or were shown no item.
    """
    hash_N = bundles[0].items.hash_N
    if any(not np.array_equal(bundle.items.hash_N, hash_N) for bundle in bundles):
        raise JobError("the bundles have different catalogues: train both for the same date and data, or give no --bundles")
    shown_N = np.logical_and.reduce([bundle.model.shown.of(hash_N).numpy() for bundle in bundles])
    item_X = np.flatnonzero(shown_N)
    if not len(item_X):
        raise JobError("no item was shown by the training of every bundle with its id: nothing can be held out; train them anew")
    return np.sort(np.random.default_rng(seed).choice(item_X, max(1, round(share * len(item_X))), replace=False))


def agreement(one_XL: Ints, other_XL: Ints) -> list[float]:
    """Share of items whose first l codes are the same, for every level."""
    return [float(share) for share in np.logical_and.accumulate(one_XL == other_XL, axis=1).mean(axis=0)]


def by_chance(code_NL: Ints) -> list[float]:
    """The agreement of two items drawn at random with replacement."""
    counts = (np.unique(code_NL[:, : level + 1], axis=0, return_counts=True)[1] for level in range(code_NL.shape[1]))
    return [float(np.square(count / len(code_NL)).sum()) for count in counts]


def recalls(judged: Judged, retriever: Retriever, item_X: Ints) -> dict[str, dict[str, Floats]]:
    """Recall of the held items among each request's positives, by variant and method; NaN for a request that has none of them."""
    shape, retrieve = judged.bundle.model.config, judged.config.retrieve
    search = Search(beam=retrieve.beam, rerank=retrieve.rerank, u2t=shape.u2t_inference, path_score=shape.path_score)
    lists, _ = recommend_all([Contender(name="dig", retriever=retriever, search=search)], judged.requests, judged.index_Q, k=K)
    out: dict[str, dict[str, Floats]] = {}
    for variant in VARIANTS:
        relevant = [np.intersect1d(one, item_X) for one in judged.relevant[variant]]
        out[variant] = {m: judged.values(variant, lists[variant][m], K, relevant)[f"recall@{K}"] for m in (*METHODS, "popularity")}
    return out


def measure(judged: Judged, item_X: Ints) -> dict[str, Any]:
    """All figures of one model; it knows the held items again afterwards."""
    bundle, model = judged.bundle, judged.bundle.model
    code_NL, known = np.array(bundle.codes_NL, dtype=np.int64), model.shown.hashes()
    with_id, before_ND = recalls(judged, judged.retriever, item_X), judged.retriever.embedding_ND
    model.shown.take(np.setdiff1d(known, bundle.items.hash_N[item_X]))
    try:
        after_ND, cold_NL = model.encode_catalogue(), code_NL.copy()
        cold_NL[item_X] = model.quantizer.assign(model.sides(after_ND[item_X])[1]).numpy()
        retriever = Retriever.of(model, bundle.spec, bundle.items, judged.store, codes_NL=cold_NL)
        without = recalls(judged, retriever, item_X)
    finally:
        model.shown.take(known)
    return {
        "item_id_dropout": model.config.item_id_dropout,
        "lineage": bundle.info["lineage"],
        "prefix_agreement": agreement(code_NL[item_X], cold_NL[item_X]),
        "by_chance": by_chance(code_NL[1:]),
        "cosine": float(F.cosine_similarity(before_ND[item_X], after_ND[item_X]).mean()),
        f"recall@{K}": {variant: _recall(judged, with_id[variant], without[variant]) for variant in VARIANTS},
    }


def _recall(judged: Judged, with_id: dict[str, Floats], without: dict[str, Floats]) -> dict[str, Any]:
    found: dict[str, Any] = {"requests": int(np.isfinite(without["dig"]).sum()), "popularity": judged.figure(with_id["popularity"])}
    for name in METHODS:
        gap_Q = without[name] - with_id[name]
        found[name] = {"with_id": judged.figure(with_id[name]), "without": judged.figure(without[name]), "less": judged.figure(gap_Q)}
    return found


def text(found: dict[str, Any]) -> str:
    """The figures for people."""
    about = f"{found['dataset']}, {found['date']}, {found['judged_on']['part']} days {' to '.join(found['judged_on']['days'])}"
    lines = [f"{about}: {found['held']} of {found['items']} items held out by id"]
    for model in found["models"]:
        told = ", ".join(
            f"{level} {share:.3f} (by chance {chance:.3f})"
            for level, (share, chance) in enumerate(zip(model["prefix_agreement"], model["by_chance"], strict=True), start=1)
        )
        lines += [
            "",
            f"item_id_dropout {model['item_id_dropout']:g}",
            f"  prefixes kept, by length: {told}",
            f"  cosine {model['cosine']:.3f}",
        ]
        for variant, of in model[f"recall@{K}"].items():
            lines.append(f"  recall@{K}, {variant} items, {of['requests']} requests; popularity {_shown(of['popularity'])}")
            lines += [f"    {METHODS[m]}: " + ", ".join(f"{n} {_shown(v)}" for n, v in of[m].items()) for m in METHODS]
    return "\n".join(lines) + "\n"


def _shown(figure: dict[str, Any]) -> str:
    return f"{figure['mean']:.4f} [{figure['ci'][0]:.4f}, {figure['ci'][1]:.4f}]"


def sets_of(config: Config, sets: Sequence[str]) -> dict[Path, list[str]]:
    """Overrides of the two trainings by the home of each: with the dropout in force, and with none."""
    folder = Path(config.paths.home).resolve() / "benchmarks" / "cold_items"
    out: dict[Path, list[str]] = {}
    for share in (config.model.item_id_dropout, 0.0):
        home = folder / f"dropout-{share:g}-{config.train.seed}"
        out[home] = [*sets, *changes_of(config, folder, home, config.train.seed, {"model.item_id_dropout": share})]
    return out


def _fraction(value: str) -> float:
    if not 0 < (share := float(value)) < 1:
        raise argparse.ArgumentTypeError(f"{value} found, expected a share between 0 and 1, as 0.1")
    return share


@plainly
def main() -> None:
    """Parse the options, measure, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_options(parser)
    parser.add_argument("--share", type=_fraction, default=0.1, help="of the items that training has shown, to hold out; default: .1")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--bundles", type=Path, nargs=2, default=None, metavar="BUNDLE", help="finished models, in this order")
    add_validation(parser)
    args = parser.parse_args()
    config, day = asked(parser, args)
    if not args.bundles and not config.model.item_id_dropout:
        parser.error("model.item_id_dropout: 0 is in force, so both models would be the same; set another, or give --bundles")
    if args.bundles:
        bundles = [load_bundle(path, config.dataset.spec()) for path in args.bundles]
    else:
        bundles = [trained(day, home, args.config, sets) for home, sets in sets_of(config, args.set).items()]
    try:
        item_X = held_out(bundles, args.share, config.train.seed)
    except JobError as error:
        parser.exit(2, f"{error}\n")
    models = [measure(Judged.open(config, day, args.requests, bundle, part_of(args)), item_X) for bundle in bundles]
    about = {"items": len(bundles[0].items) - 1, "held": len(item_X), "share": args.share, "seed": config.train.seed}
    found = {**facts(config, day, part_of(args), args.set), **about, "models": models}
    args.results.mkdir(parents=True, exist_ok=True)
    name = result_name(config, "cold_items", part_of(args))
    write_json(args.results / f"{name}.json", finite(found))
    replace_text(args.results / f"{name}.txt", text(found))
    print(text(found), end="")


if __name__ == "__main__":
    main()
