"""Builds an index generation, makes it current, and removes old ones.

A generation is assembled in a staging folder, completed by its manifest, flushed to disk and renamed into place; only a
verified one becomes ``CURRENT``, by one atomic replace. A crash at any point leaves what was current readable, and building
again gives the same id and the same bytes.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from dig_models.bundle import Bundle, BundleError, load_network, read_reserved, save_network
from dig_models.cross_files import read_meta
from dig_models.evaluate.sid_quality import churn, measure
from dig_models.faults import reached
from dig_models.files import exclusive, naming_full_disk, replace_text, sync_dir, sync_tree
from dig_models.index import generation as g
from dig_models.index.catalogue import EMBEDDING, SID, Published, save_items
from dig_models.index.diff import Sids, change_groups, counts, total
from dig_models.index.encode import chunks, resolve_codes, write_codes, write_nodes
from dig_models.index.maps import ROW_GROUP, Codes, forward_rows, posting_rows, write_groups
from dig_models.index.reader import codebook_digest
from dig_models.index.resolve import kept
from dig_models.index.state import save_state
from dig_models.items import ItemTable
from dig_models.quantize.known import KnownSids
from dig_models.retrieve.trie import Trie

if TYPE_CHECKING:
    from dig_models.dig import Dig

log = logging.getLogger(__name__)
STAGING, SCRATCH, DAMAGED, REMOVED = ".staging", ".scratch", ".damaged-", ".removed-"


@dataclass(frozen=True, kw_only=True)
class Release:
    """What is to be published.

    Attributes:
        day: the date of catalogue and user state.
        bundle: the promoted version; its model gives the SIDs.
        items: the catalogue of ``day``; items that the model has not seen get the SID of their static fields.
        user_state: rows of ``user_state`` of ``day``.
        cross_arrays: folder of the cross arrays of ``day``.
        resolve_collisions: an item whose SID is taken gets another last code, see ``index.resolve``.
    """

    day: date
    model_name: str
    model_version: str
    bundle: Bundle
    items: ItemTable
    user_state: pa.Table
    cross_arrays: Path
    resolve_collisions: bool = False


def locked(root: Path, *, wait: bool = True) -> AbstractContextManager[None]:
    """One writer at a time; readers never wait.

    Raises:
        BlockingIOError: another one is at work and ``wait`` is off.
    """
    return exclusive(root / ".lock", wait=wait)


@contextmanager
def scratch(root: Path) -> Iterator[Path]:
    """An empty folder for what a build needs by the way, such as the columns of a catalogue; the caller holds ``locked(root)``."""
    folder = root / SCRATCH
    shutil.rmtree(folder, ignore_errors=True)  # a writer that was killed left it
    folder.mkdir(parents=True)
    try:
        with naming_full_disk(root):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
    before = _published(root) if release.resolve_collisions else None
    return assemble(root, lambda staging: write_content(staging, release, before))


def assemble(root: Path, write: Callable[[Path], g.Manifest]) -> str:
    """Stage a generation, complete it and give it its name; one with the same content that is whole stays as it is.

    Args:
        root: the index folder; the caller holds ``locked(root)``.
        write: fills the staging folder with every file but delta and manifest.

    Returns:
        The id.
    """
    staging = root / STAGING
    _clear(root)
    try:
        with naming_full_disk(root):
            staging.mkdir(parents=True)
            reached("index.cleared")
            drafted = write(staging)
        if _whole(root, drafted.id):
            log.info("index generation %s is there already", drafted.id)
            return drafted.id
        with naming_full_disk(root):
            complete(root, staging, drafted)
            sync_tree(staging)
        reached("index.synced")
        install(root, staging, drafted.id)
        return drafted.id
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


def write_content(staging: Path, release: Release, before: KnownSids | None = None) -> g.Manifest:
    """Write every file but delta and manifest, each as it is computed; returns the manifest as far as it is known then.

    Args:
        staging: an empty folder.
        release: what is to be published.
        before: SIDs that are published now, which items keep where collisions are resolved.
    """
    save_network(staging / g.MODEL, release.bundle.model, release.bundle.info, reserve(release, before))
    reached("index.model_written")
    model, _ = load_network(staging / g.MODEL)  # what serves is what was written
    write_items(staging / g.ITEMS, release, before)
    spec = release.bundle.spec
    published = Published.open(staging / g.ITEMS, spec, items=len(release.items) - 1, levels=model.config.levels, dim=model.config.dim)
    trie = Trie.build(published.sid_NL)
    write_maps(staging, published.items, published.sid_NL, trie)
    reached("index.maps_written")
    write_arrays(staging, model, trie)
    reached("index.arrays_written")
    users = write_state(staging / g.STATE, release, published.items)
    reached("index.state_written")
    return draft(
        staging,
        day=release.day,
        model=model,
        model_name=release.model_name,
        model_version=release.model_version,
        sid_NL=published.sid_NL,
        users=users,
    )


def reserve(release: Release, before: KnownSids | None = None) -> KnownSids:
    """SIDs that the model holds for items outside the catalogue of the day: one that comes back takes its own.

    Args:
        release: what is to be published.
        before: as for ``write_content``; an item that was published under another last code keeps that one.
    """
    if not release.bundle.model.fixed:
        return KnownSids.none(release.bundle.model.config.levels)
    own = release.bundle.sids.without(release.items.hash_N[1:])
    if before is None or before.levels != own.levels:
        return own
    was_XL, same_X = kept(own.hash_X, own.code_XL, before)
    return KnownSids(own.hash_X, np.where(same_X[:, None], was_XL, own.code_XL))


def draft(
    staging: Path, *, day: date, model: Dig, model_name: str, model_version: str, sid_NL: Codes, users: int, base: str | None = None
) -> g.Manifest:
    """The manifest of what is staged, as far as it is known before it is compared with what is current."""
    files = {name: g.file_entry(path) for name, path in g.files_under(staging).items()}
    codebook = codebook_digest(model)
    content = g.content_of(files, day, model_name, model_version, codebook)
    return g.Manifest(
        id=g.generation_id(day, model_version, content),
        date=day,
        model_name=model_name,
        model_version=model_version,
        spec=model.spec.digest,
        codebook=codebook,
        levels=model.config.levels,
        codes=model.config.codes,
        width=model.config.dim,
        items=len(sid_NL) - 1,
        users=users,
        quality=measure(sid_NL[1:].astype(np.int64), model.config.codes).as_dict(),
        churn=None,
        delta={},
        previous=None,
        base=base,
        content=content,
        files=files,
    )


def write_items(folder: Path, release: Release, before: KnownSids | None = None) -> None:
    """The catalogue's arrays, its SIDs and embeddings; ``before`` as for ``write_content``."""
    folder.mkdir()
    save_items(folder, release.items, release.bundle.spec)
    model = release.bundle.model.eval()
    write_codes(model, release.items, folder / SID, folder / EMBEDDING)
    if release.resolve_collisions:
        found = resolve_codes(model, release.items, folder / SID, folder / EMBEDDING, before)
        log.info("collisions: %d items got another last code, %d still share a SID", found.moved, found.left)


