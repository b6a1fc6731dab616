"""Builds an index generation, makes it current, and removes old ones.

A generation is assembled in a staging folder, completed by its manifest, flushed to disk and renamed into place; only a
verified one becomes ``CURRENT``, by one atomic replace. A crash at any point leaves what was current readable, and building
again gives the same id and the same bytes.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dig_models.bundle import Bundle, load_bundle, save_bundle
from dig_models.cross_files import read_meta
from dig_models.evaluate.sid_quality import churn, measure
from dig_models.faults import reached
from dig_models.files import exclusive, naming_full_disk, replace_text, sync_dir, sync_tree
from dig_models.index import generation as g
from dig_models.index.diff import Sids, changes, counts, sid_text
from dig_models.index.reader import codebook_digest
from dig_models.items import ItemTable
from dig_models.retrieve.beam import node_embeddings
from dig_models.retrieve.trie import Trie

if TYPE_CHECKING:
    from dig_models.dig import Dig

log = logging.getLogger(__name__)
STAGING, DAMAGED, REMOVED = ".staging", ".damaged-", ".removed-"


@dataclass(frozen=True, kw_only=True)
class Release:
    """What is to be published.

    Attributes:
        day: the date of catalogue and user state.
        bundle: the promoted version; its model gives the SIDs.
        items: the catalogue of ``day``; items that the model has not seen get the SID of their static fields.
        user_state: rows of ``user_state`` of ``day``.
        cross_arrays: folder of the cross arrays of ``day``.
    """

    day: date
    model_name: str
    model_version: str
    bundle: Bundle
    items: ItemTable
    user_state: pa.Table
    cross_arrays: Path


def locked(root: Path, *, wait: bool = True) -> AbstractContextManager[None]:
    """One writer at a time; readers never wait.

    Raises:
        BlockingIOError: another one is at work and ``wait`` is off.
    """
    return exclusive(root / ".lock", wait=wait)


def build(root: Path, release: Release) -> str:
    """Write a generation and return its id; nothing is switched. The caller holds ``locked(root)``.

    A whole generation with the same content is kept as it is; a damaged one is put aside and replaced.

    Raises:
        NotIndexable: an empty catalogue, or a model without codebooks.
        FeatureSpecMismatch: cross arrays that were made with another feature spec than the model.
    """
    if len(release.items) < 2:
        raise g.NotIndexable(f"index of {release.day}: the catalogue has no items; build item_features of that day first")
    if not bool(release.bundle.model.quantizer.built):
        raise g.NotIndexable(
            f"index of {release.day}: {release.model_name} version {release.model_version} has no codebooks (it was trained with "
            "loss.recall 0 or stopped in its warm-up), so its items have no semantic IDs; promote another version"
        )
    read_meta(release.cross_arrays, release.bundle.spec)
    staging = root / STAGING
    _clear(root)
    try:
        with naming_full_disk(root):
            staging.mkdir(parents=True)
            reached("index.cleared")
            draft = write_content(staging, release)
        if _whole(root, draft.id):
            log.info("index generation %s is there already", draft.id)
            return draft.id
        with naming_full_disk(root):
            complete(root, staging, draft)
            sync_tree(staging)
        reached("index.synced")
        install(root, staging, draft.id)
        return draft.id
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _clear(root: Path) -> None:
    """Remove what a writer left that was killed, and undo what it had only begun; the lock says that none is at work."""
    shutil.rmtree(root / STAGING, ignore_errors=True)
    home = root / g.GENERATIONS
    for aside in home.glob(f"{DAMAGED}*"):
        generation = home / aside.name.removeprefix(DAMAGED)
        if generation.exists():
            shutil.rmtree(aside)
        else:
            aside.rename(generation)


def write_content(staging: Path, release: Release) -> g.Manifest:
    """Write every file but delta and manifest; returns the manifest as far as it is known then."""
    write_model(staging / g.MODEL, release)
    reached("index.model_written")
    bundle = load_bundle(staging / g.MODEL)  # what serves is what was written
    trie = Trie.build(bundle.codes_NL)
    write_maps(staging, bundle, trie)
    reached("index.maps_written")
    write_arrays(staging, bundle.model, trie)
    reached("index.arrays_written")
    users = write_state(staging / g.STATE, release)
    reached("index.state_written")
    files = {name: g.file_entry(path) for name, path in g.files_under(staging).items()}
    codes, levels = bundle.model.config.codes, trie.levels
    codebook = codebook_digest(bundle.model)
    content = g.content_of(files, release.day, release.model_name, release.model_version, codebook)
    quality = measure(bundle.codes_NL[1:], codes).as_dict()
    return g.Manifest(
        id=g.generation_id(release.day, release.model_version, content),
        date=release.day,
        model_name=release.model_name,
        model_version=release.model_version,
        spec=bundle.spec.digest,
        codebook=codebook,
        levels=levels,
        codes=codes,
        items=trie.items,
        users=users,
        quality=quality,
        churn=None,
        delta={},
        previous=None,
        content=content,
        files=files,
    )


def write_model(folder: Path, release: Release) -> None:
    """The bundle, with the SIDs of this generation's catalogue."""
    model = release.bundle.model
    model.eval()
    model.set_items(release.items)
    save_bundle(folder, model, release.items, release.bundle.info)


