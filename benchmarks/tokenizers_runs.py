"""One run of ``benchmarks.tokenizers``: a data set in one order, SIDs by one kind (or none, for SASRec), a model on them, its figures.

Shape suffixes: ``N`` rows of the item table (row 0 unknown), ``L`` levels, ``Q`` users judged, ``K`` ranks, ``S`` bootstrap replicates.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import tokenizers_references, tokenizers_sasrec
from benchmarks.tokenizers_data import DataSet, Order
from benchmarks.tokenizers_modes import CO_OCCURRENCE, POPULAR, REFERENCES, SASREC, Mode
from benchmarks.tokenizers_sids import MADE_BY, Apart, code_of, sids
from dig_models.evaluate import bootstrap, retrieval
from dig_models.evaluate.sid_quality import history_overlap
from dig_models.generator.examples import Examples
from dig_models.generator.search import TrieTensors, recommend
from dig_models.generator.train import TOP, Progress, train
from dig_models.retrieve.trie import Trie
from dig_models.tokenizers.sequences import Sequences
from jobs.evaluate import finite
from jobs.runs import write_json

Ints = NDArray[np.int64]
CUTS = (5, 10)
REPLICATES = 1000
Say = Callable[[str], None]
Report = Callable[[Progress], None]
Found = tuple[Ints, Progress, dict[str, Any] | None]
"""Lists of the users judged, the training, and what SIDs are like."""
RUN_BY = (
    *MADE_BY, "benchmarks.baseline_models", "benchmarks.tokenizers_references", "benchmarks.tokenizers_runs",
    "benchmarks.tokenizers_sasrec", "dig_models.evaluate", "dig_models.retrieve.trie",
)  # fmt: skip
"""Modules that decide figures."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One run.

    Attributes:
        data: the data set.
        kind: of the tokenizer, or one of ``REFERENCES``.
        order: of events that share user and day.
        mode: settings of models and evaluation.
        seed: of the tokenizer, the model, the shuffling and the draw of users.
        levels: SID length without a suffix; codes: of a level.
        changes: settings of the kind, as on the command line.
        conflicts: what becomes of items that share a SID, see ``tokenizers_sids``.
        device: where models are trained.
        work: folder of records, checkpoints, SIDs and text vectors.
    """

    data: DataSet
    kind: str
    order: Order
    mode: Mode
    seed: int
    levels: int
    codes: int
    changes: dict[str, str] = field(default_factory=dict)
    conflicts: Apart = "suffix"
    device: str = "cpu"
    work: Path

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the figures, the code among it."""
        own = {"levels": self.levels, "codes": self.codes, "changes": self.changes, "conflicts": self.conflicts}
        part = {SASREC: {"sasrec"}, POPULAR: set(), CO_OCCURRENCE: set()}.get(self.kind, {"generator"})
        return {
            "data": self.data.digest,
            "kind": self.kind,
            "order": self.order,
            "seed": self.seed,
            "mode": self.mode.model_dump(mode="json", include={"name", "validation_users", "test_users", *part}),
            "sid": {} if self.kind in REFERENCES else own,
            "code": code_of(*RUN_BY),
        }

    @property
    def name(self) -> str:
        """Of its files."""
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()
        return f"{self.data.name}-{self.kind}-{self.order}-{self.mode.name}-{self.seed}-{digest[:12]}"

    @property
    def record(self) -> Path:
        """File of what was found."""
        return self.work / "runs" / f"{self.name}.json"


def run(asked: Asked, say: Say) -> dict[str, Any]:
    """Figures of a run; read from its record where there is one.

    Raises:
        DataError: an order that the data set does not have.
        ValueError: the tokenizer refuses the catalogue or its settings.
        MissingExtra: a package of an optional extra is not installed.
    """
    if asked.record.is_file():
        say(f"{asked.name}: done before")
        found: dict[str, Any] = json.loads(asked.record.read_text())
        return found
    whole = asked.data.sequences(asked.order, asked.seed)
    learned, validation, test = split(whole)
    validation = drawn(validation, asked.mode.validation_users, asked.seed)
    test = drawn(test, asked.mode.test_users, asked.seed + 1)
    began = time.perf_counter()
    make = {SASREC: _sasrec, POPULAR: _reference, CO_OCCURRENCE: _reference}.get(asked.kind, _generated)
    ranked_QK, progress, sid = make(asked, learned, validation, test, _reporter(asked, say))
    target_Q = test.target_X.cpu().numpy()
    record = {
        **asked.settings,
        "name": asked.name,
        "dataset": asked.data.name,
        "items": len(asked.data.items) - 1,
        "users": len(whole),
        "judged": len(test),
        "tied": asked.data.tied(),
        "device": asked.device,
        "figures": figures(ranked_QK, target_Q, asked.seed),
        "ranks": ranks(ranked_QK, target_Q),
        "validation": max(progress.ndcg, default=None),
        "epochs": progress.epoch,
        "train_seconds": progress.seconds,
        "sids": sid,
    }
    asked.record.parent.mkdir(parents=True, exist_ok=True)
    write_json(asked.record, finite(record))
    shutil.rmtree(asked.work / "open" / asked.name, ignore_errors=True)
    say(f"{asked.name}: {told(record)}, {time.perf_counter() - began:.0f} s")
    done: dict[str, Any] = json.loads(asked.record.read_text())
    return done


