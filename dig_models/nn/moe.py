"""A dense mixture of experts with a softmax gate. Shape suffixes: ``R`` rows, ``X`` input, ``Y`` output, ``N`` experts, ``H`` hidden."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MixtureOfExperts(nn.Module):
    """``sum_n softmax(G x)_n silu(V_n silu(W_n x + a_n) + b_n)``; every expert sees every row."""

    def __init__(self, width: int, experts: int, hidden: int, out: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.experts, self.hidden, self.dropout = experts, hidden, dropout
        self.gate = nn.Linear(width, experts)
        self.first = nn.Linear(width, experts * hidden)
        self.second = nn.Parameter(torch.randn(experts, hidden, out) * (2.0 / hidden) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(experts, out))
        nn.init.kaiming_normal_(self.first.weight, nonlinearity="relu")
        nn.init.zeros_(self.first.bias)

    def forward(self, x_RX: Tensor) -> Tensor:
        """``(R, X) -> (R, Y)``."""
        gate_RN = self.gate(x_RX).softmax(1)
        hidden_RX = F.dropout(F.silu(self.first(x_RX)), self.dropout, self.training)
        each_RH = torch.split(hidden_RX, self.hidden, dim=1)
        outs = [F.silu(torch.addmm(self.bias[n], h_RH, self.second[n])) for n, h_RH in enumerate(each_RH)]
        out_RY: Tensor = outs[0] * gate_RN[:, :1]
        for n in range(1, self.experts):
            out_RY = out_RY + outs[n] * gate_RN[:, n : n + 1]
        return out_RY
