"""Copies of an index in a store that fsspec reaches (``s3://…``, ``file://…``), for hosts that do not mount the index.

A mirror is laid out as an index is: ``<url>/generations/<id>/…`` and ``<url>/CURRENT``. A store has no rename, but putting one object is
atomic. So ``push`` sends the files of a generation, reads them back, sends the manifest that names them, and at last puts ``CURRENT``: that
put is the switch. A reader that follows ``CURRENT`` finds a whole generation, whenever a push stops. ``pull`` brings what ``CURRENT`` names
into a local index, compares every byte with the manifest, and switches that index by its own atomic replace.

Endpoint and credentials come from the environment, as the store's library reads them (``AWS_ENDPOINT_URL``, ``FSSPEC_S3_…``).
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from dig_models.faults import reached
from dig_models.files import exclusive, replace_text, sync_tree
from dig_models.index import generation as g

if TYPE_CHECKING:
    from dig_models.index.reader import IndexReader

log = logging.getLogger(__name__)
PULLING, LOCK = ".pulling", ".mirror.lock"
PROMOTIONS = "promotions.jsonl"  # the log of an index whose CURRENT moves with the champion alias
ATTEMPTS = 5


class MirrorFailed(RuntimeError):
    """The store of a mirror did not do what it was asked; the message names the mirror and what the store said."""


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What a push did.

    Attributes:
        sent: files that were sent; the others were there, byte for byte.
        sent_bytes: size of those.
        switched: False if ``CURRENT`` of the mirror named the generation already.
        removed: generations that were removed from the mirror.
    """

    url: str
    generation: str
    sent: int
    sent_bytes: int
    switched: bool
    removed: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """What a pull did.

    Attributes:
        received: files that were fetched; 0 if the generation was there.
        switched: False if the local index served the generation already.
    """

    url: str
    generation: str
    received: int
    received_bytes: int
    switched: bool


def push(root: Path, url: str, generation: str | None = None, *, keep: int | None = None, only_behind: bool = False) -> Pushed:
    """Copy a generation to a mirror and make it the one that the mirror serves.

    Files that the mirror has with the right size and checksum are not sent again, so a push that was cut short goes on where it stopped.

    Args:
        root: the index.
        url: the mirror.
        generation: the one to push; by default the one that serves when the push has its turn.
        keep: newest generations that stay in the mirror, with its current one and the one before it; all of them by default.
        only_behind: do nothing if the mirror serves the generation already; else what it holds is read, and mended where it is damaged.

    Raises:
        IndexMissing: nothing was published yet, or there is no such generation.
        IndexCorrupt: the generation is damaged; nothing was sent.
        MirrorFailed: the store refused, or gave back other bytes than it was sent; ``CURRENT`` of the mirror is as it was.
    """
    g.read_manifest(root, generation or g.require_current(root))  # a mistake leaves nothing behind, not even a lock
    with exclusive(root / LOCK):
        wanted = generation or g.require_current(root)
        manifest, folder = g.read_manifest(root, wanted), g.generation_dir(root, wanted)
        if only_behind and _is_served(url, wanted):
            return Pushed(url=url, generation=wanted, sent=0, sent_bytes=0, switched=False, removed=())
        g.check_files(folder, manifest)
        with _store(url) as store:
            sent = _send(store, folder, manifest)
            switched = store.bytes(g.CURRENT) != f"{wanted}\n".encode()
            if switched:
                store.put_text(g.CURRENT, f"{wanted}\n")
                reached("mirror.current")
            removed = store.remove(store.superfluous(keep, {wanted, manifest.previous, manifest.base})) if keep else []
    size = sum(manifest.files[name].size for name in sent)
    log.info("mirror %s serves %s; %d of %d files sent, %d bytes", url, wanted, len(sent), len(manifest.files), size)
    return Pushed(url=url, generation=wanted, sent=len(sent), sent_bytes=size, switched=switched, removed=tuple(removed))


def _is_served(url: str, generation: str) -> bool:
    """Whether a mirror's ``CURRENT`` names a generation whose manifest is there: the push that put them had read all files back."""
    with _store(url) as store:
        named = store.bytes(g.CURRENT) == f"{generation}\n".encode()
        return named and store.size(f"{g.GENERATIONS}/{generation}/{g.MANIFEST}") is not None


