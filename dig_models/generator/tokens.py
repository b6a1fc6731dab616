"""Semantic IDs as tokens: one block of the vocabulary for each level, after padding and the end of a history.

Shape suffixes: ``N`` rows of the item table (row 0 unknown), ``L`` levels, ``B`` histories, ``H`` items of a history, ``T`` tokens.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

PAD, END, SPECIAL = 0, 1, 2
"""Tokens that stand for no code, and their number."""


class SidTokens(nn.Module):
    """Item rows to tokens.

    Attributes:
        sizes: codes of each level.
        token_NL: tokens of every item row; ``PAD`` in row 0.
    """

    token_NL: Tensor

    def __init__(self, code_NL: NDArray[np.integer], sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.sizes = sizes
        self.register_buffer("token_NL", torch.from_numpy(tokens_of(code_NL, sizes)), persistent=False)

    @property
    def levels(self) -> int:
        """SID length L."""
        return len(self.sizes)

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return SPECIAL + sum(self.sizes)

    def block(self, level: int) -> slice:
        """Tokens of a level, in order of its codes."""
        first = SPECIAL + sum(self.sizes[:level])
        return slice(first, first + self.sizes[level])

    def history(self, item_BH: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of histories and which of them are there, both ``(B, T)`` with T = H L + 1.

        Args:
            item_BH: item rows, oldest first; 0 (padding, unknown items) anywhere, it is left out and the rest moves together.
        """
        known_BH = item_BH > 0
        order_BH = torch.argsort((~known_BH).to(torch.int8), dim=1, stable=True)
        count_B = known_BH.sum(1) * self.levels
        token_BT = self.token_NL[item_BH.gather(1, order_BH)].flatten(1)
        token_BT = torch.cat([token_BT, token_BT.new_zeros(len(token_BT), 1)], dim=1)
        token_BT.scatter_(1, count_B.unsqueeze(1), END)
        return token_BT, torch.arange(token_BT.shape[1], device=item_BH.device) <= count_B.unsqueeze(1)


def tokens_of(code_NL: NDArray[np.integer], sizes: tuple[int, ...]) -> NDArray[np.int64]:
    """Codes as tokens ``(N, L)``; row 0 is the unknown item.

    Raises:
        ValueError: not as many levels as sizes, or a code that its level does not have.
    """
    if code_NL.ndim != 2 or code_NL.shape[1] != len(sizes) or len(code_NL) < 2:
        raise ValueError(f"SIDs of shape {code_NL.shape} found; expected (N >= 2, {len(sizes)}), row 0 the unknown item")
    code_ML = code_NL[1:].astype(np.int64)
    wrong_X2 = np.argwhere((code_ML < 0) | (code_ML >= np.array(sizes)))
    if len(wrong_X2):
        row, level = wrong_X2[0]
        raise ValueError(
            f"item row {row + 1}: code {code_ML[row, level]} found at level {level + 1}, which has the codes 0..{sizes[level] - 1}; "
            "make the generator with the sizes of the tokenizer's levels"
        )
    first_L = SPECIAL + np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return np.concatenate([np.full((1, len(sizes)), PAD, dtype=np.int64), code_ML + first_L])
