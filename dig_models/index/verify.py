"""Verifies a generation before it serves: bytes, maps, trie, digests, user state, and a beam search that must return real items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from dig_models.arrays import ArrayError, Strings, open_npy
from dig_models.bundle import RESERVED, BundleError, read_reserved
from dig_models.cross_files import find
from dig_models.dig import Dig
from dig_models.index import generation as g
from dig_models.index.catalogue import BY_ID, HASH, IDS, KEYS, NAMES, SID
from dig_models.index.diff import counts, total
from dig_models.index.encode import chunks, encode_rows
from dig_models.index.maps import ROW_GROUP, forward_rows, posting_rows, texts
from dig_models.index.reader import IndexReader
from dig_models.index.verify_state import Demand, ascending, check_crosses, check_state, check_text, hashes_of
from dig_models.retrieve.trie import CorruptTrie

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
    reader = IndexReader.open(root, generation, checksums=True)  # manifest, sizes, checksums, digests, array shapes
    manifest = reader.manifest
    _check_id(manifest)
    total = sum(entry.size for entry in manifest.files.values())
    checks = [
        ("files", f"{len(manifest.files)} files, {total / 1e6:.1f} MB, all as the manifest says"),
        ("model", f"{manifest.model_name} v{manifest.model_version}, feature spec {manifest.spec[:12]}, codebook {manifest.codebook[:12]}"),
        ("items", _check_items(reader)),
        ("trie", _check_trie(reader)),
        ("maps", _check_maps(reader)),
        ("encoder", _check_model(reader)),
        ("reserve", _check_reserve(reader)),
        ("arrivals", _check_arrivals(reader, Path(root))),
        ("user state", check_state(reader)),
        ("crosses", check_crosses(reader)),
        ("delta", _check_delta(reader)),
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


def _check_items(reader: IndexReader) -> str:
    """Ids, hashes and order of the item table; of the u2i keys, what can be told from it."""
    items, generation = reader.bundle.items, reader.manifest.id
    ids = items.id_N
    for file, strings in ((IDS, ids), (NAMES, items.name_N)):
        if isinstance(strings, Strings):
            check_text(generation, f"{g.ITEMS}/{file}", strings)
    demand = Demand(generation, g.ITEMS)
    demand(ascending(items.hash_N), HASH, "ascending hashes")
    demand(not isinstance(ids, Strings) or hashes_of(ids, items.hash_N, first=1), HASH, "hashes of the item ids")
    demand(not items.key_KN[:, 0].any(), KEYS, "no key of the unknown item, row 0")
    for key, key_N in zip(reader.bundle.spec.u2i_keys, items.key_KN, strict=True):
        own = key != "item" or bool(((key_N[1:] == items.hash_N[1:]) | (key_N[1:] == 0)).all())
        demand(own, KEYS, "as key 'item' the hashes of the items")
    if not np.array_equal(np.sort(reader.by_id_M), np.arange(1, len(items))) or not _ascending(ids, reader.by_id_M):
        raise g.IndexCorrupt(generation, f"{g.ITEMS}/{BY_ID}", expected="every item once, ids ascending", found="another order")
    return f"{len(items) - 1} items"


def _ascending(ids: NDArray[np.object_] | Strings, rows: NDArray[np.int64]) -> bool:
    found = texts(ids, rows)
    return len(found) < 2 or bool(pc.all(pc.less(found[:-1], found[1:])).as_py())


def _check_model(reader: IndexReader) -> str:
    """The embedding of each item is what the model makes of its fields, and its SID is made of codes of the codebooks."""
    model, items, generation = reader.bundle.model, reader.bundle.items, reader.manifest.id
    stored_ND = reader.retriever.embedding_ND
    for first, last in chunks(len(items)):
        try:
            own_RD = encode_rows(model, items, slice(first, last))
        except (ValueError, IndexError) as error:
            raise g.IndexCorrupt(generation, g.ITEMS, expected="fields that the model knows", found=str(error).splitlines()[0]) from None
        if not torch.allclose(stored_ND[first:last], own_RD, rtol=1e-4, atol=1e-4):
            worst = float((stored_ND[first:last] - own_RD).abs().max())
            raise g.IndexCorrupt(generation, g.EMBEDDINGS, expected="the model's embeddings", found=f"up to {worst:.3g} off")
    code_NL = reader.bundle.codes_NL[1:]
    if code_NL.min() < 0 or code_NL.max() >= reader.manifest.codes:
        found = f"codes from {code_NL.min()} to {code_NL.max()}"
        raise g.IndexCorrupt(generation, f"{g.ITEMS}/{SID}", expected=f"codes from 0 to {reader.manifest.codes - 1}", found=found)
    return f"embeddings and codes of {len(items) - 1} items"


def _check_arrivals(reader: IndexReader, root: Path) -> str:
    """Of a delta generation: items of its base have the SIDs that they have there, and new ones without a reserved SID the nearest codes.

    Where collisions are resolved, a new item may have another last code if another item has, or has a claim to, the SID it would get.

    Of a whole generation nothing can be told: items keep the SIDs that the model held when it was built, and which ones those
    were is in its bundle, not among these files.
    """
    generation, base, items = reader.manifest.id, reader.manifest.base, reader.bundle.items
    if base is None:
        return "made whole: items have the SIDs that the model held, or the nearest codes"
    try:
        folder = g.generation_dir(root, base) / g.ITEMS
        hash_B = open_npy(folder / HASH, np.int64, (None,))
        sid_BL = open_npy(folder / SID, np.int32, (len(hash_B), reader.manifest.levels))
    except (g.IndexMissing, ArrayError) as error:
        return f"not compared with {base}: {error}"
    reserved, new = read_reserved(reader.folder / g.MODEL), 0
    file = f"{g.ITEMS}/{SID}"
    for first, last in chunks(len(items) - 1):
        hash_R, sid_RL = items.hash_N[1 + first : 1 + last], reader.bundle.codes_NL[1 + first : 1 + last]
        at_R = find(hash_B, hash_R)
        there_R = at_R >= 0
        if not np.array_equal(sid_RL[there_R], sid_BL[at_R[there_R]]):
            raise g.IndexCorrupt(generation, file, expected=f"the SIDs that items have in {base}", found="others")
        new_R = ~there_R & (reserved.find(hash_R)[:, 0] < 0)
        e_RD = reader.retriever.embedding_ND[1 + first : 1 + last][torch.from_numpy(new_R)]
        wanted_XL = _others_nearest(reader.bundle.model, e_RD, torch.from_numpy(sid_RL[new_R].astype(np.int64)))
        held = (sid_BL, reserved.code_XL, reader.bundle.codes_NL[1:])
        if wanted_XL is None or not _among(wanted_XL, held):
            expected = "for new items the codes nearest to their embeddings, or another last code where these are another item's"
            raise g.IndexCorrupt(generation, file, expected=expected, found="others")
        new += int(new_R.sum())
    return f"{len(items) - 1 - new} items with the SIDs of {base} or reserved ones, {new} new ones with the nearest codes"


def _others_nearest(model: Dig, e_RD: Tensor, code_RL: Tensor) -> NDArray[np.int32] | None:
    """Nearest SIDs ``(X, L)`` of the rows whose last code is not the nearest; None if another code is not.

    Of two codes that are equally near but for rounding, either is the nearest.
    """
    residual_RLD = model.quantizer.residuals(e_RD, code_RL)
    for level in range(code_RL.shape[1]):
        distance_RK = torch.cdist(residual_RLD[:, level], model.quantizer.code_LKD[level]).square()
        own_R = distance_RK.gather(1, code_RL[:, level : level + 1]).squeeze(1)
        least_R, nearest_R = distance_RK.min(dim=1)
        off_R = own_R > least_R + 1e-3 * (1.0 + least_R)
        if level + 1 < code_RL.shape[1] and bool(off_R.any()):
            return None
    found: NDArray[np.int32] = torch.cat([code_RL[:, :-1], nearest_R.unsqueeze(1)], dim=1)[off_R].numpy().astype(np.int32)
    return found


def _among(code_XL: NDArray[np.int32], held: Sequence[NDArray[np.signedinteger[Any]]]) -> bool:
    """Whether every SID is one of some tables'."""
    if not len(code_XL):
        return True

    def whole(code_NL: NDArray[np.signedinteger[Any]]) -> NDArray[np.void]:
        rows: NDArray[np.void] = np.ascontiguousarray(code_NL, dtype=np.int32).view([("", np.int32)] * code_XL.shape[1]).ravel()
        return rows

    return bool(np.isin(whole(code_XL), np.concatenate([whole(part) for part in held if len(part)])).all())