def pull(url: str, root: Path, generation: str | None = None, *, keep: int | None = None) -> Pulled:
    """Bring a generation from a mirror and make it the one that the local index serves.

    A pull that was cut short goes on where it stopped. If the mirror switches while the pull is under way, the pull follows.

    Args:
        url: the mirror.
        root: the local index.
        generation: the one to bring; by default what ``CURRENT`` of the mirror names.
        keep: newest generations that stay in the local index, with its current one and the one before it; all of them by default.

    Raises:
        NotIndexable: the local index is one that promotions are made in.
        IndexMissing: the mirror serves nothing yet, or holds no such generation.
        IndexCorrupt: it is damaged there; the local index serves what it served before.
        MirrorFailed: the store did not answer.
    """
    from dig_models.index.writer import locked  # loads torch, which a push does not need

    if (root / PROMOTIONS).is_file():
        raise g.NotIndexable(
            f"{root}: promotions are made here ({PROMOTIONS}), so a pull must not switch what serves; pull into an index of its own "
            "(--set paths.index=…), or promote the generation: dig promote --generation ID"
        )

    with _store(url) as store:
        store.manifest(generation) if generation else store.serves()  # as above
        with locked(root):
            done = _pull(store, root, generation, keep)
    log.info("%s serves %s of mirror %s; %d files, %d bytes fetched", root, done.generation, url, done.received, done.received_bytes)
    return done


def collect(root: Path, url: str, keep: int, *, dry_run: bool = False) -> list[str]:
    """Remove the generations of a mirror that are too many.

    Kept are the newest ``keep`` whole ones, its current one, the one before that, and the one that it was made from if it is a delta.

    Args:
        root: the index that pushes there: no push of it is under way meanwhile, since a generation that is half sent may look superfluous.
        url: the mirror.
        keep: whole generations that stay.
        dry_run: only say which would go.

    Returns:
        Ids that were removed, or would be, oldest first.

    Raises:
        BlockingIOError: a push is under way; nothing was removed.
        IndexMissing: the mirror serves nothing, so nothing says what is needed.
        IndexCorrupt: what it serves is damaged.
        MirrorFailed: the store refused or did not answer.
    """
    with exclusive(root / LOCK, wait=False), _store(url) as store:
        now = store.manifest(store.serves())
        gone = store.superfluous(keep, {now.id, now.previous, now.base})
        return gone if dry_run else store.remove(gone)


def open_remote(url: str, cache: Path, generation: str | None = None, *, keep: int = 2) -> IndexReader:
    """Open what a mirror serves, or one of its generations, through a local folder; the mirror's ``CURRENT`` is read each time.

    What the folder lacks is fetched and every byte of it is compared with its manifest; a file that another generation there has is not
    fetched again. What is there was checked when it came, and is opened at once.

    Args:
        url: the mirror.
        cache: a folder of this host, used for this mirror alone.
        generation: id; None for what the mirror serves.
        keep: newest whole generations that stay in the folder; what a reader has open stays in any case.

    Raises:
        IndexMissing: nothing was pushed yet, or there is no such generation.
        IndexCorrupt: it is damaged in the mirror; nothing of it is kept.
        MirrorFailed: the store did not answer.
    """
    from dig_models.index.reader import IndexReader
    from dig_models.index.writer import locked, retain

    with _store(url) as store:
        wanted = generation or store.serves()
        if wanted not in g.generations(cache):
            with locked(cache):
                wanted = _follow(store, cache, generation)[0]
                shutil.rmtree(cache / PULLING, ignore_errors=True)
    with locked(cache):
        reader = IndexReader.open(cache, wanted)
        retain(cache, keep, also={wanted})
    return reader