def write_maps(staging: Path, items: ItemTable, sid_NL: Codes, trie: Trie) -> None:
    """``item_to_sid.parquet`` (items by row) and ``sid_to_items.parquet`` (leaves in order), a row group at a time."""
    write_groups(staging / g.ITEM_TO_SID, (forward_rows(items, sid_NL, a, b) for a, b in chunks(len(items) - 1, ROW_GROUP)))
    leaf_PL = trie.codes(trie.levels - 1)
    write_groups(staging / g.SID_TO_ITEMS, (posting_rows(items, trie, leaf_PL, a, b) for a, b in chunks(len(leaf_PL), ROW_GROUP)))


def write_arrays(staging: Path, model: Dig, trie: Trie) -> None:
    """The trie and the prefix embeddings of its nodes."""
    for name in (g.TRIE, g.NODES):
        (staging / name).mkdir()
    trie.save(staging / g.TRIE)
    write_nodes(model, trie, staging / g.NODES)


def write_state(folder: Path, release: Release, items: ItemTable) -> int:
    """User state and cross arrays of the date; returns the number of users."""
    folder.mkdir()
    users = save_state(folder, release.user_state, release.bundle.spec, items)
    link_tree(release.cross_arrays, folder / g.CROSS_ARRAYS)
    return users


def link_tree(source: Path, target: Path) -> None:
    """The files of a folder under another name: hard links where the file system allows."""
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(path, place)


