"""RQ-VAE (arXiv 2203.01941) as TIGER uses it for semantic IDs (arXiv 2305.05065), with LETTER's regularisers (2405.07314) if asked for.

An autoencoder of content vectors with a residual quantizer in its middle: ``z = Enc(x)``, ``q = sum_l c_{l,s_l}`` by nearest residual
codes, ``x^ = Dec(z + sg[q - z])``; the loss is ``|x - x^|^2`` (mean) and ``beta sum_l |r_{l-1} - sg[c_{l,s_l}]|^2``. Codes start from
residual k-means of ``z``. They move by averages of their items (``codebook: ema``; arXiv 1711.00937, appendix A.1), or by
``sum_l |sg[r_{l-1}] - c_{l,s_l}|^2`` in the loss (``gradient``, as published), and go to a random residual when they have been without an
item for some steps. No interaction is seen beyond those that the vectors, or the vectors to be aligned with, were made of.

Shape suffixes: ``M`` items, ``X`` content width, ``D`` latent width, ``L`` levels, ``K`` codes.
"""

from __future__ import annotations

import logging
from itertools import pairwise
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dig_models.evaluate.sid_quality import SidQuality
from dig_models.features import FeatureSpec
from dig_models.items import ItemTable
from dig_models.quantize.residual import ResidualQuantizer
from dig_models.tokenizers.base import Ints, Tokenizer, without_unknown
from dig_models.tokenizers.co_occurrence import CoOccurrenceVectors
from dig_models.tokenizers.content import ContentVectors, Floats
from dig_models.tokenizers.letter import alignment_loss, code_clusters, diversity_loss
from dig_models.tokenizers.rkmeans import residual_kmeans
from dig_models.tokenizers.sequences import Sequences
from dig_models.tokenizers.settings import PRESETS, RqVaeSettings

__all__ = ["PRESETS", "RqVae", "RqVaeSettings", "collapsed"]

log = logging.getLogger(__name__)
COLLAPSED = 0.5
"""A level that uses no more than this share of its codes has collapsed."""


class _Network(nn.Module):
    """Encoder, quantizer and decoder."""

    def __init__(self, width: int, levels: int, codes: int, settings: RqVaeSettings) -> None:
        super().__init__()
        widths = (width, *settings.hidden, settings.latent)
        self.encoder, self.decoder = _layers(widths, settings.activation), _layers(widths[::-1], settings.activation)
        self.quantizer = ResidualQuantizer(levels, codes, settings.latent, settings.decay, settings.dead_code_steps, coupled=True)


def _layers(widths: tuple[int, ...], activation: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU() if activation == "relu" else nn.SiLU()]
    return nn.Sequential(*layers[:-1])


