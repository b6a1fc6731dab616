"""Gumbel exploration of codes in training, and how its noise decays (DIGER, arXiv 2601.19711), as an option of DIG's quantizer.

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


class GumbelExploration(nn.Module):
    """Noisy codes in training; the state of the noise's decay.

    Attributes:
        sigma: scale of the noise in units of ``SIGMA_GAIN``, so that an optimizer that moves by its rate can follow the loss (SDUD).
        frequency_LK: moving average of how the catalogue is spread over the codes (FrqUD).
    """

    frequency_LK: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.sigma: nn.Parameter | None = None
        if config.assignment == "gumbel_sdud":
            self.sigma = nn.Parameter(torch.tensor(config.sdud_sigma / SIGMA_GAIN))
        else:
            self.register_buffer("frequency_LK", torch.full((config.levels, config.codes), 1.0 / config.codes))

    def explore(self, e_MD: Tensor, quantizer: ResidualQuantizer, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Codes taken ``(M, L)``, and prefix embeddings ``(M, L, D)`` with the gradient of the soft assignment.

        Args:
            e_MD: item embeddings.
            quantizer: code vectors and semantic table.
            generator: on the CPU; the only source of noise.
        """
        config, taken, tokens = self.config, [], []
        table_LKD = quantizer.semantic.weight.view(config.levels, config.codes, -1)
        residual_MD = e_MD if config.gumbel_gradient else e_MD.detach()
        for level in range(config.levels):
            code_KD = quantizer.code_LKD[level]
            logit_MK = -(residual_MD.square().sum(1, keepdim=True) - 2.0 * residual_MD @ code_KD.t() + code_KD.square().sum(1))
            noisy_MK = logit_MK + self._noise(level, logit_MK.detach(), generator)
            code_M = noisy_MK.detach().argmax(1)
            soft_MK = (noisy_MK / config.gumbel_tau).softmax(1)
            weight_MK = F.one_hot(code_M, config.codes).to(soft_MK.dtype) - soft_MK.detach() + soft_MK
            tokens.append(weight_MK @ table_LKD[level])
            taken.append(code_M)
            residual_MD = residual_MD - code_KD.index_select(0, code_M)
        return torch.stack(taken, dim=1), torch.stack(tokens, dim=1).cumsum(1)

    def _noise(self, level: int, logit_MK: Tensor, generator: torch.Generator) -> Tensor:
        uniform_MK = torch.rand(logit_MK.shape, generator=generator).clamp_min(_SMALLEST).to(logit_MK.device)
        gumbel_MK = -(-uniform_MK.log()).clamp_min(_SMALLEST).log()
        if self.sigma is not None:
            return self.scale * gumbel_MK
        crowded_K = self.frequency_LK[level] > self.config.frqud_ratio / self.config.codes
        return gumbel_MK * crowded_K[logit_MK.argmax(1)].unsqueeze(1)

    @property
    def scale(self) -> float:
        """Scale of the noise: ``sigma`` (SDUD), or 1 (FrqUD)."""
        return 1.0 if self.sigma is None else max(float(self.sigma.detach()) * SIGMA_GAIN, 0.0)

    def loss(self, recall: Tensor) -> Tensor:
        """``L_sigma``; 0 where nothing is learned.

        Args:
            recall: the recall loss of the step, taken as a constant.
        """
        if self.sigma is None:
            return recall.detach().new_zeros(())
        spread = self.sigma * SIGMA_GAIN + max(self.config.sdud_lambda, 1e-3)
        return recall.detach() / (2.0 * spread.square()) + spread.log()

    @torch.no_grad()
    def observe(self, number_LK: Tensor) -> None:
        """Once after each optimizer step: ``sigma`` stays at or above 0, frequencies follow the catalogue's codes ``(L, K)``."""
        if self.sigma is not None:
            self.sigma.clamp_(min=0.0)
        else:
            share_LK = number_LK / number_LK.sum(1, keepdim=True).clamp_min(1.0)
            self.frequency_LK.lerp_(share_LK.to(self.frequency_LK.dtype), 1.0 - FREQUENCY_DECAY)

    @torch.no_grad()
    def rename(self, label_LK: Tensor) -> None:
        """Code ``k`` of level ``l`` is called ``label_LK[l, k]`` from now on."""
        if self.sigma is None:
            self.frequency_LK.copy_(self.frequency_LK.gather(1, label_LK.argsort(dim=1).to(self.frequency_LK.device)))