def complete(root: Path, staging: Path, draft: g.Manifest) -> None:
    """Compare with what is current, write the delta, and last of all the manifest."""
    new = Sids.read(staging, draft.id)
    previous, old = _previous(root, draft.id)
    found: list[dict[str, Any]] = []
    write_groups(staging / g.DELTA, _counted(change_groups(old, new), found))
    reached("index.delta_written")
    moved = None if old is None else churn(old.hash_M, old.code_ML, new.hash_M, new.code_ML)
    manifest = draft.model_copy(
        update={
            "previous": previous,
            "churn": None if moved is None else moved.as_dict(),
            "delta": total(found),
            "files": {**draft.files, g.DELTA: g.file_entry(staging / g.DELTA)},
        }
    )
    replace_text(staging / g.MANIFEST, manifest.sealed().text())
    reached("index.manifest_written")


def _counted(groups: Iterable[pa.Table], found: list[dict[str, Any]]) -> Iterator[pa.Table]:
    for group in groups:
        found.append(counts(group))
        yield group


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


def superfluous(root: Path, keep: int, also: Collection[str] = ()) -> list[str]:
    """Generations that ``retain`` would remove, oldest first.

    Kept are the newest ``keep`` whole ones, the current one, the one before it, deltas made when it was current, which may be about to
    serve, those in ``also``, what each delta among these was made from, and those that a reader holds open.

    Raises:
        IndexCorrupt: the current one's manifest cannot be read.
    """
    there, now = g.generations(root), g.current(root)
    kept = {*also}
    if now is not None:
        manifest = g.read_manifest(root, now)
        kept |= {now, manifest.previous or now}
    bases = {generation: g.base_of(root, generation) for generation in there}
    kept |= set([generation for generation, base in bases.items() if base is None][-keep:])
    kept |= {generation for generation, base in bases.items() if base and g.read_manifest(root, generation).previous == now}
    kept |= {base for generation in kept if (base := bases.get(generation))}  # a delta that comes back is refreshed from its base
    return [generation for generation in there if generation not in kept and not is_open(g.generation_dir(root, generation))]


def retain(root: Path, keep: int, also: Collection[str] = ()) -> list[str]:
    """Remove the generations that are too many, see ``superfluous``; the caller holds ``locked(root)``.

    Returns:
        Ids that were removed.
    """
    home, gone = root / g.GENERATIONS, []
    for generation in superfluous(root, keep, also):
        with excluded(home / generation) as alone:
            if alone:
                # Renamed first: a reader that lists generations never meets one that is half removed.
                (home / generation).rename(home / f"{REMOVED}{generation}")
                gone.append(generation)
                reached("index.retired")
    for leftover in home.glob(f"{REMOVED}*"):
        shutil.rmtree(leftover)
    reached("index.retention_done")
    return gone


@contextmanager
def excluded(folder: Path) -> Iterator[bool]:
    """Keep readers from opening a generation; False if one has it open already (see ``reader.hold``)."""
    try:
        file = (folder / g.MANIFEST).open("rb")
    except OSError:  # without a manifest nobody opens it
        yield True
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            log.debug("%s: no lease: %s", folder, error)
        yield True


def is_open(folder: Path) -> bool:
    """Whether a reader on this host, or on another that shares the file system's locks, has a generation open."""
    with excluded(folder) as alone:
        return not alone


def _whole(root: Path, generation: str) -> bool:
    """Whether the generation is there and every byte is what its manifest says."""
    try:
        g.check_files(g.generation_dir(root, generation), g.read_manifest(root, generation))
    except (g.IndexMissing, g.IndexCorrupt) as error:
        log.info("index generation %s has to be written: %s", generation, error)
        return False
    return True


def _published(root: Path) -> KnownSids | None:
    """SIDs of the current generation and those it keeps for items that left; None if there is none, or none that can be read."""
    now = g.current(root)
    if now is None:
        return None
    try:
        sids = Sids.read(g.generation_dir(root, now), now)
        reserved = read_reserved(g.generation_dir(root, now) / g.MODEL)
    except (g.IndexMissing, g.IndexCorrupt, BundleError) as error:
        log.warning("collisions are resolved without the SIDs published before: %s", error)
        return None
    return KnownSids(sids.hash_M, sids.code_ML).over(reserved)


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


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link, since committed files never change; a copy on another file system."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            raise
        shutil.copyfile(source, target)
