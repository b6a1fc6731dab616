"""Beam search over the SIDs that exist, for many histories at once.

A prefix's score is the sum of the log-probabilities of its codes. Only prefixes of the catalogue's trie are ever looked at. Beams are kept
in the order of the trie, so that equal scores are told apart by place in it: the lower code first, then the lower item row.

Shape suffixes: ``B`` histories, ``H`` items of a history, ``W`` beams, ``C`` children, ``P`` nodes of a level, ``K`` codes of a level,
``Q`` histories of all batches, ``E`` items of an answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dig_models.generator.t5 import SidT5
from dig_models.retrieve.trie import Trie

NONE = -1
"""Stands in for items where an answer is shorter than asked for."""


@dataclass(frozen=True, kw_only=True)
class TrieTensors:
    """A trie on a device; see ``Trie`` for the arrays. ``child[0]`` is the root's here, and ``child[l]`` leads to level ``l``."""

    trie: Trie
    token: tuple[Tensor, ...]
    child: tuple[Tensor, ...]

    @classmethod
    def of(cls, trie: Trie, device: torch.device) -> TrieTensors:
        """Copy a trie to a device."""
        child = [np.array([0, trie.nodes(0)]), *trie.child]
        return cls(
            trie=trie,
            token=tuple(torch.from_numpy(np.asarray(token, dtype=np.int64)).to(device) for token in trie.token),
            child=tuple(torch.from_numpy(np.asarray(bounds, dtype=np.int64)).to(device) for bounds in child),
        )


@torch.no_grad()
def beam_search(model: SidT5, trie: TrieTensors, history_BH: Tensor, beam: int) -> tuple[Tensor, Tensor]:
    """The best leaves of the trie for each history.

    Args:
        model: in evaluation mode.
        trie: on the model's device.
        history_BH: item rows, oldest first, 0 where there is none.
        beam: prefixes kept per level, W at most.

    Returns:
        ``(leaf_BW, score_BW)``, best first; a score of minus infinity marks a place without a leaf.

    Raises:
        ValueError: the trie has other levels, or a code that its level does not have.
    """
    _require_levels(model, trie.trie)
    state_BTD, there_BT = model.encode(history_BH)
    requests, cache = len(history_BH), model.new_cache()
    node_BW = torch.zeros(requests, 1, dtype=torch.int64, device=history_BH.device)
    score_BW = torch.zeros(requests, 1, device=history_BH.device)
    token_R = torch.zeros(requests, dtype=torch.int64, device=history_BH.device)
    for level in range(trie.trie.levels):
        log_RK, width = model.step(level, token_R, state_BTD, there_BT, cache), node_BW.shape[1]
        parent_BW, node_BW, score_BW = _extend(trie, level, node_BW, score_BW, log_RK.view(requests, width, -1), beam)
        token_R = model.tokens.block(level).start + trie.token[level][node_BW].flatten()
        row_R = (torch.arange(requests, device=parent_BW.device).unsqueeze(1) * width + parent_BW).flatten()
        cache.self_attention_cache.batch_select_indices(row_R)
        if node_BW.shape[1] != width:  # else the history's keys lie as they must: all beams of a history have the same
            cache.cross_attention_cache.batch_select_indices(row_R)
            state_BTD, there_BT = state_BTD[row_R], there_BT[row_R]
    order_BW = torch.argsort(score_BW, dim=1, descending=True, stable=True)
    return node_BW.gather(1, order_BW), score_BW.gather(1, order_BW)


