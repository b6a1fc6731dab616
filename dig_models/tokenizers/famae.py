"""Field-aware masked auto-encoding (FAMAE; ReSID, arXiv 2602.02338): field embeddings that predict a user's next item.

A sequence is its items in order of time, the last one being the target. An item goes in as the sum of its fields' embeddings and of its
position's; the history is whole, and of the target's ``J`` fields a random subset of ``K ~ U{1..J}`` is replaced by each field's own mask
vector. A bidirectional Transformer gives the target's state ``h``, a linear map of it for each field ``h^k``, and the loss is the sum
over masked fields of ``-log softmax_v(sqrt(D) cos(h^k, e^k_v))`` over the field's vocabulary, or over sampled negatives where that is
large; mean over sequences.

What is kept are the embeddings, side by side (``fields.py``); the Transformer is thrown away. Two figures tell how well they serve:
recall of the held-out last item with all of its fields masked, and with its id alone masked.

Ours: a target is drawn from all of a user's items, not only the last; a field of several values goes in as their mean and is predicted as
the mean over its values; a field without a value goes in as masked and is not predicted; negatives are shared by a batch.

Shape suffixes: ``S`` targets, ``B`` sequences of a batch, ``T`` positions (0 = padding, on the left), ``F`` fields, ``W`` values of an
item in a field, ``V`` values of a vocabulary, ``D`` width, ``N`` rows of the item table, ``X`` rows that a batch needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from dig_models.features import FeatureSpec
from dig_models.items import ItemTable
from dig_models.tokenizers.fields import FieldEmbeddings, FieldVocabulary
from dig_models.tokenizers.sequences import Sequences
from dig_models.tokenizers.settings import FamaeSettings

__all__ = ["Famae", "FamaeFigures", "FamaeSettings", "fit_famae"]

Ints = NDArray[np.int64]

TOP = 10
_POOL = 16
_SCORED = 256


@dataclass(frozen=True)
class FamaeFigures:
    """How a training went.

    Attributes:
        losses: mean loss of each epoch.
        held_out: last items that recall is measured on; the other figures are NaN if there are none.
        target_recall: share of them among the ``TOP`` items by the sum of all fields' cosines, all fields masked.
        id_recall: share of them among the ``TOP`` items by the id's cosine, the id alone masked.
        chance: what items drawn at random would reach.
    """

    losses: tuple[float, ...]
    held_out: int
    target_recall: float
    id_recall: float
    chance: float


def fit_famae(
    items: ItemTable, spec: FeatureSpec, sequences: Sequences, *, seed: int, settings: FamaeSettings
) -> tuple[FieldEmbeddings, FamaeFigures]:
    """Learn the embeddings of a catalogue's fields.

    Args:
        items: the catalogue.
        spec: its fields.
        sequences: what users did, rows of ``items``.
        seed: of weights, order, masks and negatives; the global generator is left as it was.
        settings: shape and training.

    Raises:
        ValueError: a sequence names a row that the catalogue does not have, no user has two items, ``dim`` is no multiple of ``heads``,
            or a bucket lies outside its declared range.
    """
    if settings.dim % settings.heads:
        raise ValueError(f"famae.dim {settings.dim} must be a multiple of famae.heads {settings.heads}")
    if len(sequences.item_P) and sequences.item_P.max() >= len(items):
        raise ValueError(f"sequences name item row {sequences.item_P.max()}, the catalogue has rows 1..{len(items) - 1}")
    vocabulary = FieldVocabulary.of(items, spec)
    windows = Windows(sequences, settings, np.random.default_rng(seed))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Famae(vocabulary.sizes, [torch.from_numpy(number) for number in vocabulary.numbers(items)], settings)
        losses = _train(network, windows)
        target, own = network.eval().recalls(windows.rows_of(windows.held_S))
    chance = min(TOP / max(len(items) - 1, 1), 1.0)
    tables = [table.detach().numpy() for table in network.tables]
    return FieldEmbeddings.of_tables(vocabulary, tables), FamaeFigures(tuple(losses), len(windows.held_S), target, own, chance)


class Windows:
    """Targets and what came before them.

    Attributes:
        held_S: events that recall is measured on; they are nobody's target in training.
    """

    def __init__(self, sequences: Sequences, settings: FamaeSettings, rng: np.random.Generator) -> None:
        self._settings, self._rng = settings, rng
        self._item_P, count_U = sequences.item_P, np.diff(sequences.start)
        self._start_P = np.repeat(sequences.start[:-1], count_U)
        self._before_P = np.arange(len(self._item_P)) - self._start_P
        long_U = np.flatnonzero(count_U >= 3)
        held_U = rng.permutation(long_U)[: min(settings.held_out, len(count_U) // 5)]
        self.held_S = np.sort(sequences.start[1:][held_U] - 1)
        usable_P = self._before_P > 0
        usable_P[self.held_S] = False
        self._usable_S = np.flatnonzero(usable_P)
        if not len(self._usable_S):
            raise ValueError(f"sequences of {len(sequences)} user(s): none has two items, so there is nothing to predict one from")

    def epoch(self) -> Iterator[Tensor]:
        """Batches ``(B, T)`` of item rows: some targets of each user, sequences of like length together."""
        most, batch = self._settings.targets, self._settings.batch
        order_S = self._usable_S[np.lexsort((self._rng.random(len(self._usable_S)), self._start_P[self._usable_S]))]
        of_S = self._start_P[order_S]
        rank_S = np.arange(len(of_S)) - np.searchsorted(of_S, of_S)
        drawn_S = self._rng.permutation(order_S[rank_S < most])
        for at in range(0, len(drawn_S), _POOL * batch):
            pool = drawn_S[at : at + _POOL * batch]
            pool = pool[np.argsort(self._before_P[pool], kind="stable")]
            for first in self._rng.permutation(np.arange(0, len(pool), batch)):
                yield self.rows_of(pool[first : first + batch])

    def rows_of(self, event_S: Ints) -> Tensor:
        """Item rows of targets and their histories ``(S, T)``, the target last, 0 before the first item."""
        length = int(min(self._before_P[event_S].max(initial=1) + 1, self._settings.length))
        at_ST = event_S[:, None] + np.arange(1 - length, 1)
        return torch.from_numpy(np.where(at_ST >= self._start_P[event_S][:, None], self._item_P[np.maximum(at_ST, 0)], 0))


class Famae(nn.Module):
    """The network.

    Attributes:
        tables: embeddings of each field, ``(V + 1, D)``; row 0 is the mask vector.
    """

    def __init__(self, sizes: tuple[int, ...], number_FNW: list[Tensor], settings: FamaeSettings) -> None:
        """For vocabularies of these sizes, and items whose values have these numbers."""
        super().__init__()
        self.settings, self.sizes, self._number_FNW = settings, sizes, number_FNW
        dim = settings.dim
        self.tables = nn.ParameterList(torch.randn(size + 1, dim) * dim**-0.5 for size in sizes)
        self.position = nn.Embedding(settings.length, dim)
        self.heads = nn.ModuleList(nn.Linear(dim, dim) for _ in sizes)
        nn.init.normal_(self.position.weight, std=dim**-0.5)
        layer = nn.TransformerEncoderLayer(dim, settings.heads, settings.hidden, settings.dropout, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, settings.layers, nn.LayerNorm(dim), enable_nested_tensor=False)
        self.dropout = nn.Dropout(settings.dropout)

    def _fields(self, row_X: Tensor) -> Tensor:
        """Embeddings of the fields of items, ``(X, F, D)``."""
        out = []
        for table, number_NW in zip(self.tables, self._number_FNW, strict=True):
            number_XW = number_NW[row_X]
            if number_XW.shape[1] == 1:
                out.append(F.embedding(number_XW[:, 0], table))
                continue
            mean_XD = F.embedding_bag(number_XW, table, mode="mean", padding_idx=0)
            out.append(mean_XD + (number_XW == 0).all(1, keepdim=True) * table[0])
        return torch.stack(out, dim=1)

    def states(self, row_BT: Tensor, masked_BF: Tensor) -> Tensor:
        """What the target's fields are predicted from, ``h^k``: ``(B, F, D)``."""
        row_X, at_BT = torch.unique(row_BT, return_inverse=True)
        field_XFD = self._fields(row_X)
        mask_FD = torch.stack([table[0] for table in self.tables])
        target_BD = torch.where(masked_BF.unsqueeze(2), mask_FD, field_XFD[at_BT[:, -1]]).sum(1)
        in_BTD = torch.cat([F.embedding(at_BT[:, :-1], field_XFD.sum(1)), target_BD.unsqueeze(1)], dim=1)
        back_T = torch.arange(row_BT.shape[1] - 1, -1, -1)
        h_BD = self.encoder(self.dropout(in_BTD + self.position(back_T)), src_key_padding_mask=row_BT == 0)[:, -1]
        return torch.stack([head(h_BD) for head in self.heads], dim=1)

    def loss(self, row_BT: Tensor) -> Tensor:
        """Of a batch with random masks, as the module's head has it."""
        fields = len(self.sizes)
        count_B1 = torch.randint(1, fields + 1, (len(row_BT), 1))
        masked_BF = torch.rand(len(row_BT), fields).argsort(1).argsort(1) < count_B1
        h_BFD = F.normalize(self.states(row_BT, masked_BF), dim=2) * self.settings.dim**0.5
        total: Tensor = h_BFD.new_zeros(())
        for f, number_NW in enumerate(self._number_FNW):
            here_B = masked_BF[:, f] & (number_NW[row_BT[:, -1]] > 0).any(1)
            if here_B.any():
                total = total + self._field_loss(f, h_BFD[here_B, f], number_NW[row_BT[here_B, -1]]).sum()
        return total / len(row_BT)

    def _field_loss(self, f: int, h_BD: Tensor, number_BW: Tensor) -> Tensor:
        """``-log softmax`` of a field's values, mean over the values of an item, ``(B,)``."""
        table_VD = self.tables[f]
        real_BW = number_BW > 0
        if self.sizes[f] <= self.settings.whole:
            logit_BV = h_BD @ F.normalize(table_VD[1:], dim=1).t()
            log_BW = logit_BV.log_softmax(1).gather(1, (number_BW - 1).clamp_min(0))
        else:
            own_BW = (F.normalize(F.embedding(number_BW, table_VD), dim=2) @ h_BD.unsqueeze(2)).squeeze(2)
            drawn_V = torch.randint(1, self.sizes[f] + 1, (self.settings.negatives,))
            other_BV = h_BD @ F.normalize(F.embedding(drawn_V, table_VD), dim=1).t()
            hit_BV = (number_BW.unsqueeze(2) == drawn_V).any(1)
            rest_B1 = other_BV.masked_fill(hit_BV, -torch.inf).logsumexp(1, keepdim=True)
            log_BW = own_BW - torch.logaddexp(own_BW, rest_B1)
        mean_B: Tensor = (log_BW * real_BW).sum(1) / real_BW.sum(1).clamp_min(1)
        return -mean_B

    @torch.no_grad()
    def recalls(self, row_ST: Tensor) -> tuple[float, float]:
        """Recall of targets among all items with all fields masked, and with the id alone masked; NaN without targets."""
        if not len(row_ST):
            return float("nan"), float("nan")
        unit_FND = [self._unit_items(f) for f in range(len(self.sizes))]
        all_ND = torch.cat(unit_FND, dim=1)
        hits = torch.zeros(2)
        for row_BT in torch.split(row_ST, _SCORED):
            target_B = row_BT[:, -1] - 1
            masked_BF = torch.ones(len(row_BT), len(self.sizes), dtype=torch.bool)
            state_BFD = F.normalize(self.states(row_BT, masked_BF), dim=2)
            hits[0] += _among_top(state_BFD.flatten(1) @ all_ND.t(), target_B)
            masked_BF[:, 1:] = False
            own_BD = self.states(row_BT, masked_BF)[:, 0]
            hits[1] += _among_top(own_BD @ unit_FND[0].t(), target_B)
        target, own = (hits / len(row_ST)).tolist()
        return target, own

    def _unit_items(self, f: int) -> Tensor:
        """A field of every item but the unknown one, as what cosines are taken with: ``(N - 1, D)``, zeros where there is no value."""
        number_NW = self._number_FNW[f][1:]
        unit_VD = F.normalize(self.tables[f], dim=1)
        return F.embedding_bag(number_NW, unit_VD, mode="mean", padding_idx=0)


def _among_top(score_BN: Tensor, target_B: Tensor) -> Tensor:
    """How many targets fewer than ``TOP`` items are level with or before."""
    own_B1 = score_BN.gather(1, target_B.unsqueeze(1))
    return ((score_BN >= own_B1).sum(1) <= TOP).sum()


def _train(network: Famae, windows: Windows) -> list[float]:
    """Fit the network in place; mean loss of each epoch."""
    settings, losses = network.settings, []
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    for _ in range(settings.epochs):
        total, count = 0.0, 0
        for row_BT in windows.epoch():
            loss = network.loss(row_BT)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total, count = total + float(loss.detach()) * len(row_BT), count + len(row_BT)
        losses.append(total / count)
    return losses
