"""Reads one index generation: model, trie, item maps, user state and crosses that belong together.

``CURRENT`` is resolved once, when the reader opens; a switch while it is at work does not mix two generations.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dig_models.bundle import Bundle, load_bundle
from dig_models.cross_files import CrossArraysError
from dig_models.crosses import CrossStore
from dig_models.dig import Dig
from dig_models.features import SECONDS_PER_DAY, FeatureSpecMismatch, hash_id
from dig_models.index import generation as g
from dig_models.quantize.residual import ResidualQuantizer
from dig_models.retrieve.rerank import Retriever
from dig_models.retrieve.trie import CorruptTrie, Trie, read_array
from dig_models.train.data import RequestTable


def codebook_digest(model: Dig) -> str:
    """SHA-256 (hex) of the quantizer's addressing codes and semantic tables."""
    total = hashlib.sha256()
    for quantizer in (m for m in model.modules() if isinstance(m, ResidualQuantizer)):
        for tensor in (quantizer.code_LKD, quantizer.semantic.weight):
            array = np.ascontiguousarray(tensor.detach().cpu().numpy())
            total.update(f"{array.dtype.str}{array.shape}".encode())
            total.update(array.tobytes())
    return total.hexdigest()


@dataclass(frozen=True, kw_only=True)
class IndexReader:
    """One generation, open.

    Attributes:
        manifest: what it says of itself; ``manifest.id`` and the model version go with every answer.
        folder: where it lies.
        bundle: model, feature spec, item table and SIDs.
        retriever: ready to answer requests.
        state: the user state, one request per user, in the order of ``user_ids``.
        user_ids: ids of the users with a state.
    """

    manifest: g.Manifest
    folder: Path
    bundle: Bundle
    retriever: Retriever
    state: RequestTable
    user_ids: tuple[str, ...]

    @classmethod
    def open(cls, root: str | Path, generation: str | None = None, *, checksums: bool = True) -> IndexReader:
        """Open the current generation, or the one asked for.

        Args:
            root: the index folder.
            generation: id; None for what ``CURRENT`` names now.
            checksums: whether every byte is compared with the manifest; sizes always are.

        Raises:
            IndexMissing: nothing was published yet, or there is no such generation.
            IndexCorrupt: a file is not what the manifest says; ``CURRENT`` is left as it is.
        """
        root = Path(root)
        manifest = g.read_manifest(root, generation or g.require_current(root))
        folder = g.generation_dir(root, manifest.id)
        g.check_files(folder, manifest, checksums=checksums)
        bundle = _bundle(folder, manifest)
        try:
            trie = Trie.load(folder / g.TRIE, manifest.levels)
            nodes = [read_array(folder / g.NODES / f"level{i}.npy", np.float32, ndim=2) for i in range(manifest.levels)]
        except CorruptTrie as error:
            raise g.IndexCorrupt(manifest.id, f"{g.TRIE} or {g.NODES}", expected="arrays of a trie", found=str(error)) from None
        _require(manifest, g.TRIE, trie.items, manifest.items, "items")
        for level, node_PD in enumerate(nodes):
            _require(manifest, f"{g.NODES}/level{level}.npy", len(node_PD), trie.nodes(level), "nodes")
        store = _store(folder, manifest, bundle)
        retriever = Retriever.of(
            bundle.model, bundle.spec, bundle.items, store, trie=trie, nodes=[torch.from_numpy(np.array(n)) for n in nodes]
        )
        state, user_ids = _state(folder, manifest, bundle)
        return cls(manifest=manifest, folder=folder, bundle=bundle, retriever=retriever, state=state, user_ids=user_ids)

    @property
    def date(self) -> date:
        """The day that the generation serves."""
        return self.manifest.date

    @cached_property
    def _user_rows(self) -> dict[str, int]:
        return {user: row for row, user in enumerate(self.user_ids)}

    @cached_property
    def _item_rows(self) -> dict[str, int]:
        return {str(item): row for row, item in enumerate(self.bundle.items.id_N) if row}

    def user_row(self, user_id: str) -> int | None:
        """Row of a user in ``state``; None for one without a state."""
        return self._user_rows.get(user_id)

    def item_row(self, item_id: str) -> int:
        """Row of an item in the item table; 0 for one that is not in the catalogue."""
        return self._item_rows.get(item_id, 0)

    def sid(self, row: int) -> tuple[int, ...]:
        """SID of an item row."""
        return tuple(int(s) for s in self.bundle.codes_NL[row])

    def stranger(self, user_id: str) -> RequestTable:
        """A request of a user without a state: no history, all fields missing, the day after ``date``.

        What is left to rank by is popularity and the items' static fields.
        """
        ts = (self.manifest.date - date(1970, 1, 1)).days * SECONDS_PER_DAY + SECONDS_PER_DAY
        none = np.zeros(0, dtype=np.int64)
        return RequestTable(
            user_B=np.array([hash_id(user_id)], dtype=np.int64),
            ts_B=np.array([ts], dtype=np.int64),
            offer_B=np.zeros(1, dtype=np.int64),
            user_BF=np.zeros((1, len(self.bundle.spec.user_fields) + len(self.bundle.spec.context_fields)), dtype=np.int64),
            history_start=np.zeros(2, dtype=np.int64),
            history_item=none,
            history_ts=none,
            row_start=np.zeros(2, dtype=np.int64),
            item_R=none,
            label_R=np.zeros(0, dtype=np.int8),
            source_R=np.zeros(0, dtype=np.int8),
            weight_R=np.zeros(0, dtype=np.float32),
            cross_RW=np.zeros((0, self.bundle.spec.cross_width_raw), dtype=np.float32),
        )


def _bundle(folder: Path, manifest: g.Manifest) -> Bundle:
    try:
        bundle = load_bundle(folder / g.MODEL)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise g.IndexCorrupt(manifest.id, g.MODEL, expected="a model bundle", found=str(error).splitlines()[0]) from error
    _require(manifest, g.MODEL, bundle.spec.digest, manifest.spec, "feature spec")
    _require(manifest, g.MODEL, codebook_digest(bundle.model), manifest.codebook, "codebook")
    _require(manifest, f"{g.MODEL}/items.parquet", len(bundle.items) - 1, manifest.items, "items")
    return bundle


def _store(folder: Path, manifest: g.Manifest, bundle: Bundle) -> CrossStore:
    try:
        return CrossStore.open(folder / g.STATE / g.CROSS_ARRAYS, bundle.spec, bundle.items).preload()
    except (CrossArraysError, FeatureSpecMismatch) as error:
        raise g.IndexCorrupt(manifest.id, f"{g.STATE}/{g.CROSS_ARRAYS}", expected="cross arrays", found=str(error)) from None


def _state(folder: Path, manifest: g.Manifest, bundle: Bundle) -> tuple[RequestTable, tuple[str, ...]]:
    name = f"{g.STATE}/{g.USER_STATE}"
    try:
        table = pq.read_table(folder / name, partitioning=None)
        state = RequestTable.from_arrow(table, bundle.spec, bundle.items)
        user_ids = tuple(table.column("user_id").to_pylist())
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise g.IndexCorrupt(manifest.id, name, expected="the user state", found=str(error).splitlines()[0]) from None
    _require(manifest, name, len(user_ids), manifest.users, "users")
    return state, user_ids


def _require(manifest: g.Manifest, file: str, found: object, expected: object, what: str) -> None:
    if found != expected:
        raise g.IndexCorrupt(manifest.id, file, expected=f"{what} {expected}", found=f"{what} {found}")
