"""The training loop: warm-up, codebooks, joint training; the same result however often it is interrupted.

Until ``warmup_fraction`` of the steps the ranker trains alone; then the codebooks are built from the catalogue and all five losses
train together, with an EMA step of the codebooks after every optimizer step. A model that is warm-started keeps its codes and trains
jointly from the first step. Learning rate and batches are functions of the step, the rest of the state is in the checkpoints.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dig_models.batch import Batch
from dig_models.calibrate import calibrate
from dig_models.config import TrainConfig
from dig_models.dig import Dig
from dig_models.quantize.residual import zero_moments
from dig_models.train import checkpoint, optim
from dig_models.train.distributed import World
from dig_models.train.hard import HardNegatives
from dig_models.train.stream import ExampleStream, Prefetcher
from dig_models.train.validate import validate

LOG_STEPS = 20
logger = logging.getLogger(__name__)


class TrainingDiverged(ArithmeticError):
    """The gradients are not finite; training cannot go on."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What to train, on what.

    Attributes:
        model: on the CPU, items set; the same weights on every rank.
        validation: examples of the validation days; may have none.
        checkpoints: folder for checkpoints, seen by all ranks.
        lineage: digest of all that determines the result; a checkpoint of another lineage is not resumed.
        warm: the model starts from a trained one, codebooks included.
    """

    model: Dig
    config: TrainConfig
    train: ExampleStream
    validation: ExampleStream
    checkpoints: Path
    lineage: str
    warm: bool


@dataclass(kw_only=True)
class Record:
    """What happened so far, over all ranks; kept in checkpoints.

    Attributes:
        step: optimizer steps done.
        requests, rows: what the losses saw.
        step_seconds: wall time of the steps, of which ``wait_seconds`` were spent waiting for data (means over ranks).
        other_seconds: codebook start, validation and checkpoints, on rank 0.
        curve: every ``LOG_STEPS`` steps the mean losses, gradient norm, learning rate and codebook usage.
        epochs: validation figures after each epoch.
        codebooks: collision rates of the tree that started the codebooks; empty for a warm start.
        calibration: shifts of the biases after the last step.
    """

    step: int = 0
    requests: int = 0
    rows: int = 0
    step_seconds: float = 0.0
    wait_seconds: float = 0.0
    other_seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)
    epochs: list[dict[str, float]] = field(default_factory=list)
    codebooks: dict[str, float] = field(default_factory=dict)
    calibration: dict[str, float] = field(default_factory=dict)

    @property
    def wait_share(self) -> float:
        """Share of a step spent waiting for data."""
        return self.wait_seconds / self.step_seconds if self.step_seconds else 0.0


@dataclass(frozen=True, kw_only=True)
class Told:
    """How far training has come, for whoever watches.

    Attributes:
        fresh: what was added to ``Record.curve`` or ``Record.epochs`` just now.
    """

    step: int
    steps: int
    epoch: int
    epochs: int
    examples_per_s: float
    eta_s: float
    fresh: dict[str, float]


def fit(setup: Setup, world: World, tell: Callable[[Told], None] = lambda told: None) -> Record:
    """Train ``setup.model`` in place, from the newest checkpoint of the same lineage if there is one.

    Args:
        setup: what to train; all ranks pass the same but for the streams' rank.
        world: this process.
        tell: called on rank 0 after every entry of the record.

    Raises:
        ExamplesError: the examples cannot be read or shared out.
        TrainingDiverged: a gradient is not finite.
    """
    return _Run(setup, world, tell).fit()


class _Meter:
    """Sums of the steps since the last entry of the record; ``flush`` adds up the ranks."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._steps = 0
        self._losses: dict[str, Tensor] = {}
        self._counts = torch.zeros(4, dtype=torch.float64)

    def add(self, losses: Mapping[str, Tensor], requests: int, rows: int, wait: float) -> None:
        for name, value in losses.items():
            self._losses[name] = self._losses.get(name, torch.zeros_like(value)) + value.detach()
        self._counts += torch.tensor([requests, rows, wait, 0.0], dtype=torch.float64)
        self._steps += 1

    def flush(self, record: Record, seconds: float, world: World) -> dict[str, float]:
        """Mean losses; requests, rows and times go to the record, and the meter starts afresh."""
        self._counts[3] = seconds
        losses = torch.stack([v.double() for v in self._losses.values()]).cpu() / self._steps
        sums = world.total(torch.cat([self._counts, losses])).tolist()
        record.requests += round(sums[0])
        record.rows += round(sums[1])
        record.wait_seconds += sums[2] / world.size
        record.step_seconds += sums[3] / world.size
        means = {name: value / world.size for name, value in zip(self._losses, sums[4:], strict=True)}
        self._reset()
        return means


