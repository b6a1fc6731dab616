"""What a beam costs: how often it loses the winner of an exhaustive search, what it does to recall, and how many free beams exist.

    python -m benchmarks.beam [--date 2017-11-08] [--beams 1 10 50 200] [--requests 500]

Asked of the finished model of a date, on its evaluation days, or with ``--validation`` on its validation days; beams of 1, 2, 5, 10, 20,
50, 100 and 200 prefixes unless others are asked for. A prefix's score need not bound that of its best descendant, so a beam can drop the
prefix of the best item:

- ``path_winner_lost``: share of requests whose best path score is below that of a search that keeps every prefix.
- ``rank_winner_lost``: share of requests whose best re-ranked item scores below the best item of the whole catalogue by the ranking path.
  It counts two losses: prefixes that the beam drops, and items found that the cut to the best ``retrieve.rerank`` by path score keeps from
  re-ranking. So it need not be 0 for a search that keeps every prefix (``exhaustive``), where the cut alone is left.
- ``top10_kept``: share of the exhaustive search's ten items that are among the beam's ten.
- ``recall@10``, ``ndcg@10``: by path score and re-ranked, over all items and over those new to the user.
- ``valid_beams``: for each level, the share of the kept prefixes that some item of the catalogue has, in a search that is free to
  compose any code: every kept prefix is followed by all K codes, whether it exists or not, and the B best go on (all K at the first level
  where B is larger). A mean over the first 100 judged requests. The project's own search scores existing prefixes only: its rate is 1.

All figures but the last are of the search as it serves, with the model's ``u2t_inference``: by default the exact mean of the crosses over
a prefix's items. ``valid_beams`` is scored with ``MLP_u2t`` whatever serving uses, because a prefix without items has no exact mean. So it
says what a search without a trie would meet, and nothing of the one that serves; ``u2t`` and ``valid_beams_u2t`` of the result name both.

Writes ``benchmarks/results/beam.json`` and ``beam.png``. Shape suffixes: ``G`` requests of a chunk, ``Q`` requests or kept prefixes, ``K``
codes or ranks, ``L`` levels, ``D`` width, ``R`` rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch.nn import functional as F

from benchmarks.judging import Judged, add_options, add_validation, asked, facts, part_of, plainly, result_name
from dig_models.evaluate.lists import VARIANTS, Variant
from dig_models.evaluate.retrieval import NONE
from dig_models.retrieve.beam import OPEN, Retrieved
from dig_models.retrieve.options import SearchOptions
from dig_models.retrieve.rerank import Retriever
from dig_models.train.data import RequestTable
from jobs.evaluate import finite
from jobs.runs import write_json

Ints = NDArray[np.int64]
BEAMS = (1, 2, 5, 10, 20, 50, 100, 200)
K = 10
EQUAL = 1e-4
"""Log-probabilities that differ by less are equal: blocks of other sizes sum in another order."""


def found_by(judged: Judged, beam: int, *, rerank: int, variant: Variant) -> Retrieved:
    """The best ``K`` items of every judged request with one beam."""
    shape = judged.bundle.model.config
    options = SearchOptions(
        k=K, beam=beam, rerank=rerank, u2t=shape.u2t_inference, path_score=shape.path_score, exclude_bought=variant == "new"
    )
    return judged.retriever.search(judged.requests, judged.index_Q, options)


def every_prefix(retriever: Retriever) -> int:
    """A beam that drops nothing."""
    return max(retriever.trie.nodes(level) for level in range(retriever.trie.levels))


def below(score_Q: NDArray[np.floating[Any]], best_Q: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """1 where a request's score is below the best one there is."""
    return (score_Q < best_Q - EQUAL).astype(np.float64)