def _extend(trie: TrieTensors, level: int, node_BW: Tensor, score_BW: Tensor, log_BWK: Tensor, beam: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best children of beams, in order of the trie: beam of the parent, node of this level and score, each ``(B, W')``.

    Places without a child come with a score of minus infinity; their node is 0.
    """
    first_BW, last_BW = trie.child[level][node_BW], trie.child[level][node_BW + 1]
    widest = int((last_BW - first_BW).max())
    child_BWC = first_BW.unsqueeze(2) + torch.arange(widest, device=node_BW.device)
    there_BWC = (child_BWC < last_BW.unsqueeze(2)) & (score_BW > -torch.inf).unsqueeze(2)
    child_BWC = torch.where(there_BWC, child_BWC, 0)
    total_BWC = score_BW.unsqueeze(2) + log_BWK.gather(2, trie.token[level][child_BWC])
    total_BX = torch.where(there_BWC, total_BWC, -torch.inf).flatten(1)
    at_BW = _best(total_BX, min(beam, total_BX.shape[1]))
    return at_BW // widest, child_BWC.flatten(1).gather(1, at_BW), total_BX.gather(1, at_BW)


def _best(score_BX: Tensor, count: int) -> Tensor:
    """Places of the ``count`` highest of each row, ascending; of equal ones the first."""
    least_B1 = score_BX.topk(count, dim=1).values[:, -1:]
    above_BX, equal_BX = score_BX > least_B1, score_BX == least_B1
    room_B1 = count - above_BX.sum(1, keepdim=True)
    chosen_BX = above_BX | (equal_BX & (equal_BX.cumsum(1) <= room_B1))
    return chosen_BX.nonzero()[:, 1].view(-1, count)


def items_of(trie: Trie, leaf_BW: NDArray[np.int64], there_BW: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    """The first ``count`` items under leaves, ``(B, E)``: leaf after leaf, those of a leaf by row; ``NONE`` where there are no more."""
    out_BE = np.full((len(leaf_BW), count), NONE, dtype=np.int64)
    row_X, beam_X = np.nonzero(there_BW)
    item_P, of_P = trie.postings(leaf_BW[row_X, beam_X])
    row_P = row_X[of_P]
    place_P = np.arange(len(row_P)) - np.searchsorted(row_P, row_P)
    kept_P = place_P < count
    out_BE[row_P[kept_P], place_P[kept_P]] = item_P[kept_P]
    return out_BE


def recommend(model: SidT5, trie: TrieTensors, history_QH: Tensor, *, beam: int, batch: int, count: int) -> NDArray[np.int64]:
    """The best items for each history, ``(Q, E)`` item rows, ``NONE`` at the end of short answers.

    Args:
        model: its mode is left as it was.
        trie: on the model's device.
        history_QH: item rows, oldest first, 0 where there is none.
        beam: prefixes kept per level.
        batch: histories searched for together.
        count: items asked for, E.

    Raises:
        ValueError: see ``beam_search``.
    """
    before, found = model.training, [np.zeros((0, count), dtype=np.int64)]
    model.eval()
    try:
        end_Q = _ends(history_QH)
        order_Q = torch.argsort(end_Q, stable=True)
        for row_B in torch.split(order_Q, batch):  # of about one length, so that little of a batch is padding
            history_BH = history_QH[row_B, : max(int(end_Q[row_B].max()), 1)].to(model.device)
            leaf_BW, score_BW = beam_search(model, trie, history_BH, beam)
            found.append(items_of(trie.trie, leaf_BW.cpu().numpy(), (score_BW > -torch.inf).cpu().numpy(), count))
    finally:
        model.train(before)
    out_QE = np.concatenate(found)
    out_QE[order_Q.cpu().numpy()] = out_QE.copy()
    return out_QE


def _ends(history_BH: Tensor) -> Tensor:
    """Places up to the last item of each history."""
    place_H = torch.arange(1, history_BH.shape[1] + 1, device=history_BH.device)
    return ((history_BH > 0) * place_H).amax(1)


def _require_levels(model: SidT5, trie: Trie) -> None:
    sizes = model.tokens.sizes
    if trie.levels != len(sizes):
        raise ValueError(f"a trie of {trie.levels} levels found, the generator writes SIDs of {len(sizes)}")
    for level, size in enumerate(sizes):
        if int(trie.token[level].max()) >= size:
            raise ValueError(
                f"trie: code {int(trie.token[level].max())} found at level {level + 1}, where the generator knows the codes 0..{size - 1}"
            )
