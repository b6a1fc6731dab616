"""The Mixer: the one network that scores items (ranking) and prefixes of semantic IDs (retrieval)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dig_models.config import ModelConfig
from dig_models.nn.dcn import CrossNetwork
from dig_models.nn.moe import MixtureOfExperts


class Mixer(nn.Module):
    """Normalised inputs to a logit: DCNv2 crosses, then experts, beside a linear (wide) term. Domain biases are the caller's."""

    def __init__(self, config: ModelConfig, width: int) -> None:
        super().__init__()
        self.cross = CrossNetwork(width, config.cross_layers, config.cross_rank)
        self.experts = MixtureOfExperts(width, config.experts, config.expert_hidden, config.dim, config.dropout)
        self.head = nn.Linear(config.dim, 1, bias=False)
        self.wide = nn.Linear(width, 1, bias=False)
        nn.init.normal_(self.head.weight, std=0.1 * config.dim**-0.5)
        nn.init.zeros_(self.wide.weight)

    def forward(self, user_RU: Tensor, item_RD: Tensor, cross_RC: Tensor) -> Tensor:
        """User side with attention ``(R, U)``, item side ``(R, D)``, u2i or u2t ``(R, C)`` to logits ``(R,)``."""
        x_RX = torch.cat([user_RU, item_RD, cross_RC], dim=1)
        logit_RX: Tensor = self.head(self.experts(self.cross(x_RX))) + self.wide(x_RX)
        return logit_RX.squeeze(1)