def of_beam(judged: Judged, beam: int, whole: Retrieved, winner_Q: NDArray[np.float32]) -> dict[str, Any]:
    """Every figure of one beam.

    Args:
        judged: model and requests.
        beam: prefixes kept.
        whole: what a search finds that keeps all.
        winner_Q: best log-probability of any item by the ranking path.
    """
    rerank = judged.config.retrieve.rerank
    path = found_by(judged, beam, rerank=0, variant="all")
    ranked = found_by(judged, beam, rerank=rerank, variant="all")
    kept_Q = np.array([np.isin(w[w > 0], p).mean() for p, w in zip(path.item_GJ, whole.item_GJ, strict=True)])
    row: dict[str, Any] = {
        "beam": beam,
        "path_winner_lost": judged.figure(below(path.score_GJ[:, 0], whole.score_GJ[:, 0])),
        "rank_winner_lost": judged.figure(below(ranked.score_GJ[:, 0], winner_Q)),
        "top10_kept": judged.figure(kept_Q),
    }
    for variant in VARIANTS:
        lists = {"path": path, "reranked": ranked}
        if variant == "new":
            lists = {name: found_by(judged, beam, rerank=r, variant=variant) for name, r in (("path", 0), ("reranked", rerank))}
        row[variant] = {
            name: {figure: judged.figure(v) for figure, v in judged.values(variant, padded(found)).items()} for name, found in lists.items()
        }
    return row


def padded(found: Retrieved) -> Ints:
    """Lists with -1 where there is no item."""
    return np.where(found.item_GJ == 0, NONE, found.item_GJ)


@torch.no_grad()
def valid_beams(retriever: Retriever, requests: RequestTable, index_B: Ints, beam: int) -> NDArray[np.float64]:
    """Share of the ``beam`` best prefixes of each level that exist in the catalogue, ``(B, L)``, when any code may follow any prefix.

    Scored with ``MLP_u2t``: a prefix that no item has is without exact crosses.
    """
    model, shape, trie = retriever.model, retriever.model.config, retriever.trie
    codes_NL = np.asarray(trie.item_codes(), dtype=np.int64)[1:]
    known = [np.unique(codes_NL[:, : level + 1] @ shape.codes ** np.arange(level, -1, -1)) for level in range(shape.levels)]
    semantic_LKD = model.quantizer.semantic.weight.view(shape.levels, shape.codes, shape.dim)
    out_BL = np.zeros((len(index_B), shape.levels))
    for at, b in enumerate(index_B):
        users = retriever.users(requests, np.array([b], dtype=np.int64))
        number_Q, prefix_QD, path_Q = torch.zeros(1, dtype=torch.int64), torch.zeros(1, shape.dim), torch.zeros(1)
        for level in range(shape.levels):
            prefix_RD = (prefix_QD.unsqueeze(1) + semantic_LKD[level]).flatten(0, 1)
            number_R = (number_Q.unsqueeze(1) * shape.codes + torch.arange(shape.codes)).flatten()
            request_R = torch.zeros(len(prefix_RD), dtype=torch.int64)
            u2t_RC = model.predict_u2t(users, request_R, prefix_RD)
            own_R = F.logsigmoid(model.recall_logit(users, request_R, prefix_RD, u2t_RC, torch.full_like(request_R, OPEN)))
            score_R = own_R + path_Q.repeat_interleave(shape.codes) if shape.path_score == "sum_log" else own_R
            path_Q, best = score_R.topk(min(beam, len(score_R)))
            number_Q, prefix_QD = number_R[best], prefix_RD[best]
            out_BL[at, level] = np.isin(number_Q.numpy(), known[level]).mean()
    return out_BL


