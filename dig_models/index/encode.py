"""Embeddings and semantic IDs of a catalogue, a chunk of items at a time, and a model that takes them as they are stored.

Shape suffixes: ``N`` rows of the item table (row 0 unknown), ``R`` rows of a chunk, ``D`` width, ``L`` levels, ``P`` nodes of a level.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dig_models.arrays import create_npy
from dig_models.dig import Dig
from dig_models.index.resolve import Resolved, publish
from dig_models.items import ItemTable
from dig_models.quantize.known import KnownSids
from dig_models.retrieve.trie import Trie

CHUNK = 4096
Ints = NDArray[np.int64]


def chunks(rows: int, size: int = CHUNK) -> Iterator[tuple[int, int]]:
    """Half-open ranges that cover ``rows``."""
    for at in range(0, rows, size):
        yield at, min(at + size, rows)


@torch.no_grad()
def encode_rows(model: Dig, items: ItemTable, rows: slice | Ints) -> Tensor:
    """``e_v`` of some rows of a table that need not be the model's own, ``(R, D)``: what ``Dig.encode_items`` gives.

    Raises:
        ValueError: a bucket is out of the range that the model's feature spec declares.
    """
    field, own = model.item_fields, model.item_fields.bag_widths
    index_RJ, number_RQ = field.pack({n: v[rows] for n, v in items.fields.items()}, {n: v[rows] for n, v in items.numbers.items()})
    try:
        known_RJ = model.shown.known(index_RJ, model.shown.of(items.hash_N[rows]))
        e_RD: Tensor = model.corpus_norm(model.embed(known_RJ, number_RQ))
    finally:
        field.bag_widths = own  # those of the model's own table
    return e_RD


@torch.no_grad()
def item_codes(model: Dig, hash_R: Ints, e_RD: Tensor) -> Tensor:
    """Codes of items of any table, ``(R, L)``: where codes are ``fixed`` those that the model holds, also in reserve; else the nearest."""
    nearest_RL = model.quantizer.assign(e_RD)
    if not model.fixed:
        return nearest_RL
    held_RL = model.codes_held(hash_R)
    return torch.where(held_RL >= 0, held_RL, nearest_RL)


@torch.no_grad()
def write_codes(model: Dig, items: ItemTable, sid_path: Path, embedding_path: Path) -> None:
    """SIDs int32 ``(N, L)`` and embeddings float32 ``(N, D)`` of a catalogue, written as they are computed; row 0 has the SID -1.

    Memory holds a chunk; ``item_codes`` says which SID an item gets.

    Raises:
        ValueError: the model is of the ablation that keeps two embeddings of an item, which no index has room for.
    """
    if model.token_encoder is not None:
        raise ValueError("model.rank_gradient_to_encoder: false is an ablation, found in a model to be indexed; train with true")
    levels, dim = model.config.levels, model.config.dim
    sid_NL = create_npy(sid_path, np.int32, (len(items), levels))
    embedding_ND = create_npy(embedding_path, np.float32, (len(items), dim))
    for first, last in chunks(len(items)):
        e_RD = encode_rows(model, items, slice(first, last))
        sid_NL[first:last] = item_codes(model, items.hash_N[first:last], e_RD).numpy()
        embedding_ND[first:last] = e_RD.numpy()
    sid_NL[0] = -1


@torch.no_grad()
def resolve_codes(model: Dig, items: ItemTable, sid_path: Path, embedding_path: Path, before: KnownSids | None) -> Resolved:
    """Resolve the collisions of what ``write_codes`` wrote, in the file; see ``index.resolve.publish``."""
    sid_NL, embedding_ND = np.load(sid_path, mmap_mode="r+"), np.load(embedding_path, mmap_mode="r")
    known_N = (model.codes_held(items.hash_N)[:, 0] >= 0).numpy()
    found = publish(sid_NL, embedding_ND, model.quantizer.code_LKD.numpy(), items.hash_N, known_N=known_N, before=before)
    sid_NL.flush()
    return found


@torch.no_grad()
def write_nodes(model: Dig, trie: Trie, folder: Path) -> None:
    """``level<i>.npy``, float32 ``(P, D)``: ``e_sid(1:l)`` of every node, from the model's semantic tables alone."""
    for level in range(trie.levels):
        code_PL = trie.codes(level)
        node_PD = create_npy(folder / f"level{level}.npy", np.float32, (len(code_PL), model.config.dim))
        for first, last in chunks(len(code_PL), 2 * CHUNK):
            node_PD[first:last] = model.prefix_embeddings(torch.from_numpy(code_PL[first:last]))[:, -1].numpy()


def adopt(model: Dig, items: ItemTable, embedding_ND: NDArray[np.float32], sid_NL: NDArray[np.signedinteger[Any]]) -> None:
    """Give a model a catalogue with the embeddings and SIDs that were stored with it; nothing is read or computed.

    The model then scores this catalogue and does not train on it; in another catalogue these items keep their SIDs.
    """
    model.items, model.known_ND = items, torch.from_numpy(embedding_ND)
    model.reserved, model.settled = KnownSids(items.hash_N[1:], sid_NL[1:]), True
    model.eval()