def write_maps(staging: Path, bundle: Bundle, trie: Trie) -> None:
    """``item_to_sid.parquet`` (items by row) and ``sid_to_items.parquet`` (leaves in order)."""
    items, codes_NL = bundle.items, bundle.codes_NL
    columns = {"item_id": pa.array(items.id_N[1:].tolist(), pa.string()), "item_hash": pa.array(items.hash_N[1:])}
    columns |= {f"s_{i + 1}": pa.array(codes_NL[1:, i].astype(np.int32)) for i in range(trie.levels)}
    write_table(pa.table(columns), staging / g.ITEM_TO_SID)
    postings = pa.ListArray.from_arrays(pa.array(trie.start[-1].astype(np.int32)), pa.array(items.id_N[trie.order_M].tolist(), pa.string()))
    leaves = pa.table({"sid": pa.array(sid_text(trie.codes(trie.levels - 1)), pa.string()), "items": postings})
    write_table(leaves, staging / g.SID_TO_ITEMS)


def write_arrays(staging: Path, model: Dig, trie: Trie) -> None:
    """The trie and the prefix embeddings of its nodes."""
    for name in (g.TRIE, g.NODES):
        (staging / name).mkdir()
    trie.save(staging / g.TRIE)
    for level, node_PD in enumerate(node_embeddings(model, trie)):
        np.save(staging / g.NODES / f"level{level}.npy", node_PD.numpy().astype(np.float32))


def write_state(folder: Path, release: Release) -> int:
    """User state and cross arrays of the date; returns the number of users."""
    folder.mkdir()
    table = release.user_state.sort_by("user_id")
    write_table(table, folder / g.USER_STATE)
    for source in sorted(p for p in release.cross_arrays.rglob("*") if p.is_file()):
        target = folder / g.CROSS_ARRAYS / source.relative_to(release.cross_arrays)
        target.parent.mkdir(parents=True, exist_ok=True)
        _link_or_copy(source, target)
    return int(table.num_rows)


def complete(root: Path, staging: Path, draft: g.Manifest) -> None:
    """Compare with what is current, write the delta, and last of all the manifest."""
    new = Sids.read(staging, draft.id)
    previous, old = _previous(root, draft.id)
    rows = changes(old, new)
    write_table(rows, staging / g.DELTA)
    reached("index.delta_written")
    moved = None if old is None else churn(old.hash_M, old.code_ML, new.hash_M, new.code_ML)
    manifest = draft.model_copy(
        update={
            "previous": previous,
            "churn": None if moved is None else moved.as_dict(),
            "delta": counts(rows),
            "files": {**draft.files, g.DELTA: g.file_entry(staging / g.DELTA)},
        }
    )
    replace_text(staging / g.MANIFEST, manifest.sealed().text())
    reached("index.manifest_written")


def install(root: Path, staging: Path, generation: str) -> None:
    """Rename the finished folder into ``generations``; a damaged one of that id is put aside first."""
    home = root / g.GENERATIONS
    home.mkdir(exist_ok=True)
    aside = home / f"{DAMAGED}{generation}"
    if (home / generation).exists():
        (home / generation).rename(aside)
        reached("index.damaged_moved_aside")
    staging.rename(home / generation)
    reached("index.renamed")
    for folder in (home, root, root.parent):
        sync_dir(folder)
    shutil.rmtree(aside, ignore_errors=True)
    reached("index.installed")


def switch(root: Path, generation: str) -> None:
    """Make a generation current, by one atomic replace; the caller verified it."""
    g.generation_dir(root, generation)
    reached("index.verified")
    replace_text(root / g.CURRENT, generation + "\n")
    reached("index.switched")


def retain(root: Path, keep: int, also: Collection[str] = ()) -> list[str]:
    """Remove all but the newest ``keep`` generations; never the current one, the one before it, nor those in ``also``.

    Returns:
        Ids that were removed.
    """
    now = g.current(root)
    kept = {*g.generations(root)[-keep:], *also}
    if now is not None:
        kept |= {now, g.read_manifest(root, now).previous or now}
    gone = [generation for generation in g.generations(root) if generation not in kept]
    home = root / g.GENERATIONS
    for generation in gone:
        # Renamed first: a reader that lists generations never meets one that is half removed.
        (home / generation).rename(home / f"{REMOVED}{generation}")
        reached("index.retired")
    for leftover in home.glob(f"{REMOVED}*"):
        shutil.rmtree(leftover)
    reached("index.retention_done")
    return gone


def write_table(table: pa.Table, path: Path) -> None:
    """Parquet with fixed settings and no foreign metadata, so that equal tables give equal bytes."""
    plain = table.replace_schema_metadata(None).combine_chunks()
    pq.write_table(plain, path, version="2.6", compression="zstd", row_group_size=65_536, use_dictionary=True, write_statistics=True)


def _whole(root: Path, generation: str) -> bool:
    """Whether the generation is there and every byte is what its manifest says."""
    try:
        g.check_files(g.generation_dir(root, generation), g.read_manifest(root, generation))
    except (g.IndexMissing, g.IndexCorrupt) as error:
        log.info("index generation %s has to be written: %s", generation, error)
        return False
    return True


def _previous(root: Path, generation: str) -> tuple[str | None, Sids | None]:
    """The generation to compare with: the current one, or the one before it if the current one is rebuilt.

    One that cannot be read must not keep a sound one from being published: it is named, and everything counts as added.
    """
    now = g.current(root)
    try:
        if now == generation:
            now = g.read_manifest(root, generation).previous
        return now, None if now is None else Sids.read(g.generation_dir(root, now), now)
    except (g.IndexMissing, g.IndexCorrupt) as error:
        log.warning("no comparison with the index generation before: %s", error)
        return None if now == generation else now, None


def _link_or_copy(source: Path, target: Path) -> None:
    """A hard link, since committed files never change; a copy on another file system."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            raise
        shutil.copyfile(source, target)
