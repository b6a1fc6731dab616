"""Training of a generator: epochs over examples, validation by search, the best weights, and a checkpoint after each epoch.

Every epoch seeds what it draws by itself, so that a training that was stopped goes on as if it had not been.

Shape suffixes: ``B`` examples of a batch, ``Q`` examples of the validation, ``K`` ranks.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dig_models.evaluate.retrieval import hits, ndcg_at
from dig_models.generator.examples import Examples
from dig_models.generator.search import TrieTensors, recommend
from dig_models.generator.settings import GeneratorSettings
from dig_models.generator.t5 import SidT5
from dig_models.retrieve.trie import Trie

log = logging.getLogger(__name__)
TOP = 10
CHECKPOINT = "epoch.pt"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a training is.

    Attributes:
        epoch: epochs done.
        losses: mean loss of each.
        ndcg: N@10 of each validation.
        best: index of the best of them, -1 before the first.
        seconds: spent in epochs and validations, also before a stop.
    """

    epoch: int = 0
    losses: tuple[float, ...] = ()
    ndcg: tuple[float, ...] = ()
    best: int = -1
    seconds: float = 0.0

    def ended(self, settings: GeneratorSettings) -> bool:
        """Whether all epochs are done, or the last ``patience`` validations brought nothing better."""
        return self.epoch >= settings.epochs or len(self.ndcg) - 1 - self.best >= settings.patience


def train(
    code_NL: NDArray[np.integer],
    sizes: tuple[int, ...],
    settings: GeneratorSettings,
    examples: Examples,
    validation: Examples,
    *,
    device: str = "cpu",
    folder: Path | None = None,
    report: Callable[[Progress], None] = lambda _: None,
) -> tuple[SidT5, Progress]:
    """Train a generator on SIDs; the same arguments give the same weights on one kind of device.

    Args:
        code_NL: SIDs of all item rows; row 0 is the unknown item.
        sizes: codes of each level.
        settings: of network and training.
        examples: to learn from.
        validation: to choose the best epoch by, N@10 of a constrained search over all items.
        device: ``cpu`` or ``cuda``, where training computes in bfloat16 and keeps weights in float32.
        folder: where checkpoints go; a training found there goes on. None keeps none.
        report: called after each epoch.

    Returns:
        The network with the weights of the best validation, in evaluation mode, and what happened.

    Raises:
        MissingExtra: transformers is not installed.
        ValueError: no examples, a code that its level does not have, or ``folder`` holds another training.
    """
    if not len(examples) or not len(validation):
        raise ValueError(f"{len(examples)} examples to learn from and {len(validation)} to validate by found, at least 1 of each expected")
    where = torch.device(device)
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        run = _Run(code_NL, sizes, settings, examples.to(where), validation.to(where), where)
        return run.until_ended(folder, report)


