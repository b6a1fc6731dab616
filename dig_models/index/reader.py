"""Reads one index generation: model, trie, item maps, user state and crosses that belong together.

``CURRENT`` is resolved once, when the reader opens; a switch while it is at work does not mix two generations.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from dig_models.arrays import ArrayError, Strings, open_npy
from dig_models.bundle import Bundle, BundleError, load_network
from dig_models.cross_files import CrossArraysError
from dig_models.crosses import CrossStore
from dig_models.dig import Dig
from dig_models.features import SECONDS_PER_DAY, FeatureSpecMismatch, hash_id
from dig_models.index import generation as g
from dig_models.index.catalogue import Published
from dig_models.index.encode import adopt
from dig_models.index.state import open_state
from dig_models.quantize.residual import ResidualQuantizer
from dig_models.retrieve.rerank import Retriever
from dig_models.retrieve.trie import CorruptTrie, Trie
from dig_models.train.data import RequestTable

log = logging.getLogger(__name__)


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
        user_ids: ids of the users with a state, ascending by their UTF-8.
        by_id_M: rows of the items in the order of their ids.
        lease: keeps the generation from being removed while the reader is there.
    """

    manifest: g.Manifest
    folder: Path
    bundle: Bundle
    retriever: Retriever
    state: RequestTable
    user_ids: Strings
    by_id_M: NDArray[np.int64]
    lease: BinaryIO

    @classmethod
    def open(cls, root: str | Path, generation: str | None = None, *, checksums: bool = False) -> IndexReader:
        """Open the current generation, or the one asked for; arrays are mapped, not read, so the time does not grow with items.

        Every file's size is compared with the manifest. What the arrays hold is the business of ``verify``, which looks at a
        generation once, before it serves. A generation that is open is not removed (``retain``) before its reader is gone.

        Args:
            root: the index folder.
            generation: id; None for what ``CURRENT`` names now.
            checksums: compare every byte with the manifest.

        Raises:
            IndexMissing: nothing was published yet, or there is no such generation.
            IndexCorrupt: a file is not what the manifest says; ``CURRENT`` is left as it is.
        """
        root = Path(root)
        wanted = generation or g.require_current(root)
        lease = hold(g.generation_dir(root, wanted))
        manifest = g.read_manifest(root, wanted)
        folder = g.generation_dir(root, manifest.id)
        g.check_files(folder, manifest, checksums=checksums)
        try:
            return cls._of(manifest, folder, lease)
        except (ArrayError, CorruptTrie) as error:
            raise g.IndexCorrupt(manifest.id, "(an array)", expected="what its manifest and model say", found=str(error)) from None

    @classmethod
    def _of(cls, manifest: g.Manifest, folder: Path, lease: BinaryIO) -> IndexReader:
        bundle, by_id_M = _bundle(folder, manifest)
        trie = Trie.load(folder / g.TRIE, manifest.levels)
        _require(manifest, g.TRIE, trie.items, manifest.items, "items")
        nodes = [
            torch.from_numpy(open_npy(folder / g.NODES / f"level{i}.npy", np.float32, (trie.nodes(i), manifest.width), private=True))
            for i in range(manifest.levels)
        ]
        store = _store(folder, manifest, bundle)
        retriever = Retriever.of(bundle.model, bundle.spec, bundle.items, store, trie=trie, nodes=nodes)
        state, user_ids = open_state(folder / g.STATE, bundle.spec, manifest.users)
        return cls(
            manifest=manifest,
            folder=folder,
            bundle=bundle,
            retriever=retriever,
            state=state,
            user_ids=user_ids,
            by_id_M=by_id_M,
            lease=lease,
        )

    @property
    def date(self) -> date:
        """The day that the generation serves."""
        return self.manifest.date

    def user_row(self, user_id: str) -> int | None:
        """Row of a user in ``state``; None for one without a state."""
        row = self.user_ids.find(user_id)
        return None if row < 0 else row

    def item_row(self, item_id: str) -> int:
        """Row of an item in the item table; 0 for one that is not in the catalogue."""
        row = int(self.bundle.items.rows(np.array([hash_id(item_id)], dtype=np.int64))[0])
        return row if row and self.bundle.items.id_N[row] == item_id else 0

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


def hold(folder: Path) -> BinaryIO:
    """A lease on a generation: while the file that is returned is open, ``retain`` leaves the generation alone.

    Raises:
        IndexMissing: it is being removed just now.
        IndexCorrupt: it has no manifest.
    """
    try:
        file = (folder / g.MANIFEST).open("rb")
    except OSError as error:
        raise g.IndexCorrupt(folder.name, g.MANIFEST, expected="a file", found=error.strerror or "nothing") from None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise g.IndexMissing(f"{folder}: this generation is being removed; open what CURRENT names") from None
    except OSError as error:  # a file system without locks: retention still keeps the current generation and the one before it
        log.debug("%s: no lease: %s", folder, error)
    return file


def _bundle(folder: Path, manifest: g.Manifest) -> tuple[Bundle, NDArray[np.int64]]:
    try:
        model, info = load_network(folder / g.MODEL)
    except (BundleError, FeatureSpecMismatch) as error:
        raise g.IndexCorrupt(manifest.id, g.MODEL, expected="a model", found=str(error).splitlines()[0]) from error
    config = model.config
    _require(manifest, g.MODEL, model.spec.digest, manifest.spec, "feature spec")
    _require(manifest, g.MODEL, (config.levels, config.codes, config.dim), (manifest.levels, manifest.codes, manifest.width), "sizes")
    _require(manifest, g.MODEL, codebook_digest(model), manifest.codebook, "codebook")
    published = Published.open(folder / g.ITEMS, model.spec, items=manifest.items, levels=config.levels, dim=config.dim)
    adopt(model, published.items, published.embedding_ND, published.sid_NL)
    return Bundle(model, model.spec, published.items, published.sid_NL, info), published.by_id_M


def _store(folder: Path, manifest: g.Manifest, bundle: Bundle) -> CrossStore:
    try:
        return CrossStore.open(folder / g.STATE / g.CROSS_ARRAYS, bundle.spec, bundle.items).preload()
    except (CrossArraysError, FeatureSpecMismatch) as error:
        raise g.IndexCorrupt(manifest.id, f"{g.STATE}/{g.CROSS_ARRAYS}", expected="cross arrays", found=str(error)) from None


def _require(manifest: g.Manifest, file: str, found: object, expected: object, what: str) -> None:
    if found != expected:
        raise g.IndexCorrupt(manifest.id, file, expected=f"{what} {expected}", found=f"{what} {found}")