def _check_reserve(reader: IndexReader) -> str:
    """SIDs in reserve are made of codes of the codebooks, and an item of the catalogue has no other one there."""
    manifest, file = reader.manifest, f"{g.MODEL}/{RESERVED}"
    try:
        reserved = read_reserved(reader.folder / g.MODEL)
    except BundleError as error:
        raise g.IndexCorrupt(manifest.id, file, expected="SIDs of items", found=str(error)) from None
    highest = int(reserved.code_XL.max(initial=0))
    if reserved.levels != manifest.levels or highest >= manifest.codes:
        expected = f"SIDs of {manifest.levels} codes from 0 to {manifest.codes - 1}"
        raise g.IndexCorrupt(manifest.id, file, expected=expected, found=f"{reserved.levels} codes up to {highest}")
    row_X = reader.bundle.items.rows(reserved.hash_X)
    both = row_X > 0
    if not np.array_equal(reader.bundle.codes_NL[row_X[both]], reserved.code_XL[both]):
        raise g.IndexCorrupt(manifest.id, file, expected="the SIDs of the item table, or of items outside it", found="others")
    return f"SIDs of {len(reserved) - int(both.sum())} items outside the catalogue"


def _check_maps(reader: IndexReader) -> str:
    """Every item is in both maps, once, under the SID that the item table gives it; row group by row group."""
    generation, items, trie = reader.manifest.id, reader.bundle.items, reader.retriever.trie
    leaf_PL = trie.codes(trie.levels - 1)
    forward = partial(forward_rows, items, reader.bundle.codes_NL)
    backward = partial(posting_rows, items, trie, leaf_PL)
    for file, rows_of, expected in ((g.ITEM_TO_SID, forward, len(items) - 1), (g.SID_TO_ITEMS, backward, len(leaf_PL))):
        try:
            with pq.ParquetFile(reader.folder / file, memory_map=True) as held:
                rows = held.metadata.num_rows
                same, at = rows == expected, 0
                for batch in held.iter_batches(ROW_GROUP) if same else ():
                    same = same and pa.table(batch).equals(rows_of(at, at + len(batch)))
                    at += len(batch)
        except (OSError, pa.ArrowException) as error:
            raise g.IndexCorrupt(generation, file, expected="a table", found=str(error).splitlines()[0]) from None
        if not same:
            raise g.IndexCorrupt(
                generation, file, expected=f"{expected} rows, as item table and trie have them", found=f"{rows} rows, or others"
            )
    return f"{len(items) - 1} items under {len(leaf_PL)} SIDs, found in both directions"