class RqVae(Tokenizer):
    """Codes of an RQ-VAE over content vectors.

    Attributes:
        losses: mean loss of each epoch of the fit; empty for one that was loaded.
        quality: use of the codes and collisions of the fitted catalogue, level by level; ``None`` for one that was loaded.
    """

    kind = "rqvae"

    def __init__(
        self,
        content: ContentVectors,
        network: _Network,
        settings: RqVaeSettings,
        losses: tuple[float, ...] = (),
        quality: SidQuality | None = None,
    ) -> None:
        super().__init__(content, network.quantizer.levels, network.quantizer.codes)
        self.network, self.settings, self.losses, self.quality = network.eval(), settings, losses, quality

    @classmethod
    def fit(
        cls,
        items: ItemTable,
        spec: FeatureSpec,
        *,
        levels: int,
        codes: int,
        seed: int,
        content: ContentVectors | None = None,
        sequences: Sequences | None = None,
        settings: RqVaeSettings | None = None,
        collaborative: ContentVectors | None = None,
    ) -> Self:
        """See ``Tokenizer.fit``; ``settings`` are of the autoencoder.

        ``collaborative`` are vectors to align with, as wide as the latent. ``sequences`` are read with ``settings.align`` alone, where
        these are not given: items that one user did co-occur.

        Raises:
            ValueError: as ``Tokenizer.fit``; or alignment without vectors, or with vectors of another width than the latent.
        """
        settings = settings or RqVaeSettings()
        content = content or ContentVectors.fit(items, spec, seed=seed)
        x_MX = torch.from_numpy(content.of(items)[1:])
        aligned_MD = _collaborative(items, spec, settings, sequences, collaborative, seed) if settings.align else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = _Network(x_MX.shape[1], levels, codes, settings)
            losses = _Training(network, settings, x_MX, aligned_MD, seed).run()
        made = cls(content, network, settings, tuple(losses))
        made.quality = made.report(items)
        _tell(made.quality)
        return made

    @torch.no_grad()
    def encode(self, items: ItemTable) -> Ints:
        """See ``Tokenizer.encode``."""
        x_MX = torch.from_numpy(self.content.of(items)[1:])
        return without_unknown(self.network.quantizer.assign(self.network.encoder(x_MX)).numpy())

    @torch.no_grad()
    def embed(self, items: ItemTable) -> Floats:
        """See ``Tokenizer.embed``: the latents."""
        latent: Floats = self.network.encoder(torch.from_numpy(self.content.of(items))).numpy()
        return latent

    @property
    def code_LKD(self) -> Floats:
        """See ``Tokenizer.code_LKD``."""
        codes: Floats = self.network.quantizer.code_LKD.numpy()
        return codes

    def state(self) -> dict[str, Tensor]:
        """See ``Tokenizer.state``."""
        return dict(self.network.state_dict())

    @classmethod
    def from_state(
        cls, content: ContentVectors, levels: int, codes: int, state: dict[str, Tensor], settings: dict[str, Any] | None = None
    ) -> Self:
        """See ``Tokenizer.from_state``."""
        own = RqVaeSettings.model_validate(settings or {})
        network = _Network(state["encoder.0.weight"].shape[1], levels, codes, own)
        network.load_state_dict(state)
        return cls(content, network, own)


def collapsed(quality: SidQuality) -> tuple[int, ...]:
    """Levels, from 1, that use no more than half of their codes."""
    return tuple(level for level, use in enumerate(quality.levels, start=1) if use.used <= COLLAPSED * use.codes)


def _tell(quality: SidQuality) -> None:
    used = ", ".join(f"{use.used} of {use.codes} (perplexity {use.perplexity:.1f})" for use in quality.levels)
    log.info("RQ-VAE: codes used by level: %s; collision rate %.3f", used, quality.collision_rate)
    if levels := collapsed(quality):
        log.warning("RQ-VAE: level(s) %s use half of their codes or fewer: train longer, or with fewer codes", ", ".join(map(str, levels)))


def _collaborative(
    items: ItemTable,
    spec: FeatureSpec,
    settings: RqVaeSettings,
    sequences: Sequences | None,
    given: ContentVectors | None,
    seed: int,
) -> Tensor:
    """Vectors to align with, ``(M, D)``."""
    if given is None:
        if sequences is None:
            raise ValueError("settings.align > 0 needs collaborative vectors, or sequences to make them of; found neither")
        user_P = np.repeat(np.arange(len(sequences)), np.diff(sequences.start))
        given = CoOccurrenceVectors.of_baskets(items, spec, user_P, sequences.item_P, seed=seed, width=settings.latent)
    aligned_MD = torch.from_numpy(given.of(items)[1:])
    if aligned_MD.shape[1] != settings.latent:
        raise ValueError(f"collaborative vectors of width {aligned_MD.shape[1]}, the latent has {settings.latent}: make them alike")
    return aligned_MD


