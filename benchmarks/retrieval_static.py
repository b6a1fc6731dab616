"""The mask step of constrained decoding alone: this project's CSR ranges, STATIC, and a dictionary.

The step: kept prefixes and a score for each of the K codes below each are given; wanted are the scores of the codes that
exist, and the prefixes that they lead to.

STATIC is written from the paper (Su et al., "Vectorizing the Trie", arXiv 2602.22647): the first two levels are dense, a
bit-packed mask and a table of states indexed by the tokens so far; below them a CSR transition matrix of (token, next state),
of which every row is read in a speculative slice as long as the level's largest branching, the surplus masked away, and
projected onto the whole vocabulary, so that shapes are static as an accelerator wants them.

Shape suffixes: ``X`` kept prefixes, ``K`` codes, ``R`` children, ``Y`` largest branching of a level.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dig_models.retrieve.trie import Int64, Trie

DENSE_LEVELS = 2


class CsrMask:
    """Children as contiguous ranges: only what exists is touched."""

    def __init__(self, trie: Trie, level: int) -> None:
        self.trie, self.level = trie, level

    def step(self, node_X: Int64, score_XK: Tensor) -> tuple[Tensor, Int64, Int64]:
        """Scores of the children ``(R,)``, their nodes, and whose children they are."""
        child_R, owner_R = self.trie.children(self.level - 1, node_X)
        at_R = owner_R * score_XK.shape[1] + self.trie.token[self.level][child_R]
        return score_XK.view(-1).index_select(0, torch.from_numpy(at_R)), child_R, owner_R


class StaticMask:
    """STATIC for the step from ``level - 1`` to ``level`` (counted from 0)."""

    def __init__(self, trie: Trie, level: int, codes: int) -> None:
        self.codes, self.dense = codes, level < DENSE_LEVELS
        child = torch.from_numpy(np.array(trie.child[level - 1]))
        token = torch.from_numpy(np.asarray(trie.token[level]).astype(np.int64))
        if self.dense:
            parents = trie.nodes(level - 1)
            self.state_XK = torch.zeros(parents, codes, dtype=torch.int64)
            owner = torch.repeat_interleave(torch.arange(parents), child.diff())
            self.state_XK[owner, token] = torch.arange(len(token))
            allowed = np.zeros((parents, codes), dtype=np.uint8)
            allowed[owner.numpy(), token.numpy()] = 1
            self.bits = torch.from_numpy(np.packbits(allowed, axis=1, bitorder="little"))
            return
        self.largest = int(child.diff().max())
        self.first, self.length = child[:-1], child.diff()
        # The surplus of the last row must be readable.
        self.token = torch.cat([token, token.new_zeros(self.largest)])

    def step(self, node_X: Int64, score_XK: Tensor) -> tuple[Tensor, Tensor]:
        """Scores over the whole vocabulary, ``-inf`` where nothing exists, and the next states, both ``(X, K)``."""
        node = torch.from_numpy(node_X)
        if self.dense:
            packed = self.bits.index_select(0, node)
            allowed = (packed.unsqueeze(2) >> torch.arange(8, dtype=torch.uint8)).bitwise_and_(1).flatten(1)[:, : self.codes].bool()
            return score_XK.masked_fill(~allowed, -torch.inf), self.state_XK.index_select(0, node)
        lane_Y = torch.arange(self.largest)
        at_XY = self.first.index_select(0, node).unsqueeze(1) + lane_Y
        valid_XY = lane_Y < self.length.index_select(0, node).unsqueeze(1)
        token_XY = self.token[at_XY]
        score_XY = score_XK.gather(1, token_XY).masked_fill_(~valid_XY, -torch.inf)
        # Surplus lanes are sent to a column beyond the vocabulary.
        target_XY = torch.where(valid_XY, token_XY, self.codes)
        out = torch.full((len(node), self.codes + 1), -torch.inf).scatter_(1, target_XY, score_XY)
        state = torch.zeros(len(node), self.codes + 1, dtype=torch.int64).scatter_(1, target_XY, at_XY)
        return out[:, : self.codes], state[:, : self.codes]


class DictMask:
    """A dictionary a prefix, looked through in Python."""

    def __init__(self, trie: Trie, level: int) -> None:
        token, child = trie.token[level].tolist(), trie.child[level - 1].tolist()
        self.below = [{token[c]: c for c in range(a, b)} for a, b in pairwise(child)]

    def step(self, node_X: Int64, score_XK: Tensor) -> tuple[Tensor, Int64, Int64]:
        """As ``CsrMask``."""
        tokens, nodes, owners = [], [], []
        for x, node in enumerate(node_X.tolist()):
            for token, child in self.below[node].items():
                tokens.append(token)
                nodes.append(child)
                owners.append(x)
        owner_R = np.array(owners, dtype=np.int64)
        at_R = torch.from_numpy(owner_R * score_XK.shape[1] + np.array(tokens, dtype=np.int64))
        return score_XK.view(-1).index_select(0, at_R), np.array(nodes, dtype=np.int64), owner_R


def agree(csr: tuple[Tensor, Int64, Int64], other: tuple[Any, ...], token_R: NDArray[np.int32]) -> bool:
    """Whether another mask step lets through the same children with the same scores."""
    score_R, child_R, owner_R = csr
    if len(other) == 3:
        return bool(torch.equal(score_R, other[0]) and np.array_equal(child_R, other[1]) and np.array_equal(owner_R, other[2]))
    masked_XK, state_XK = other
    row, column = torch.from_numpy(owner_R), torch.from_numpy(token_R.astype(np.int64))
    same = torch.equal(masked_XK[row, column], score_R) and torch.equal(state_XK[row, column], torch.from_numpy(child_R))
    return bool(same and int(torch.isfinite(masked_XK).sum()) == len(child_R))
