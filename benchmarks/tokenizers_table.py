"""The table of ``benchmarks.tokenizers``, from the records of its runs: Markdown for reading, JSON for whoever counts on.

Shape suffixes: ``Q`` users judged.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.tokenizers_modes import CO_OCCURRENCE, MODES, NOT_HERE, POPULAR, REFERENCES, SASREC, settings_of, variant_of
from benchmarks.tokenizers_published import Published, published
from dig_models.evaluate import bootstrap

Record = dict[str, Any]
LABELS = {
    POPULAR: "popularity",
    CO_OCCURRENCE: "beside the last item",
    SASREC: "SASRec",
    "rkmeans": "residual k-means",
    "rqvae": "RQ-VAE (small)",
    "rqvae:tiger": "TIGER",
    "rqvae:letter": "LETTER",
    "resid": "ReSID",
    "unisid": "UniSID",
    "diger": "DIGER",
    "diger:joint": "DIGER, joint",
    "diger:detached": "DIGER, detached",
}
COLUMNS = (
    "tokenizer", "SIDs", "order", "mode", "seed", "R@5", "N@5", "R@10", "N@10", "N@10 less RQ-VAE's", "published R@10 / N@10", "collisions",
    "codes used", "perplexity", "tokenize s", "train s", "epochs", "users judged",
)  # fmt: skip
REPLICATES = 1000
LEGEND = """\
Leave-one-out: a user's last event tests, the one before validates, the rest is learned; all items are ranked, none is left out because the
user has it. Intervals: 95%, bootstrap over users; *N@10 less RQ-VAE's* is paired by user with the first RQ-VAE row of the same order, mode
and seed. Every kind's SIDs are frozen and read by a fresh generator, DIGER's too, whose published figures are of the generator that was
trained along. What is read: the RQ-VAEs and residual k-means text vectors (LETTER also what users did, for its alignment); ReSID the item,
brand, category path and words, and what users did, no text vectors; DIGER text vectors and what users did; UniSID text vectors, brand,
category path and words. Text vectors: MiniLM of each item's short phrase and attribute names, not of its title, so a comparison with
published tables is approximate; *published* figures are of the published order, and of larger models than *quick* has.
*Order*: published, or with the events of one user and day shuffled: the published order sorts them by item number, which a model can learn.
*SIDs*: levels x codes, and what tells items apart that share one. *Collisions*: items less distinct SIDs, over items, before that. *Codes
used* and *perplexity*: by level; the JSON file has entropy, Gini coefficients and the overlap with histories too.
*Seconds*: tokenizing without text vectors, on the CPU; training with validation. *quick* is a smaller model, few epochs and a draw of
users, for two cores: its figures compare tokenizers with each other at best, not with published ones."""


def key(record: Record) -> tuple[Any, ...]:
    """Order of rows: those without SIDs first, then kinds by name, with their settings and shape."""
    kind, sid = record["kind"], record["sid"]
    place = REFERENCES.index(kind) if kind in REFERENCES else len(REFERENCES)
    changes = sid.get("changes", {})
    own = (
        variant_of(kind, changes),
        sid.get("levels", 0),
        sid.get("codes", 0),
        sid.get("conflicts", ""),
        json.dumps(changes, sort_keys=True),
    )
    return (record["dataset"], record["mode"]["name"], record["order"], place, *own, record["seed"], json.dumps(record["mode"]))


def rows_of(records: Sequence[Record]) -> list[Record]:
    """Records in the order of the table, each with its difference from an RQ-VAE's instead of each user's rank."""
    ordered = sorted(records, key=key)
    return [{name: value for name, value in one.items() if name != "ranks"} | {"difference": _difference(one, ordered)} for one in ordered]


def _difference(record: Record, ordered: Sequence[Record]) -> dict[str, Any] | None:
    """N@10 less that of the first RQ-VAE that was judged on the same users; None for it itself, or where there is none."""
    judged = [_judged_on(one) for one in ordered]
    same = [one for one, on in zip(ordered, judged, strict=True) if one["kind"] == "rqvae" and on == _judged_on(record)]
    if not same or same[0] is record:
        return None
    value_Q = _ndcg(record["ranks"]) - _ndcg(same[0]["ranks"])
    draw_SQ = bootstrap.draws(len(value_Q), REPLICATES, record["seed"])
    low, high = bootstrap.interval(bootstrap.mean_samples(value_Q, np.arange(len(value_Q)), draw_SQ))
    return {"from": label(same[0]), "mean": float(value_Q.mean()), "low": low, "high": high}


def _judged_on(record: Record) -> tuple[Any, ...]:
    mode = record["mode"]
    return (record["data"], record["order"], record["seed"], mode["name"], mode["test_users"], len(record["ranks"]))


def _ndcg(ranks: Sequence[int]) -> NDArray[np.float64]:
    """N@10 of each user, ``(Q,)``, from the place of the target in a list of ten."""
    rank_Q = np.asarray(ranks, dtype=np.float64)
    return np.where(rank_Q > 0, 1.0 / np.log2(np.maximum(rank_Q, 1.0) + 1.0), 0.0)


def summary(rows: Sequence[Record]) -> dict[str, Any]:
    """What the JSON file holds: figures only."""
    return {"rows": list(rows), "not_compared": NOT_HERE}


def markdown(rows: Sequence[Record]) -> str:
    """The table of each data set."""
    out = ["# Tokenizers under one generator", "", LEGEND, ""]
    for name in sorted({row["dataset"] for row in rows}):
        own = [row for row in rows if row["dataset"] == name]
        out += [f"## {name}", "", _facts(own[0]), "", _line(COLUMNS), _line("---" for _ in COLUMNS)]
        out += [_line(_cells(row)) for row in own]
        sources = {label(row): ", ".join(filter(None, (known.source, known.note))) for row in own if (known := known_of(row))}
        out += [
            "",
            "Published: " + ("; ".join(f"{row}: {source}" for row, source in sources.items()) or "none for these rows") + ".",
            "",
        ]
    out += [f"Not compared: {kind}: {why}." for kind, why in NOT_HERE.items()]
    return "\n".join(out) + "\n"


def label(record: Record) -> str:
    """Name of a row: kind or variant, and the settings that are not the mode's."""
    kind, changes = record["kind"], record["sid"].get("changes", {})
    variant = variant_of(kind, changes)
    usual = settings_of(MODES[record["mode"]["name"]], record["dataset"], variant)
    other = [f"{name}={value}" for name, value in sorted(changes.items()) if usual.get(name) != value]
    other += [f"{name} by default" for name in sorted(set(usual) - set(changes))]
    return " ".join([LABELS.get(variant, variant), *([f"({', '.join(other)})"] if other else [])])


