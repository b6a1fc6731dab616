"""Verifies a generation before it serves: bytes, maps, trie, digests, and a beam search that must return real items."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dig_models.index import generation as g
from dig_models.index.diff import Sids, sid_text
from dig_models.index.reader import IndexReader
from dig_models.retrieve.beam import node_embeddings

PROBE_USERS = 3
PROBE_BEAM, PROBE_ITEMS = 20, 10


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What was checked: ``(check, what was seen)``, in order."""

    generation: str
    checks: tuple[tuple[str, str], ...]


def verify(root: str | Path, generation: str | None = None) -> Verified:
    """Check a generation whole; the current one by default.

    Args:
        root: the index folder.
        generation: id; None for what ``CURRENT`` names.

    Raises:
        IndexMissing: nothing was published yet, or no such generation.
        IndexCorrupt: the first thing that is not as it should be.
    """
    reader = IndexReader.open(root, generation)  # manifest, sizes, checksums, digests, array shapes
    manifest = reader.manifest
    _check_id(manifest)
    total = sum(entry.size for entry in manifest.files.values())
    checks = [
        ("files", f"{len(manifest.files)} files, {total / 1e6:.1f} MB, all as the manifest says"),
        ("model", f"{manifest.model_name} v{manifest.model_version}, feature spec {manifest.spec[:12]}, codebook {manifest.codebook[:12]}"),
        ("items", _check_maps(reader)),
        ("trie", _check_trie(reader)),
        ("beam search", _probe(reader)),
    ]
    return Verified(generation=manifest.id, checks=tuple(checks))


def _check_id(manifest: g.Manifest) -> None:
    """The id follows from the content."""
    content = g.content_of(manifest.files, manifest.date, manifest.model_name, manifest.model_version, manifest.codebook)
    own = g.generation_id(manifest.date, manifest.model_version, content)
    if (content, own) != (manifest.content, manifest.id):
        raise g.IndexCorrupt(
            manifest.id, g.MANIFEST, expected=f"id {own} for content {content[:10]}", found=f"content {manifest.content[:10]}"
        )


def _check_maps(reader: IndexReader) -> str:
    """Every item is in both maps, once, under the SID that the model's bundle gives it."""
    generation, items = reader.manifest.id, reader.bundle.items
    sids = Sids.read(reader.folder, generation)
    if not np.array_equal(sids.hash_M, items.hash_N[1:]) or not np.array_equal(sids.id_M, items.id_N[1:]):
        raise g.IndexCorrupt(generation, g.ITEM_TO_SID, expected="the items of the bundle, in its order", found="others")
    wrong = np.flatnonzero((sids.code_ML != reader.bundle.codes_NL[1:]).any(axis=1))
    if len(wrong):
        item = sids.id_M[wrong[0]]
        raise g.IndexCorrupt(
            generation, g.ITEM_TO_SID, expected="the bundle's SIDs", found=f"another for {len(wrong)} item(s), first {item}"
        )
    forward = dict(zip(sids.id_M.tolist(), sid_text(sids.code_ML), strict=True))
    try:
        leaves = pq.read_table(reader.folder / g.SID_TO_ITEMS, partitioning=None).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise g.IndexCorrupt(generation, g.SID_TO_ITEMS, expected="a table", found=str(error).splitlines()[0]) from None
    backward = [(item, leaf["sid"]) for leaf in leaves for item in leaf["items"]]
    if len(backward) != len(forward) or dict(backward) != forward:
        raise g.IndexCorrupt(
            generation, g.SID_TO_ITEMS, expected=f"each of {len(forward)} items once, under its SID", found="something else"
        )
    if [leaf["sid"] for leaf in leaves] != sid_text(reader.retriever.trie.codes(reader.manifest.levels - 1)):
        raise g.IndexCorrupt(generation, g.SID_TO_ITEMS, expected="the leaves of the trie, in order", found="others")
    return f"{len(forward)} items under {len(leaves)} SIDs, found in both directions"


def _check_trie(reader: IndexReader) -> str:
    """The trie holds the items' codes, and its node embeddings are the model's."""
    trie, generation = reader.retriever.trie, reader.manifest.id
    if not np.array_equal(trie.item_codes()[1:], reader.bundle.codes_NL[1:]):
        raise g.IndexCorrupt(generation, g.TRIE, expected="the SIDs of the item map", found="others")
    for level, (stored, own) in enumerate(zip(reader.retriever.nodes, node_embeddings(reader.bundle.model, trie), strict=True)):
        if not torch.allclose(stored, own, rtol=1e-4, atol=1e-5):
            worst = float((stored - own).abs().max())
            raise g.IndexCorrupt(
                generation, f"{g.NODES}/level{level}.npy", expected="the model's embeddings", found=f"up to {worst:.3g} off"
            )
    return "nodes by level " + ", ".join(str(trie.nodes(level)) for level in range(trie.levels))


def _probe(reader: IndexReader) -> str:
    """Some users, or a stranger if there are none, must get real items with finite scores."""
    users = reader.user_ids[:PROBE_USERS]
    requests = reader.state if users else reader.stranger("")
    index_B = np.arange(max(len(users), 1), dtype=np.int64)
    found = reader.retriever.retrieve(requests, index_B, k=PROBE_ITEMS, beam=PROBE_BEAM, rerank=PROBE_ITEMS)
    wanted = min(PROBE_ITEMS, reader.manifest.items)
    for user, item_J, score_J in zip(users or ("(a stranger)",), found.item_GJ, found.score_GJ, strict=True):
        real = (item_J > 0) & (item_J < len(reader.bundle.items)) & np.isfinite(score_J)
        if not real.any() or len(set(item_J[real].tolist())) != int(real.sum()):
            raise g.IndexCorrupt(
                reader.manifest.id,
                g.TRIE,
                expected=f"a beam search that returns up to {wanted} distinct items for user {user}",
                found=f"rows {item_J.tolist()}",
            )
    return f"{len(index_B)} user(s), {int((found.item_GJ > 0).sum())} items returned"