class _Store:
    """A mirror's objects, by path below its URL."""

    def __init__(self, url: str) -> None:
        self.url = url
        local = fsspec.utils.get_protocol(url) in ("file", "local")
        # No remembered listings: another host may have pushed since.
        options: dict[str, Any] = {"auto_mkdir": True} if local else {"use_listings_cache": False, "skip_instance_cache": True}
        self.fs, base = fsspec.core.url_to_fs(url, **options)
        self.base = base.rstrip("/")

    def at(self, path: str) -> str:
        return f"{self.base}/{path}"

    def size(self, path: str) -> int | None:
        try:
            return int(self.fs.info(self.at(path))["size"])
        except FileNotFoundError:
            return None

    def bytes(self, path: str) -> bytes | None:
        try:
            return bytes(self.fs.cat_file(self.at(path)))
        except FileNotFoundError:
            return None

    def holds(self, path: str, entry: g.FileEntry) -> bool:
        """Whether the object is there, byte for byte: it is read to the end."""
        if self.size(path) != entry.size:
            return False
        with self.fs.open(self.at(path), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256

    def put_file(self, path: str, source: Path) -> None:
        self.fs.put_file(str(source), self.at(path))

    def put_text(self, path: str, text: str) -> None:
        """Put a small object; a reader sees the old or the new one."""
        if isinstance(self.fs, LocalFileSystem):  # where writing to a file is not atomic
            Path(self.at(path)).parent.mkdir(parents=True, exist_ok=True)
            replace_text(Path(self.at(path)), text)
        else:
            self.fs.pipe_file(self.at(path), text.encode())

    def current(self) -> str | None:
        data = self.bytes(g.CURRENT)
        return None if data is None else g.parse_current(data, f"{self.url}/{g.CURRENT}")

    def serves(self) -> str:
        """The id that ``CURRENT`` holds.

        Raises:
            IndexMissing: nothing was pushed yet.
        """
        found = self.current()
        if found is None:
            raise g.IndexMissing(f"mirror {self.url} serves nothing yet (there is no {g.CURRENT}); push an index there first")
        return found

    def generations(self) -> list[str]:
        try:
            found = self.fs.ls(self.at(g.GENERATIONS), detail=False)
        except FileNotFoundError:
            return []
        return g.in_order(path.rstrip("/").rpartition("/")[2] for path in found)

    def manifest(self, generation: str) -> g.Manifest:
        g.id_date(generation)
        data = self.bytes(f"{g.GENERATIONS}/{generation}/{g.MANIFEST}")
        if data is None:
            there = ", ".join(self.generations()) or "none"
            raise g.IndexMissing(f"mirror {self.url} holds no whole generation {generation}; generations there: {there}")
        return g.parse_manifest(data, generation)

    def whole(self, generation: str) -> bool:
        """Whether the generation is there and every byte is what its manifest says."""
        try:
            files = self.manifest(generation).files
        except (g.IndexMissing, g.IndexCorrupt):
            return False
        return all(self.holds(f"{g.GENERATIONS}/{generation}/{name}", entry) for name, entry in files.items())

    def superfluous(self, keep: int, needed: set[str | None]) -> list[str]:
        """All but the newest ``keep`` whole generations and those that are needed, oldest first; half a one counts as whole."""
        there = self.generations()
        whole = [generation for generation in there if self._base(generation) is None]
        kept = {*whole[-keep:], *needed}
        return [generation for generation in there if generation not in kept]

    def _base(self, generation: str) -> str | None:
        try:
            return self.manifest(generation).base
        except (g.IndexMissing, g.IndexCorrupt):
            return None

    def remove(self, gone: list[str]) -> list[str]:
        """Remove generations, the manifest first: what is half removed must not pass for whole."""
        for generation in gone:
            home = f"{g.GENERATIONS}/{generation}"
            if self.size(f"{home}/{g.MANIFEST}") is not None:
                self.fs.rm_file(self.at(f"{home}/{g.MANIFEST}"))
            with suppress(FileNotFoundError):  # an object store has no empty folders: the manifest was all there was
                self.fs.rm(self.at(home), recursive=True)
        return gone


@contextmanager
def _store(url: str) -> Iterator[_Store]:
    try:
        yield _Store(url)
    except (g.IndexMissing, g.IndexCorrupt, MirrorFailed):
        raise
    except Exception as error:  # each store's library has errors of its own
        raise MirrorFailed(f"mirror {url}: {type(error).__name__}: {error}") from error


def _send(store: _Store, folder: Path, manifest: g.Manifest) -> list[str]:
    """Bring the files of a generation into the mirror, then its manifest; returns the files that had to be sent."""
    home = f"{g.GENERATIONS}/{manifest.id}"
    sent: list[str] = []
    if store.whole(manifest.id):  # perhaps with another delta, made when another generation was current: one that may serve is not touched
        return sent
    for name, entry in manifest.files.items():
        if store.holds(f"{home}/{name}", entry):
            continue
        store.put_file(f"{home}/{name}", folder / name)
        if not store.holds(f"{home}/{name}", entry):
            raise MirrorFailed(
                f"mirror {store.url}: {home}/{name} reads back otherwise than it was sent, {entry.size} bytes with sha256 "
                f"{entry.sha256[:12]}; CURRENT there is as it was: push again"
            )
        sent.append(name)
        reached("mirror.file")
    text = (folder / g.MANIFEST).read_text(encoding="utf-8")
    if store.bytes(f"{home}/{g.MANIFEST}") != text.encode():
        store.put_text(f"{home}/{g.MANIFEST}", text)
        reached("mirror.manifest")
    return sent


def _pull(store: _Store, root: Path, generation: str | None, keep: int | None) -> Pulled:
    from dig_models.index.verify import verify
    from dig_models.index.writer import retain, switch

    there = g.generations(root)
    wanted, received, size = _follow(store, root, generation)
    shutil.rmtree(root / PULLING, ignore_errors=True)
    switched = g.current(root) != wanted
    if switched:
        if wanted in there:  # nobody knows who brought it; what has just come was verified before it got its name
            verify(root, wanted)
        switch(root, wanted)
    if keep:
        retain(root, keep)
    return Pulled(url=store.url, generation=wanted, received=received, received_bytes=size, switched=switched)


def _follow(store: _Store, root: Path, generation: str | None) -> tuple[str, int, int]:
    """Fetch a generation, or what ``CURRENT`` names, also if that changes meanwhile; returns id, files and bytes fetched."""
    for _ in range(ATTEMPTS):
        wanted = generation or store.serves()
        try:
            return (wanted, *_fetch(store, root, wanted))
        except (g.IndexMissing, g.IndexCorrupt, FileNotFoundError):
            if generation or store.current() == wanted:
                raise
            log.info("mirror %s has left %s behind; following", store.url, wanted)
    raise MirrorFailed(f"mirror {store.url} switched {ATTEMPTS} times while it was pulled; pull again")


def _fetch(store: _Store, root: Path, generation: str) -> tuple[int, int]:
    """Bring one generation into its local place, whole and verified; returns files and bytes fetched."""
    from dig_models.index.writer import install, link_or_copy

    manifest = store.manifest(generation)
    if _whole(root, manifest):
        return 0, 0
    staging = root / PULLING / g.GENERATIONS / generation  # laid out as an index, so that it can be verified there
    staging.mkdir(parents=True, exist_ok=True)
    files, size, here = 0, 0, _files_here(root)
    for name, entry in manifest.files.items():
        target = staging / name
        if target.is_file() and g.file_entry(target) == entry:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if entry.sha256 in here:  # another generation has the same file, as a delta generation has those of its base
            target.unlink(missing_ok=True)
            link_or_copy(here[entry.sha256], target)
            if g.file_entry(target) == entry:
                continue
            target.unlink()
        store.fs.get_file(store.at(f"{g.GENERATIONS}/{generation}/{name}"), str(target))
        if (found := g.file_entry(target)) != entry:
            raise g.IndexCorrupt(
                generation,
                f"{store.url}/{g.GENERATIONS}/{generation}/{name}",
                expected=f"{entry.size} bytes, sha256 {entry.sha256}",
                found=f"{found.size} bytes, sha256 {found.sha256}",
            )
        files, size = files + 1, size + entry.size
        reached("pull.file")
    replace_text(staging / g.MANIFEST, manifest.text())
    _sound(root / PULLING, generation)
    sync_tree(staging)
    install(root, staging, generation)
    reached("pull.installed")
    return files, size


def _sound(place: Path, generation: str) -> None:
    """Verify what has just come: right checksums do not make it sound, whoever can write to the mirror makes those too.

    What has its name among the generations is opened without another look, so this comes first; what is not sound does not stay.
    """
    from dig_models.index.verify import verify

    try:
        verify(place, generation)
    except g.IndexCorrupt:
        shutil.rmtree(place)
        raise


def _files_here(root: Path) -> dict[str, Path]:
    """Files of the local generations by their SHA-256, as the manifests have it."""
    found: dict[str, Path] = {}
    for generation in g.generations(root):
        with suppress(g.IndexCorrupt):
            home = g.generation_dir(root, generation)
            found |= {
                entry.sha256: home / name for name, entry in g.read_manifest(root, generation).files.items() if (home / name).is_file()
            }
    return found


def _whole(root: Path, manifest: g.Manifest) -> bool:
    try:
        g.check_files(g.generation_dir(root, manifest.id), g.read_manifest(root, manifest.id))
    except (g.IndexMissing, g.IndexCorrupt):
        return False
    return True
