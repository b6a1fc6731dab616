"""Lists that need no training, to see what a generator has to beat: the commonest items, and what users have beside their last item.

Shape suffixes: ``N`` item rows (row 0 unknown), ``U`` users, ``P`` events, ``Q`` users judged, ``B`` of them at once, ``K`` ranks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from dig_models.generator.examples import Examples
from dig_models.tokenizers.sequences import Sequences

Ints = NDArray[np.int64]
BATCH = 512


def popular(learned: Sequences, items: int, examples: Examples, count: int) -> Ints:
    """The commonest items, the same for everybody, ``(Q, K)``; of equally common ones the lower row."""
    order = _by_number(learned, items)
    return np.tile(order[:count], (len(examples), 1))


def co_occurrence(learned: Sequences, items: int, examples: Examples, count: int) -> Ints:
    """Items by the number of users who have them and the user's last item, ``(Q, K)``; then the commonest, as ``popular``; that item last.

    Args:
        learned: users' events.
        items: rows of the item table, N.
        examples: who is judged; the last event before the target counts.
        count: ranks, at most N - 1.
    """
    order = _by_number(learned, items)
    place_N = np.zeros(items)
    place_N[order] = np.arange(len(order))
    user_P = np.repeat(np.arange(len(learned)), np.diff(learned.start))
    has_UN = csr_matrix((np.ones(len(user_P)), (user_P, learned.item_P)), shape=(len(learned), items))
    has_UN.data[:] = 1.0  # an item counts once for a user
    last_Q = examples.history(1)[:, 0].cpu().numpy()
    found = [np.zeros((0, min(count, items - 1)), dtype=np.int64)]
    for last_B in np.split(last_Q, range(BATCH, len(last_Q), BATCH)):
        score_BN = (has_UN.T[last_B] @ has_UN).toarray() - place_N / items
        score_BN[np.arange(len(last_B)), last_B] = -items
        score_BN[:, 0] = -np.inf
        found.append(np.argsort(-score_BN, axis=1, kind="stable")[:, :count].astype(np.int64))
    return np.concatenate(found)


def _by_number(learned: Sequences, items: int) -> Ints:
    """Item rows, commonest first."""
    number_N = np.bincount(learned.item_P, minlength=items)
    return np.argsort(-number_N[1:], kind="stable") + 1