class _Training:
    """Fits a network in place."""

    def __init__(self, network: _Network, settings: RqVaeSettings, x_MX: Tensor, aligned_MD: Tensor | None, seed: int) -> None:
        self.network, self.settings, self.quantizer = network, settings, network.quantizer
        self.x_MX, self.aligned_MD, self.seed = x_MX, aligned_MD, seed
        self.generator = torch.Generator().manual_seed(seed)
        self.cluster_LK: Tensor | None = None

    def run(self) -> list[float]:
        """Mean loss of each epoch."""
        settings, losses = self.settings, []
        batches = self._batches()
        self._start(batches[0])
        # Codes that the loss moves: a parameter of the training alone; the quantizer's buffers follow it.
        self.code_LKD = nn.Parameter(self.quantizer.code_LKD.clone(), requires_grad=settings.codebook == "gradient")
        parameters = [p for p in [*self.network.parameters(), self.code_LKD] if p.requires_grad]
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.AdamW(parameters, lr=settings.lr)
            if settings.optimizer == "adamw"
            else torch.optim.Adagrad(parameters, lr=settings.lr, initial_accumulator_value=0.1)
        )
        for epoch in range(settings.epochs):
            if settings.diversity:
                self.cluster_LK = code_clusters(self.code_LKD, settings.clusters, self.seed)
            each = [self._step(rows) for rows in (batches if epoch == 0 else self._batches())]
            losses.append(sum(each) / len(each))
        return losses

    def _batches(self) -> tuple[Tensor, ...]:
        return torch.split(torch.randperm(len(self.x_MX), generator=self.generator), self.settings.batch)

    @torch.no_grad()
    def _start(self, first: Tensor) -> None:
        latent_MD = self.network.encoder(self.x_MX if self.settings.start == "catalogue" else self.x_MX[first])
        start_LKD = torch.from_numpy(residual_kmeans(latent_MD.numpy(), self.quantizer.levels, self.quantizer.codes, self.seed))
        self.quantizer.start(start_LKD, torch.ones(self.quantizer.levels, self.quantizer.codes))

    def _step(self, rows: Tensor) -> float:
        z_MD = self.network.encoder(self.x_MX[rows])
        code_ML = self.quantizer.assign(z_MD.detach())
        loss = self._loss(rows, z_MD, code_ML)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self._move(z_MD.detach(), code_ML)
        return float(loss.detach())

    def _loss(self, rows: Tensor, z_MD: Tensor, code_ML: Tensor) -> Tensor:
        settings = self.settings
        taken_MLD, residual_MLD = self.quantizer.quantized(code_ML), self.quantizer.residuals(z_MD, code_ML)
        through_MD = z_MD + (taken_MLD.sum(1) - z_MD).detach()
        commit = (residual_MLD - taken_MLD).square().sum((1, 2)).mean() / settings.latent
        loss = F.mse_loss(self.network.decoder(through_MD), self.x_MX[rows]) + settings.beta * commit
        if settings.codebook == "gradient":
            own_MLD = self.code_LKD[torch.arange(self.quantizer.levels), code_ML]
            loss = loss + (residual_MLD.detach() - own_MLD).square().sum((1, 2)).mean() / settings.latent
        if self.cluster_LK is not None:
            loss = loss + settings.diversity * diversity_loss(self.code_LKD, code_ML, self.cluster_LK, self.generator)
        if self.aligned_MD is not None:
            loss = loss + settings.align * alignment_loss(through_MD, self.aligned_MD[rows])
        return loss

    @torch.no_grad()
    def _move(self, z_MD: Tensor, code_ML: Tensor) -> None:
        """Codes after a step: averages, or what the optimizer made of them; and dead ones to residuals of this batch."""
        self.quantizer.update(z_MD, code_ML)
        if self.settings.codebook == "gradient":
            self.quantizer.code_LKD.copy_(self.code_LKD)
            self.quantizer.semantic.weight.copy_(self.code_LKD.flatten(0, 1))
        dead_X2 = self.quantizer.dead() if self.settings.dead_code_steps else z_MD.new_zeros(0)
        if not len(dead_X2):
            return
        item_X = torch.randint(0, len(z_MD), (len(dead_X2),), generator=self.generator)
        residual_XLD = self.quantizer.residuals(z_MD[item_X], code_ML[item_X])
        self.quantizer.reset(dead_X2, residual_XLD[torch.arange(len(dead_X2)), dead_X2[:, 0]])
        self.code_LKD.copy_(self.quantizer.code_LKD)