def measure(judged: Judged, beams: Sequence[int], *, free_requests: int = 100) -> dict[str, Any]:
    """All figures of all beams, and of a search that drops nothing."""
    retriever = judged.retriever
    widest = every_prefix(retriever)
    whole = found_by(judged, widest, rerank=0, variant="all")
    winner_Q = retriever.exhaustive(judged.requests, judged.index_Q).max(axis=1)
    rows = []
    for beam in (*beams, widest):
        rows.append(of_beam(judged, beam, whole, winner_Q))
        if beam != widest:
            share_BL = valid_beams(retriever, judged.requests, judged.index_Q[:free_requests], beam)
            rows[-1]["valid_beams"] = share_BL.mean(axis=0).tolist()
        print(line(rows[-1]), flush=True)
    return {
        "lineage": judged.bundle.info["lineage"],
        "requests": len(judged.index_Q),
        "prefixes": [retriever.trie.nodes(level) for level in range(retriever.trie.levels)],
        "rerank": judged.config.retrieve.rerank,
        "u2t": judged.bundle.model.config.u2t_inference,
        "valid_beams_u2t": "mlp",
        "valid_beams_requests": len(judged.index_Q[:free_requests]),
        "beams": rows[:-1],
        "exhaustive": rows[-1],
    }


def line(row: dict[str, Any]) -> str:
    """One row as text."""
    valid = " ".join(f"{share:.2f}" for share in row.get("valid_beams", []))
    recall = " ".join(f"{v}/{n} {row[v][n][f'recall@{K}']['mean']:.4f}" for v in VARIANTS for n in ("path", "reranked"))
    lost = f"path winner lost {row['path_winner_lost']['mean']:.3f}, rank winner lost {row['rank_winner_lost']['mean']:.3f}"
    return f"beam {row['beam']:6}: {lost}, recall@{K} {recall}" + (f", valid free beams {valid}" if valid else "")


def plot(found: dict[str, Any]) -> Figure:
    """Recall against the beam, and what the beam loses."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    beams = [row["beam"] for row in found["beams"]]
    styles = (
        ("all", "reranked", "#0b6e99", "-"),
        ("all", "path", "#0b6e99", "--"),
        ("new", "reranked", "#c2571a", "-"),
        ("new", "path", "#c2571a", "--"),
    )
    for variant, name, color, style in styles:
        figures = [row[variant][name][f"recall@{K}"] for row in found["beams"]]
        left.plot(beams, [f["mean"] for f in figures], style, marker="o", color=color, label=f"{variant}, {name}")
        left.fill_between(beams, [f["ci"][0] for f in figures], [f["ci"][1] for f in figures], color=color, alpha=0.1, linewidth=0)
        left.axhline(found["exhaustive"][variant][name][f"recall@{K}"]["mean"], color=color, linestyle=":", linewidth=1)
    left.set(xscale="log", xlabel="beam B", ylabel=f"recall@{K}", title="Recall (dotted: no prefix dropped)")
    for name, color in (("path_winner_lost", "#0b6e99"), ("rank_winner_lost", "#c2571a")):
        right.plot(beams, [row[name]["mean"] for row in found["beams"]], "o-", color=color, label=name.replace("_", " "))
    right.plot(
        beams,
        [row["valid_beams"][-1] for row in found["beams"]],
        "s--",
        color="#6a737d",
        label="valid beams, free codes, MLP u2t, full SID",
    )
    right.set(xscale="log", xlabel="beam B", ylim=(-0.02, 1.02), title="Share of requests, of beams")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#d9dee3")
        axes.legend(frameon=False, fontsize=8)
    return figure


@plainly
def main() -> None:
    """Parse the options, measure, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_options(parser, of="of a finished training; ")
    parser.add_argument("--beams", type=int, nargs="+", default=list(BEAMS))
    parser.add_argument("--requests", type=int, default=500)
    add_validation(parser)
    args = parser.parse_args()
    config, day = asked(parser, args)
    judged = Judged.open(config, day, args.requests, part=part_of(args))
    found = {**facts(config, day, judged.part, args.set), **measure(judged, sorted(set(args.beams)))}
    args.results.mkdir(parents=True, exist_ok=True)
    name = result_name(config, "beam", judged.part)
    write_json(args.results / f"{name}.json", finite(found))
    plot(found).savefig(args.results / f"{name}.png", dpi=150)


if __name__ == "__main__":
    main()