def split(whole: Sequences) -> tuple[Sequences, Examples, Examples]:
    """Leave-one-out: what is learned, each user's last event but one to validate, and the last to test."""
    return whole.without_last(2), Examples.last(whole.without_last(1)), Examples.last(whole)


def told(record: dict[str, Any]) -> str:
    """Figures in one line."""
    return ", ".join(f"{name} {value['mean']:.4f}" for name, value in record["figures"].items())


def drawn(examples: Examples, users: int | None, seed: int) -> Examples:
    """Examples of some users, drawn by a seed; all of them if there are no more."""
    if users is None or users >= len(examples):
        return examples
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
    return examples.take(order[:users].sort().values)


def figures(ranked_QK: Ints, target_Q: Ints, seed: int) -> dict[str, dict[str, float]]:
    """Recall and NDCG of lists with one relevant item each: mean, and a bootstrap interval over users."""
    hit_QK = retrieval.hits(ranked_QK, target_Q, np.arange(len(target_Q) + 1))
    one_Q = np.ones(len(target_Q), dtype=np.int64)
    draw_SQ = bootstrap.draws(len(target_Q), REPLICATES, seed)
    out = {}
    for name, of in (("recall", retrieval.recall_at), ("ndcg", retrieval.ndcg_at)):
        for cut in CUTS:
            value_Q = of(hit_QK, one_Q, cut)
            low, high = bootstrap.interval(bootstrap.mean_samples(value_Q, np.arange(len(target_Q)), draw_SQ))
            out[f"{name}@{cut}"] = {"mean": float(value_Q.mean()), "low": low, "high": high}
    return out


def ranks(ranked_QK: Ints, target_Q: Ints) -> list[int]:
    """Place of each user's target in its list, from 1; 0 where it is not there."""
    hit_QK = ranked_QK == target_Q[:, None]
    found: list[int] = np.where(hit_QK.any(axis=1), hit_QK.argmax(axis=1) + 1, 0).tolist()
    return found


def _reporter(asked: Asked, say: Say) -> Callable[[Progress], None]:
    epochs = asked.mode.sasrec.epochs if asked.kind == SASREC else asked.mode.generator.epochs

    def report(progress: Progress) -> None:
        left = progress.seconds / progress.epoch * (epochs - progress.epoch)
        best = f", best N@10 {progress.ndcg[progress.best]:.4f}" if progress.ndcg else ""
        say(f"{asked.name}: epoch {progress.epoch} of {epochs}, loss {progress.losses[-1]:.3f}{best}, at most {left:.0f} s to go")

    return report


def _reference(asked: Asked, learned: Sequences, validation: Examples, test: Examples, report: Report) -> Found:
    began = time.perf_counter()
    make = {POPULAR: tokenizers_references.popular, CO_OCCURRENCE: tokenizers_references.co_occurrence}[asked.kind]
    ranked_QK = make(learned, len(asked.data.items), test, TOP)
    return ranked_QK, Progress(seconds=time.perf_counter() - began), None


def _sasrec(asked: Asked, learned: Sequences, validation: Examples, test: Examples, report: Report) -> Found:
    settings = asked.mode.sasrec.model_copy(update={"seed": asked.seed})
    model, progress = tokenizers_sasrec.train(asked.data, learned, validation, settings, device=asked.device, report=report)
    return tokenizers_sasrec.recommend(model, test.to(torch.device(asked.device)), TOP), progress, None


def _generated(asked: Asked, learned: Sequences, validation: Examples, test: Examples, report: Report) -> Found:
    settings = asked.mode.generator.model_copy(update={"seed": asked.seed})
    own: dict[str, Any] = {name: getattr(asked, name) for name in ("levels", "codes", "seed", "conflicts", "work")}
    code_NL, sid = sids(asked.data, asked.kind, asked.changes, learned, **own)
    sizes = (asked.codes,) * asked.levels + tuple(int(code_NL[:, level].max()) + 1 for level in range(asked.levels, code_NL.shape[1]))
    examples, folder = Examples.every(learned), asked.work / "open" / asked.name
    model, progress = train(code_NL, sizes, settings, examples, validation, device=asked.device, folder=folder, report=report)
    trie = TrieTensors.of(Trie.build(code_NL), model.device)
    history_QH = test.history(settings.history)
    ranked_QK = recommend(model, trie, history_QH, beam=settings.beam, batch=settings.search_batch, count=TOP)
    overlap = history_overlap(code_NL[:, : asked.levels], test.target_X.numpy(), history_QH.numpy())
    return ranked_QK, progress, sid | {"history_overlap": overlap}