class _Run:
    def __init__(self, setup: Setup, world: World, tell: Callable[[Told], None]) -> None:
        self.setup, self.config, self.world, self.tell = setup, setup.config, world, tell
        self.model = setup.model.to(world.device)
        self.model.settled = setup.warm and self.config.warm_codes == "keep"
        self.optimizer = optim.build(self.model, self.config)
        self.epochs = self.config.warm_epochs if setup.warm else self.config.epochs
        self.lengths = [setup.train.plan(epoch).steps for epoch in range(self.epochs)]
        self.steps = sum(self.lengths)
        self.warmup = 0 if setup.warm else int(self.config.warmup_fraction * self.steps)
        self.hard = self._hard_negatives()
        self.record = Record()
        self.usage: dict[str, float] = {}
        torch.manual_seed(self.config.seed + 1_000_003 * (world.rank + 1))

    def _hard_negatives(self) -> HardNegatives | None:
        config, stream = self.config, self.setup.train
        if not config.hard_negatives or self.model.config.loss.recall == 0:
            return None
        share_N = np.full(len(stream.items), config.random_negatives / (len(stream.items) - 1))
        if stream.chance_N is not None:
            share_N += stream.popular_negatives * stream.chance_N
        return HardNegatives(
            model=self.model,
            lookup=stream.lookup,
            each=config.hard_negatives,
            beam=config.hard_beam,
            share_N=torch.from_numpy(share_N),
            history=config.history_negatives,
            seed=config.seed,
            rank=self.world.rank,
        )

    def fit(self) -> Record:
        found = checkpoint.newest(self.setup.checkpoints, self.setup.lineage, self.world)
        if found:
            meta = checkpoint.load(found, self.model, self.optimizer, self.world)
            self.record = Record(**meta["record"])
            logger.info("resuming from %s, step %d of %d", found, self.record.step, self.steps)
        # Buffers agree on all ranks by construction. With more than two ranks a gradient's sum depends on its place in a bucket:
        # looking for unused parameters keeps DDP from rearranging buckets after its first step, which a resumed run takes again.
        self.ddp = DistributedDataParallel(self.model, forward_sync_buffers=False, find_unused_parameters=self.world.size > 2)
        begin = 0
        for epoch, length in enumerate(self.lengths):
            if self.record.step < begin + length:
                self._epoch(epoch, begin, begin + length)
            begin += length
        self._aside(self._calibrate)
        return self.record

    def _epoch(self, epoch: int, begin: int, end: int) -> None:
        self.model.train()
        meter, waited, clock = _Meter(), 0.0, time.perf_counter()
        with Prefetcher(self.setup.train.epoch(epoch, self.record.step - begin), self.config.prefetch) as batches:
            for fresh in batches:
                if self.record.step == self.warmup and not self.setup.warm:
                    clock += self._aside(self._start_codebooks)
                batch = self._harder(fresh.to(self.world.device))
                losses = self._step(batch)
                meter.add(losses, batch.requests, batch.rows, batches.wait_seconds - waited)
                waited = batches.wait_seconds
                step = self.record.step
                due = step % self.config.checkpoint_steps == 0 and step < end
                if due or step % LOG_STEPS == 0 or step in (self.warmup, end):
                    now = time.perf_counter()
                    self._log(epoch, meter.flush(self.record, now - clock, self.world))
                    clock = now
                if due:
                    clock += self._aside(self._save)
        self._aside(lambda: self._close(epoch))

    def _aside(self, action: Callable[[], None]) -> float:
        """Do something that is no part of a step; returns its seconds."""
        since = time.perf_counter()
        action()
        seconds = time.perf_counter() - since
        self.record.other_seconds += seconds
        return seconds

    def _harder(self, batch: Batch) -> Batch:
        """The batch with hard negatives, once there are codebooks to draw them by."""
        return self.hard.added_to(batch) if self.hard and self.record.step >= self.warmup else batch

    def _step(self, batch: Batch) -> dict[str, Tensor]:
        phase = "warmup" if self.record.step < self.warmup else "joint"
        optim.set_lr(self.optimizer, self.record.step, self.steps)
        self.optimizer.zero_grad(set_to_none=True)
        losses: dict[str, Tensor] = self.ddp(batch, phase, self.setup.train.lookup)
        losses["total"].backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        if not torch.isfinite(norm):
            shown = {k: float(v.detach()) for k, v in losses.items()}
            raise TrainingDiverged(f"step {self.record.step}: the gradient is not finite, losses are {shown}; lower train.lr")
        self.optimizer.step()
        if phase == "joint" and self.model.config.loss.recall > 0:
            self._move_codebooks()
        self.record.step += 1
        return {**losses, "grad_norm": norm}

    def _start_codebooks(self) -> None:
        self.record.codebooks = self.model.build_codebooks(self.config.seed)
        self.world.spread(self.model)  # what rank 0 found is what holds

    def _move_codebooks(self) -> None:
        self.usage = self.model.update_codebooks()
        if len(self.model.reset_rows):
            zero_moments(self.optimizer, self.model.quantizer.semantic.weight, self.model.reset_rows)

    def _log(self, epoch: int, means: dict[str, float]) -> None:
        entry = {"step": self.record.step, "epoch": epoch, "lr": self.optimizer.param_groups[-1]["lr"], **means, **self.usage}
        self.record.curve.append(entry)
        self._tell(epoch, entry)

    def _has_sids(self) -> bool:
        return self.model.config.loss.recall > 0 and bool(self.model.quantizer.built)

    def _close(self, epoch: int) -> None:
        """End of an epoch: validate, then a checkpoint."""
        figures = validate(self.model, self.setup.validation, self.world, prefetch=self.config.prefetch, sids=self._has_sids())
        entry = {"step": self.record.step, "epoch": epoch, **figures}
        self.record.epochs.append(entry)
        self._save()
        self._tell(epoch, entry)

    def _calibrate(self) -> None:
        with Prefetcher(self.setup.validation.in_order(), self.config.prefetch) as batches:
            self.record.calibration = calibrate(self.model, (b.to(self.world.device) for b in batches))

    def _save(self) -> None:
        meta: dict[str, Any] = {"lineage": self.setup.lineage, "record": asdict(self.record)}
        checkpoint.save(self.setup.checkpoints, self.record.step, self.model, self.optimizer, self.world, meta)

    def _tell(self, epoch: int, fresh: dict[str, float]) -> None:
        if not self.world.leads:
            return
        record = self.record
        rate = record.step / max(record.step_seconds, 1e-9)
        self.tell(
            Told(
                step=record.step,
                steps=self.steps,
                epoch=epoch + 1,
                epochs=self.epochs,
                examples_per_s=record.rows / max(record.step_seconds, 1e-9),
                eta_s=(self.steps - record.step) / rate if rate else 0.0,
                fresh=fresh,
            )
        )