class _Run:
    """Network, optimizer and progress of a training."""

    def __init__(
        self,
        code_NL: NDArray[np.integer],
        sizes: tuple[int, ...],
        settings: GeneratorSettings,
        examples: Examples,
        validation: Examples,
        device: torch.device,
    ) -> None:
        self.settings, self.examples, self.validation, self.device = settings, examples, validation, device
        self.model = SidT5(code_NL, sizes, settings).to(device)
        self.trie = TrieTensors.of(Trie.build(code_NL), device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
        self.steps = math.ceil(len(examples) / settings.batch)
        self.progress, self.best = Progress(), self._weights()
        self.lineage = _digest(code_NL, sizes, settings, examples, validation)

    def until_ended(self, folder: Path | None, report: Callable[[Progress], None]) -> tuple[SidT5, Progress]:
        """Go on until the end; weights are then the best ones."""
        if folder is not None:
            self._load(folder)
        while not self.progress.ended(self.settings):
            began = time.perf_counter()
            loss = self._epoch()
            self.progress = replace(self.progress, epoch=self.progress.epoch + 1, losses=(*self.progress.losses, loss))
            if self.progress.epoch % self.settings.validate_every == 0 or self.progress.epoch == self.settings.epochs:
                self._validate()
            self.progress = replace(self.progress, seconds=self.progress.seconds + time.perf_counter() - began)
            if folder is not None:
                self._save(folder)
            report(self.progress)
        self.model.load_state_dict(self.best)
        return self.model.eval(), self.progress

    def _epoch(self) -> float:
        """One pass over the examples; mean loss."""
        settings, epoch = self.settings, self.progress.epoch
        torch.manual_seed(settings.seed * 100_003 + epoch)  # of dropout
        self.model.train()
        total, number = torch.zeros((), device=self.device), 0
        for step, batch in enumerate(self.examples.batches(settings.batch, settings.history, settings.seed + epoch)):
            for group in self.optimizer.param_groups:
                group["lr"] = self._rate(epoch * self.steps + step)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                loss = self.model.loss(batch.history(settings.history), batch.target_X)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.grad_clip)
            self.optimizer.step()
            total, number = total + loss.detach() * len(batch), number + len(batch)
        return float(total) / number

    def _rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        settings = self.settings
        if step < settings.warmup_steps:
            return settings.lr * (step + 1) / settings.warmup_steps
        if settings.schedule == "constant":
            return settings.lr
        done = (step - settings.warmup_steps) / max(settings.epochs * self.steps - settings.warmup_steps, 1)
        return settings.lr * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    def _validate(self) -> None:
        settings, progress = self.settings, self.progress
        ranked_QK = recommend(
            self.model,
            self.trie,
            self.validation.history(settings.history),
            beam=settings.beam,
            batch=settings.search_batch,
            count=TOP,
        )
        found = float(ndcg_of(ranked_QK, self.validation.target_X).mean())
        better = progress.best < 0 or found > progress.ndcg[progress.best]
        self.progress = replace(progress, ndcg=(*progress.ndcg, found), best=len(progress.ndcg) if better else progress.best)
        if better:
            self.best = self._weights()

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def _save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        kept = {
            "lineage": self.lineage,
            "progress": asdict(self.progress),
            "model": self.model.state_dict(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
        }
        writing = folder / f".{CHECKPOINT}"
        torch.save(kept, writing)
        writing.replace(folder / CHECKPOINT)

    def _load(self, folder: Path) -> None:
        if not (folder / CHECKPOINT).exists():
            return
        kept: dict[str, Any] = torch.load(folder / CHECKPOINT, map_location=self.device, weights_only=True)
        if kept["lineage"] != self.lineage:
            raise ValueError(
                f"{folder / CHECKPOINT}: of another training (other SIDs, settings or examples); "
                "remove it, or let this training have a folder of its own"
            )
        self.progress = Progress(**kept["progress"])
        self.model.load_state_dict(kept["model"])
        self.optimizer.load_state_dict(kept["optimizer"])
        self.best = kept["best"]
        log.info("%s: goes on after epoch %d", folder, self.progress.epoch)


def ndcg_of(ranked_QK: NDArray[np.int64], target_Q: Tensor) -> NDArray[np.float64]:
    """N@10 of lists with one relevant item each, ``(Q,)``."""
    target = target_Q.cpu().numpy()
    hit_QK = hits(ranked_QK, target, np.arange(len(target) + 1))
    return ndcg_at(hit_QK, np.ones(len(target), dtype=np.int64), TOP)


def _digest(
    code_NL: NDArray[np.integer], sizes: tuple[int, ...], settings: GeneratorSettings, examples: Examples, validation: Examples
) -> str:
    """Of all that decides the weights."""
    found = hashlib.sha256(json.dumps([sizes, settings.model_dump(mode="json")], sort_keys=True).encode())
    found.update(np.ascontiguousarray(code_NL, dtype=np.int64).tobytes())
    for part in (examples, validation):
        for tensor in (part.item_P, part.at_X, part.first_X):
            found.update(tensor.cpu().numpy().tobytes())
    return found.hexdigest()
