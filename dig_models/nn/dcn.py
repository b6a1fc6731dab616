"""DCNv2 cross layers with low-rank weights (Wang et al., 2021, arXiv 2008.13535)."""

from __future__ import annotations

from torch import Tensor, nn


class CrossNetwork(nn.Module):
    """``x_{i+1} = x_0 * (U_i V_i x_i + b_i) + x_i``, with ``V_i`` to ``rank`` and ``U_i`` back; ``*`` is elementwise."""

    def __init__(self, width: int, layers: int, rank: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Linear(width, rank, bias=False) for _ in range(layers))
        self.up = nn.ModuleList(nn.Linear(rank, width) for _ in range(layers))

    def forward(self, x0_RX: Tensor) -> Tensor:
        """``(R, X) -> (R, X)``."""
        x_RX = x0_RX
        for down, up in zip(self.down, self.up, strict=True):
            x_RX = x0_RX * up(down(x_RX)) + x_RX
        return x_RX
