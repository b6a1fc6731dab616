"""The small perceptrons of DIG: with a linear path past the hidden layer (user tower, item encoder), and MLP_u2t.

Shape suffixes: ``R`` rows, ``B`` requests, ``X`` inputs, ``U`` user side, ``L`` levels, ``D`` width, ``C`` crosses.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class SkipMlp(nn.Module):
    """``W_2 silu(W_1 x) + S x``, ``(R, X) -> (R, D)``."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.first, self.second = nn.Linear(width, hidden + out), nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        """``(R, X) -> (R, D)``."""
        both = self.first(x)
        out: Tensor = self.second(F.silu(both[:, : self.hidden])) + both[:, self.hidden :]
        return out


class U2tHead(nn.Module):
    """MLP_u2t, ``(R, L, D) -> (R, L, C)``; the user's half of the first layer is computed once per request."""

    def __init__(self, dim: int, crosses: int) -> None:
        super().__init__()
        self.user, self.prefix = nn.Linear(dim, 2 * dim), nn.Linear(dim, 2 * dim, bias=False)
        self.out = nn.Linear(2 * dim, crosses)

    def forward(self, user_BU: Tensor, request_R: Tensor, prefix_RLD: Tensor) -> Tensor:
        """Crosses of the prefixes of each row, whose request is ``request_R``."""
        user_R1X = self.user(user_BU).index_select(0, request_R).unsqueeze(1)
        out: Tensor = self.out(F.silu(user_R1X + self.prefix(prefix_RLD)))
        return out