def _check_delta(reader: IndexReader) -> str:
    """The delta can be read and has as many changes as the manifest says."""
    generation, expected = reader.manifest.id, reader.manifest.delta
    try:
        with pq.ParquetFile(reader.folder / g.DELTA, memory_map=True) as held:
            found = total([counts(pa.table(batch)) for batch in held.iter_batches(ROW_GROUP, columns=["item_id", "change", "level"])])
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise g.IndexCorrupt(generation, g.DELTA, expected="a table", found=str(error).splitlines()[0]) from None
    if found != expected:
        raise g.IndexCorrupt(generation, g.DELTA, expected=f"changes {expected}", found=f"changes {found}")
    return f"{found['added']} items added, {found['removed']} removed, {sum(found['moved'].values())} moved"


def _check_trie(reader: IndexReader) -> str:
    """The trie holds the items' codes, and its node embeddings are the model's."""
    trie, generation, model = reader.retriever.trie, reader.manifest.id, reader.bundle.model
    try:
        trie.check(reader.manifest.items)
    except CorruptTrie as error:
        raise g.IndexCorrupt(generation, g.TRIE, expected="a trie", found=str(error)) from None
    if not np.array_equal(trie.item_codes()[1:], reader.bundle.codes_NL[1:]):
        raise g.IndexCorrupt(generation, g.TRIE, expected="the SIDs of the item table", found="others")
    for level, stored_PD in enumerate(reader.retriever.nodes):
        code_PL = trie.codes(level)
        for first, last in chunks(len(code_PL), ROW_GROUP):
            own_PD = model.prefix_embeddings(torch.from_numpy(code_PL[first:last]))[:, -1]
            if not torch.allclose(stored_PD[first:last], own_PD, rtol=1e-4, atol=1e-5):
                worst = float((stored_PD[first:last] - own_PD).abs().max())
                raise g.IndexCorrupt(
                    generation, f"{g.NODES}/level{level}.npy", expected="the model's embeddings", found=f"up to {worst:.3g} off"
                )
    return "nodes by level " + ", ".join(str(trie.nodes(level)) for level in range(trie.levels))


def _probe(reader: IndexReader) -> str:
    """Some users, or a stranger if there are none, must get real items with finite scores."""
    users = reader.user_ids[:PROBE_USERS].tolist()
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
