"""The table of ``benchmarks.tokenizers``, from the records of its runs: Markdown for reading, JSON for whoever counts on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.tokenizers_modes import NOT_HERE, PUBLISHED, SASREC

Record = dict[str, Any]
LABELS = {SASREC: "SASRec", "rqvae": "rqvae (TIGER)", "dig": "dig"}
COLUMNS = (
    "tokenizer", "order", "mode", "R@5", "N@5", "R@10", "N@10", "published R@10 / N@10", "collisions", "codes used", "perplexity",
    "tokenize s", "train s", "epochs", "users judged",
)  # fmt: skip
LEGEND = """\
Leave-one-out: a user's last event tests, the one before validates, the rest is learned; all items are ranked, none is left out because the
user has it. Intervals: 95%, bootstrap over users. Text vectors: MiniLM of each item's short phrase and attribute names, not of its title,
so a comparison with published tables is approximate; *published* figures are of the published order and of larger models.
*Order*: published, or with the events of one user and day shuffled: the published order sorts them by item number, which a model can learn.
*Collisions*: items less distinct SIDs, over items, before one more token tells them apart. *Codes used* and *perplexity*: by level.
*Seconds*: tokenizing without text vectors; training with validation. *quick* is a smaller model, few epochs and a draw of users, for two
cores: its figures compare tokenizers with each other at best, not with published ones."""


def key(record: Record) -> tuple[Any, ...]:
    """Order of rows: SASRec first, then kinds by name."""
    return (record["dataset"], record["mode"]["name"], record["order"], record["kind"] != SASREC, record["kind"], record["seed"])


def summary(records: Sequence[Record]) -> dict[str, Any]:
    """What the JSON file holds: figures only, rows in the order of the table."""
    return {"rows": sorted(records, key=key), "not_compared": NOT_HERE}


def markdown(records: Sequence[Record]) -> str:
    """The table of each data set."""
    out = ["# Tokenizers under one generator", "", LEGEND, ""]
    for name in sorted({record["dataset"] for record in records}):
        rows = sorted((record for record in records if record["dataset"] == name), key=key)
        out += [f"## {name}", "", _facts(rows[0]), "", _line(COLUMNS), _line("---" for _ in COLUMNS)]
        out += [_line(_cells(row)) for row in rows]
        sources = {_label(row["kind"]): PUBLISHED[name, row["kind"]][2] for row in rows if (name, row["kind"]) in PUBLISHED}
        out += [
            "",
            "Published: " + ("; ".join(f"{label}: {source}" for label, source in sources.items()) or "none for these rows") + ".",
            "",
        ]
    out += [f"Not compared: {kind}: {why}." for kind, why in NOT_HERE.items()]
    return "\n".join(out) + "\n"


def _label(kind: str) -> str:
    return LABELS.get(kind, kind)


def _facts(record: Record) -> str:
    tied = record["tied"]
    ties = (
        "it has an order but no times, so there is no shuffled order" if tied is None else f"{tied:.1%} test on the day of the event before"
    )
    return f"{record['users']:,} users, {record['items']:,} items; {ties}."


def _cells(record: Record) -> list[str]:
    figure = record["figures"]
    known = PUBLISHED.get((record["dataset"], record["kind"])) if record["order"] == "published" else None
    sid = record["sids"]
    return [
        _label(record["kind"]),
        record["order"],
        record["mode"]["name"],
        *(
            f"{figure[n]['mean']:.4f} [{figure[n]['low']:.4f}, {figure[n]['high']:.4f}]"
            for n in ("recall@5", "ndcg@5", "recall@10", "ndcg@10")
        ),
        f"{known[0]:.4f} / {known[1]:.4f}" if known else "–",
        f"{sid['collision_rate']:.2%}" if sid else "–",
        ", ".join(map(str, sid["used"])) if sid else "–",
        ", ".join(f"{value:.0f}" for value in sid["perplexity"]) if sid else "–",
        f"{sid['seconds']:.0f}" if sid else "–",
        f"{record['train_seconds']:.0f}",
        str(record["epochs"]),
        f"{record['judged']:,}",
    ]


def _line(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"
