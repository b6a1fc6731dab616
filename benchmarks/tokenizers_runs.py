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

from benchmarks import tokenizers_sasrec
from benchmarks.tokenizers_data import DataSet, Order, text_vectors
from benchmarks.tokenizers_modes import SASREC, Mode, fit_arguments, kind_settings
from dig_models.evaluate import bootstrap, retrieval
from dig_models.evaluate.sid_quality import measure
from dig_models.generator.examples import Examples
from dig_models.generator.search import TrieTensors, recommend
from dig_models.generator.train import TOP, Progress, train
from dig_models.retrieve.trie import Trie
from dig_models.tokenizers.conflicts import suffix
from dig_models.tokenizers.given import GivenVectors
from dig_models.tokenizers.registry import tokenizer_class
from dig_models.tokenizers.sequences import Sequences
from jobs.evaluate import finite
from jobs.runs import write_json

Ints = NDArray[np.int64]
CUTS = (5, 10)
REPLICATES = 1000
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One run.

    Attributes:
        data: the data set.
        kind: of the tokenizer, or ``sasrec``.
        order: of events that share user and day.
        mode: settings of models and evaluation.
        seed: of the tokenizer, the model, the shuffling and the draw of users.
        levels: SID length without a suffix; codes: of a level.
        changes: settings of the kind, as on the command line.
        device: where models are trained.
        work: folder of records, checkpoints and text vectors.
    """

    data: DataSet
    kind: str
    order: Order
    mode: Mode
    seed: int
    levels: int
    codes: int
    changes: dict[str, str] = field(default_factory=dict)
    device: str = "cpu"
    work: Path

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the figures, beside the code."""
        sid = {} if self.kind == SASREC else {"levels": self.levels, "codes": self.codes, "changes": self.changes}
        part = "sasrec" if self.kind == SASREC else "generator"
        mode = self.mode.model_dump(mode="json", include={"name", part, "validation_users", "test_users"})
        return {"data": self.data.digest, "kind": self.kind, "order": self.order, "seed": self.seed, "mode": mode, "sid": sid}

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
    ranked_QK, progress, sid = (_sasrec if asked.kind == SASREC else _generated)(asked, learned, validation, test, _reporter(asked, say))
    record = {
        **asked.settings,
        "dataset": asked.data.name,
        "items": len(asked.data.items) - 1,
        "users": len(whole),
        "judged": len(test),
        "tied": asked.data.tied(),
        "device": asked.device,
        "figures": figures(ranked_QK, test.target_X.cpu().numpy(), asked.seed),
        "validation": max(progress.ndcg),
        "epochs": progress.epoch,
        "train_seconds": progress.seconds,
        **sid,
    }
    asked.record.parent.mkdir(parents=True, exist_ok=True)
    write_json(asked.record, finite(record))
    shutil.rmtree(asked.work / "open" / asked.name, ignore_errors=True)
    say(f"{asked.name}: {told(record)}, {time.perf_counter() - began:.0f} s")
    return record


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


def _reporter(asked: Asked, say: Say) -> Callable[[Progress], None]:
    epochs = asked.mode.sasrec.epochs if asked.kind == SASREC else asked.mode.generator.epochs

    def report(progress: Progress) -> None:
        left = progress.seconds / progress.epoch * (epochs - progress.epoch)
        best = f", best N@10 {progress.ndcg[progress.best]:.4f}" if progress.ndcg else ""
        say(f"{asked.name}: epoch {progress.epoch} of {epochs}, loss {progress.losses[-1]:.3f}{best}, at most {left:.0f} s to go")

    return report


def _sasrec(
    asked: Asked, learned: Sequences, validation: Examples, test: Examples, report: Callable[[Progress], None]
) -> tuple[Ints, Progress, dict[str, Any]]:
    settings = asked.mode.sasrec.model_copy(update={"seed": asked.seed})
    model, progress = tokenizers_sasrec.train(asked.data, learned, validation, settings, device=asked.device, report=report)
    return tokenizers_sasrec.recommend(model, test.to(torch.device(asked.device)), TOP), progress, {"sids": None}


def _generated(
    asked: Asked, learned: Sequences, validation: Examples, test: Examples, report: Callable[[Progress], None]
) -> tuple[Ints, Progress, dict[str, Any]]:
    settings = asked.mode.generator.model_copy(update={"seed": asked.seed})
    folder = asked.work / "open" / asked.name
    code_NL, sid = sids(asked, learned, folder)
    sizes = (asked.codes,) * asked.levels + tuple(int(code_NL[:, level].max()) + 1 for level in range(asked.levels, code_NL.shape[1]))
    examples = Examples.every(learned)
    model, progress = train(code_NL, sizes, settings, examples, validation, device=asked.device, folder=folder, report=report)
    trie = TrieTensors.of(Trie.build(code_NL), model.device)
    history_QH = test.history(settings.history)
    ranked_QK = recommend(model, trie, history_QH, beam=settings.beam, batch=settings.search_batch, count=TOP)
    return ranked_QK, progress, {"sids": sid}


def sids(asked: Asked, learned: Sequences, folder: Path) -> tuple[Ints, dict[str, Any]]:
    """SIDs that no two items share, and what they are like before that; kept in a folder until the run is done.

    Items that share a SID get one more token, as in TIGER; where none do there is none. A tokenizer sees the sequences without their last
    two events, and text vectors of all items.
    """
    kept, told = folder / "sids.npy", folder / "sids.json"
    if told.is_file():
        return np.load(kept), json.loads(told.read_text())
    found, items, spec = tokenizer_class(asked.kind), asked.data.items, asked.data.spec
    settings = kind_settings(found, asked.changes)
    vector_MD = text_vectors(asked.data, asked.work)
    content = GivenVectors.of_vectors(items, spec, items.hash_N[1:], vector_MD, seed=asked.seed)
    began = time.perf_counter()
    tokenizer = found.fit(
        items, spec, levels=asked.levels, codes=asked.codes, seed=asked.seed, content=content, sequences=learned, **fit_arguments(settings)
    )
    code_NL = tokenizer.encode(items)
    seconds = time.perf_counter() - began
    quality = measure(code_NL[1:], asked.codes)
    sid = {
        "seconds": seconds,
        "collision_rate": quality.collision_rate,
        "largest_bucket": quality.largest_bucket,
        "used": [level.used for level in quality.levels],
        "perplexity": [level.perplexity for level in quality.levels],
    }
    if quality.collision_rate > 0:
        code_NL = suffix(code_NL, items.hash_N, codes=len(items))  # as many as it takes: a kind that collapses is a finding too
    folder.mkdir(parents=True, exist_ok=True)
    np.save(kept, code_NL)
    write_json(told, sid)
    return code_NL, sid
