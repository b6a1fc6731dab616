"""Gumbel exploration of codes in training, and how its noise decays (arXiv 2601.19711): DIGER's own, and an option of DIG.

Level by level, with the residual ``r`` that the codes taken so far leave, the logits are ``l_k = -|r - c_k|^2``, the code taken is
``argmax_k (l_k + n_k)`` and the soft assignment ``y = softmax((l + n) / tau)``, where ``n`` is scaled Gumbel(0, 1) noise. Forward, the
prefix embedding is that of the codes taken; backward, each level is ``sum_k y_k e_sid_k``, so that the recall loss reaches the encoder
through ``y`` ("corrected end-to-end gradient"). Code vectors move by their averages alone, as ever.

- SDUD: ``n = sigma g``; ``sigma`` is learned by ``L_sigma = L / (2 (sigma + lambda)^2) + log(sigma + lambda)``, whose minimum is at
  ``max(0, sqrt(L) - lambda)``. ``L`` is the recall loss, as a constant: it must not be scaled by its own uncertainty here.
- FrqUD: ``n = g`` where the code nearest to ``r`` is crowded, ``f_k > ratio / K``, else no noise. ``f <- .99 f + .01 f^``, where ``f^`` are
  the shares of the whole catalogue's nearest codes in a step; every rank has the same.

Shape suffixes: ``M`` items, ``L`` levels, ``K`` codes, ``D`` width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dig_models.config import ModelConfig
from dig_models.quantize.residual import ResidualQuantizer

SIGMA_GAIN = 10.0
SIGMA_WEIGHT = 0.01
"""Of ``L_sigma`` in the total: only ``sigma`` sees it, and Adam steps alike for a small gradient, which spares the clipped norm."""
FREQUENCY_DECAY = 0.99
_SMALLEST = 1e-20


class Exploration(nn.Module):
    """Noisy codes in training; the state of the noise's decay.

    Attributes:
        sigma: scale of the noise in units of ``SIGMA_GAIN``, so that an optimizer that moves by its rate can follow the loss (SDUD).
        frequency_LK: moving average of how the catalogue is spread over the codes (FrqUD).
    """

    frequency_LK: Tensor | None

    def __init__(
        self,
        levels: int,
        codes: int,
        *,
        tau: float,
        noise: Literal["gumbel", "gaussian", "none"] = "gumbel",
        sigma: float | None = None,
        offset: float = 0.0,
        ratio: float | None = None,
    ) -> None:
        """Without ``sigma`` and ``ratio`` the noise stays as it is.

        Args:
            levels: SID length.
            codes: codes of a level.
            tau: temperature of the soft assignment.
            noise: its distribution, of scale 1.
            sigma: SDUD's scale at the start; both decays together scale the noise of crowded codes.
            offset: SDUD's lambda.
            ratio: FrqUD's.
        """
        super().__init__()
        self.levels, self.codes, self.tau, self.noise, self.offset, self.ratio = levels, codes, tau, noise, offset, ratio
        self.sigma = None if sigma is None else nn.Parameter(torch.tensor(sigma / SIGMA_GAIN))
        self.register_buffer("frequency_LK", None if ratio is None else torch.full((levels, codes), 1.0 / codes))

    def assign(self, e_MD: Tensor, code_LKD: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Codes taken ``(M, L)``, and their weights ``(M, L, K)``: one-hot forward, the soft assignment backward.

        Args:
            e_MD: item embeddings.
            code_LKD: code vectors.
            generator: on the CPU; the only source of noise.
        """
        residual_MD, taken, weights = e_MD, [], []
        for level, code_KD in enumerate(code_LKD):
            logit_MK = -(residual_MD.square().sum(1, keepdim=True) - 2.0 * residual_MD @ code_KD.t() + code_KD.square().sum(1))
            noisy_MK = logit_MK + self._noise(level, logit_MK.detach(), generator)
            code_M = noisy_MK.detach().argmax(1)
            soft_MK = (noisy_MK / self.tau).softmax(1)
            weights.append(F.one_hot(code_M, self.codes).to(soft_MK.dtype) - soft_MK.detach() + soft_MK)
            taken.append(code_M)
            residual_MD = residual_MD - code_KD.detach().index_select(0, code_M)
        return torch.stack(taken, dim=1), torch.stack(weights, dim=1)

    def _noise(self, level: int, logit_MK: Tensor, generator: torch.Generator) -> Tensor:
        if self.noise == "none":
            return torch.zeros_like(logit_MK)
        if self.noise == "gaussian":
            noise_MK = torch.randn(logit_MK.shape, generator=generator).to(logit_MK.device)
        else:
            uniform_MK = torch.rand(logit_MK.shape, generator=generator).clamp_min(_SMALLEST).to(logit_MK.device)
            noise_MK = -(-uniform_MK.log()).clamp_min(_SMALLEST).log()
        if self.sigma is not None:
            noise_MK = self.scale * noise_MK
        if self.frequency_LK is None or self.ratio is None:
            return noise_MK
        crowded_K = self.frequency_LK[level] > self.ratio / self.codes
        return noise_MK * crowded_K[logit_MK.argmax(1)].unsqueeze(1)

    @property
    def scale(self) -> float:
        """Scale of the noise: ``sigma`` (SDUD), or 1 (FrqUD)."""
        return 1.0 if self.sigma is None else max(float(self.sigma.detach()) * SIGMA_GAIN, 0.0)

    def loss(self, recall: Tensor) -> Tensor:
        """``L_sigma``; 0 where nothing is learned.

        Args:
            recall: the loss of the step that the noise decays with, taken as a constant.
        """
        if self.sigma is None:
            return recall.detach().new_zeros(())
        spread = self.sigma * SIGMA_GAIN + max(self.offset, 1e-3)
        return recall.detach() / (2.0 * spread.square()) + spread.log()

    @torch.no_grad()
    def observe(self, number_LK: Tensor) -> None:
        """Once after each optimizer step: ``sigma`` stays at or above 0, frequencies follow the items' codes ``(L, K)``."""
        if self.sigma is not None:
            self.sigma.clamp_(min=0.0)
        if self.frequency_LK is not None:
            share_LK = number_LK / number_LK.sum(1, keepdim=True).clamp_min(1.0)
            self.frequency_LK.lerp_(share_LK.to(self.frequency_LK.dtype), 1.0 - FREQUENCY_DECAY)

    @torch.no_grad()
    def rename(self, label_LK: Tensor) -> None:
        """Code ``k`` of level ``l`` is called ``label_LK[l, k]`` from now on."""
        if self.frequency_LK is not None:
            self.frequency_LK.copy_(self.frequency_LK.gather(1, label_LK.argsort(dim=1).to(self.frequency_LK.device)))


class GumbelExploration(Exploration):
    """The exploration of DIG's quantizer: prefix embeddings from its semantic table."""

    def __init__(self, config: ModelConfig) -> None:
        sdud = config.assignment == "gumbel_sdud"
        super().__init__(
            config.levels,
            config.codes,
            tau=config.gumbel_tau,
            sigma=config.sdud_sigma if sdud else None,
            offset=config.sdud_lambda,
            ratio=None if sdud else config.frqud_ratio,
        )
        self.gradient = config.gumbel_gradient

    def explore(self, e_MD: Tensor, quantizer: ResidualQuantizer, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Codes taken ``(M, L)``, and prefix embeddings ``(M, L, D)`` with the gradient of the soft assignment.

        Args:
            e_MD: item embeddings.
            quantizer: code vectors and semantic table.
            generator: on the CPU; the only source of noise.
        """
        code_ML, weight_MLK = self.assign(e_MD if self.gradient else e_MD.detach(), quantizer.code_LKD, generator)
        table_LKD = quantizer.semantic.weight.view(self.levels, self.codes, -1)
        tokens = [weight_MLK[:, level] @ table_KD for level, table_KD in enumerate(table_LKD)]
        return code_ML, torch.stack(tokens, dim=1).cumsum(1)