def known_of(record: Record) -> Published | None:
    """Published figures of a row: of the published order alone."""
    if record["order"] != "published":
        return None
    return published(record["dataset"], record["kind"], record["sid"].get("changes", {}))


def _facts(record: Record) -> str:
    tied = record["tied"]
    ties = (
        "it has an order but no times, so there is no shuffled order" if tied is None else f"{tied:.1%} test on the day of the event before"
    )
    return f"{record['users']:,} users, {record['items']:,} items; {ties}."


def _cells(record: Record) -> list[str]:
    figure, sid, known, mode, shape = record["figures"], record["sids"], known_of(record), record["mode"]["name"], record["sid"]
    beside = _beside(known, mode) if known else "–"
    difference = record["difference"]
    return [
        label(record),
        f"{shape['levels']} x {shape['codes']}, {shape['conflicts']}" if shape else "–",
        record["order"],
        mode,
        str(record["seed"]),
        *(
            f"{figure[n]['mean']:.4f} [{figure[n]['low']:.4f}, {figure[n]['high']:.4f}]"
            for n in ("recall@5", "ndcg@5", "recall@10", "ndcg@10")
        ),
        f"{difference['mean']:+.4f} [{difference['low']:+.4f}, {difference['high']:+.4f}]" if difference else "–",
        beside,
        f"{sid['collision_rate']:.2%}" if sid else "–",
        ", ".join(map(str, sid["used"])) if sid else "–",
        ", ".join(f"{value:.0f}" for value in sid["perplexity"]) if sid else "–",
        f"{sid['seconds']:.0f}" if sid else "–",
        f"{record['train_seconds']:.0f}",
        str(record["epochs"] or "–"),
        f"{record['judged']:,}",
    ]


def _beside(known: Published, mode: str) -> str:
    """The published figures, and in what they are not of this row."""
    said = ["not comparable"] * (not MODES[mode].comparable) + ["gradient ours"] * bool(known.note)
    return ", ".join([f"{known.recall:.4f} / {known.ndcg:.4f}", *said])


def _line(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"
