"""What an index generation is on disk: its files, its manifest, its id, and the errors of a broken one.

``<index>/generations/<id>/`` holds one published state whole: SID maps, trie, node embeddings, the model bundle and the user
state of the same date. ``manifest.json`` is written last and names every file with size and SHA-256; ``<index>/CURRENT``
holds the id that serves. The id is ``<date>-v<version>-<digest>``, where the digest covers every file but the delta (which
depends on what was published before), so building the same content again gives the same id.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from dig_models.config import Strict

GENERATIONS, CURRENT, MANIFEST = "generations", "CURRENT", "manifest.json"
ITEM_TO_SID, SID_TO_ITEMS, DELTA = "item_to_sid.parquet", "sid_to_items.parquet", "delta.parquet"
ITEMS, TRIE, NODES, MODEL, STATE = "items", "trie", "nodes", "model", "state"
CROSS_ARRAYS, EMBEDDINGS = "cross_arrays", "items/embedding.npy"
FORMAT = 2
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
_ID = re.compile(r"(?P<date>[0-9]{4}-[0-9]{2}-[0-9]{2})-v(?P<version>[0-9A-Za-z_]+)-(?P<digest>[0-9a-f]{10})")


class IndexMissing(ValueError):
    """There is no such index or generation; the message says what is there and what to do."""


class NotIndexable(ValueError):
    """What was to be published cannot be: no items, or a model without semantic IDs."""


class IndexCorrupt(ValueError):
    """A generation on disk is not what its manifest says; the message names generation, file, what was expected and found."""

    def __init__(self, generation: str, file: str, *, expected: str, found: str) -> None:
        super().__init__(
            f"index generation {generation}, file {file}: expected {expected}, found {found}; nothing was changed: "
            "build the day again (python -m jobs.index), or roll back"
        )


def _inside(path: str) -> str:
    """A path that names a file below the generation folder on every system, or a refusal: nothing is resolved, nothing is looked up."""
    parts = path.split("/")
    plain = all(part and not part.startswith(".") and part.partition(".")[0].lower() not in _DEVICES for part in parts)
    if not plain or not path.isprintable() or any(c in path for c in '\\:*?"<>|') or path[-1] in ". ":
        raise ValueError(f"path {path!r} leaves the generation folder, or is a name that some system gives a meaning")
    return path


def _parts(generation: str) -> tuple[date, str] | None:
    """Date and model version that an id names; None if it is no id, or names a day that no calendar has."""
    match = _ID.fullmatch(generation)
    try:
        return (date.fromisoformat(match["date"]), match["version"]) if match else None
    except ValueError:
        return None


def _id(generation: str) -> str:
    """A generation id, or a refusal."""
    if _parts(generation) is None:
        raise ValueError(f"{generation[:80]!r} is no generation id: <date>-v<version>-<10 hex digits>")
    return generation


class FileEntry(Strict):
    """Size and checksum of one file."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0)]


class Manifest(Strict):
    """``manifest.json`` of a generation.

    Attributes:
        id: the generation's id, also the name of its folder.
        date: the day whose catalogue and user state it serves.
        model_name: registered model; with ``model_version`` the version that made the SIDs and scores with them.
        spec: digest of the feature spec; ``codebook`` digest of the model's codebooks and semantic tables.
        levels: SID length; ``codes``: codes per level; ``width``: of the embeddings.
        items: items in the catalogue; ``users``: users with a state.
        quality: collisions and code use, see ``dig_models.evaluate.sid_quality``; ``churn`` against ``previous``.
        delta: number of items ``added``, ``removed`` and ``moved`` (by first changed level) against ``previous``.
        previous: the generation that CURRENT named when this one was built.
        base: of a delta generation (new and withdrawn items alone), the whole one that it was made from; None of a whole one.
        content: SHA-256 over what the generation consists of, its first ten digits end the id.
        files: every file but the manifest, by path relative to the generation folder.
        seal: SHA-256 over the manifest's other keys.
    """

    format: Literal[2] = 2
    id: Annotated[str, AfterValidator(_id)]
    date: date
    model_name: str
    model_version: str
    spec: str
    codebook: str
    levels: int
    codes: int
    width: int
    items: int
    users: int
    quality: dict[str, Any]
    churn: dict[str, Any] | None
    delta: dict[str, Any]
    previous: str | None
    base: str | None
    content: str
    files: dict[Annotated[str, AfterValidator(_inside)], FileEntry]
    seal: str = ""

    def sealed(self) -> Manifest:
        """The same manifest with its seal."""
        return self.model_copy(update={"seal": self.expected_seal()})

    def expected_seal(self) -> str:
        """The seal that the other keys give."""
        return digest(self.model_dump(mode="json", exclude={"seal"}))

    def text(self) -> str:
        """Canonical JSON."""
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"


def digest(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of a value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_entry(path: Path) -> FileEntry:
    """Size and SHA-256 of a file."""
    with path.open("rb") as file:
        return FileEntry(sha256=hashlib.file_digest(file, "sha256").hexdigest(), size=path.stat().st_size)


def files_under(folder: Path) -> dict[str, Path]:
    """All files of a generation but its manifest, by relative POSIX path, sorted."""
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file() or p.is_symlink()}
    return {name: found[name] for name in sorted(found) if name != MANIFEST}


def content_of(files: dict[str, FileEntry], day: date, model_name: str, model_version: str, codebook: str) -> str:
    """Digest of what a generation consists of: date, model, codebook, and all files except the delta and the item embeddings.

    Embeddings follow from model and items, but their last bits also from the machine: a retry elsewhere must give the same id.
    """
    about = [day.isoformat(), model_name, model_version, codebook]
    return digest({"about": about, "files": {name: e.sha256 for name, e in files.items() if name not in (DELTA, EMBEDDINGS)}})


def generation_id(day: date, version: str, content: str) -> str:
    """``<date>-v<version>-<first ten digits of the content digest>``."""
    return f"{day.isoformat()}-v{version}-{content[:10]}"


def id_date(generation: str) -> date:
    """The date that an id names.

    Raises:
        IndexMissing: it is not a generation id.
    """
    return _require(generation)[0]


def id_version(generation: str) -> str:
    """The model version that an id names.

    Raises:
        IndexMissing: it is not a generation id.
    """
    return _require(generation)[1]


def _require(generation: str) -> tuple[date, str]:
    parts = _parts(generation)
    if parts is None:
        raise IndexMissing(f"{generation!r} is no index generation id; expected <date>-v<version>-<10 hex digits>")
    return parts


def generation_dir(root: Path, generation: str) -> Path:
    """Folder of a generation.

    Raises:
        IndexMissing: no valid id, or no such generation; the message lists those there are.
    """
    id_date(generation)
    folder = root / GENERATIONS / generation
    if not folder.is_dir():
        there = ", ".join(generations(root)) or "none"
        raise IndexMissing(f"{root}: there is no generation {generation}; generations there: {there}")
    return folder


def in_order(ids: Iterable[str]) -> list[str]:
    """The generation ids among some names, oldest date first; of one date, lower versions first."""

    def order(generation: str) -> tuple[date, int, str, str]:
        day, version = _require(generation)
        return day, int(version) if version.isdigit() else 0, version, generation

    return sorted((one for one in ids if _parts(one)), key=order)


def generations(root: Path) -> list[str]:
    """Ids of the generations on disk, in the order of ``in_order``."""
    home = root / GENERATIONS
    return in_order(p.name for p in home.iterdir()) if home.is_dir() else []


def base_of(root: Path, generation: str) -> str | None:
    """The whole generation that a delta generation was made from; None for a whole one, and for one that cannot be read."""
    try:
        return read_manifest(root, generation).base
    except IndexCorrupt:
        return None


def current(root: Path) -> str | None:
    """The id that ``CURRENT`` holds; None if nothing was published yet.

    Raises:
        IndexCorrupt: the file does not hold an id.
    """
    path = root / CURRENT
    return parse_current(path.read_bytes(), str(path)) if path.is_file() else None


def parse_current(data: bytes, place: str) -> str:
    """The id that the bytes of a ``CURRENT`` hold; ``place`` says whose.

    Raises:
        IndexCorrupt: they do not hold an id.
    """
    found = data.decode(errors="replace").strip()
    if _parts(found) is None:
        raise IndexCorrupt("(unknown)", place, expected="a generation id", found=repr(found[:80]))
    return found


def require_current(root: Path) -> str:
    """The id that ``CURRENT`` holds.

    Raises:
        IndexMissing: nothing was published yet.
    """
    found = current(root)
    if found is None:
        raise IndexMissing(
            f"{root}: no index was published yet (there is no {CURRENT}); run `make retrain`, or python -m jobs.promote --date D"
        )
    return found


def read_manifest(root: Path, generation: str) -> Manifest:
    """The manifest of a generation.

    Raises:
        IndexMissing: no such generation.
        IndexCorrupt: missing, unreadable, a path that leaves the folder, or changed after it was written.
    """
    path = generation_dir(root, generation) / MANIFEST
    if not path.is_file():
        raise IndexCorrupt(generation, MANIFEST, expected="a file", found="nothing")
    return parse_manifest(path.read_bytes(), generation)


def parse_manifest(data: bytes, generation: str) -> Manifest:
    """The manifest of a generation from its bytes.

    Raises:
        IndexCorrupt: unreadable, a path that leaves the folder, another generation's, or changed after it was written.
    """
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"]) or "JSON"
        raise IndexCorrupt(generation, MANIFEST, expected=f"a manifest of format {FORMAT}", found=f"{where}: {first['msg']}") from None
    if manifest.id != generation:
        raise IndexCorrupt(generation, MANIFEST, expected=f"id {generation}", found=f"id {manifest.id}")
    if manifest.seal != manifest.expected_seal():
        raise IndexCorrupt(generation, MANIFEST, expected=f"seal {manifest.expected_seal()[:12]}", found=f"seal {manifest.seal[:12]}")
    return manifest


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What ``show`` found: the manifest asked for, the id that serves, and every generation on disk, oldest date first."""

    root: Path
    current: str
    manifest: Manifest
    generations: tuple[str, ...]


def show(root: str | Path, generation: str | None = None) -> Shown:
    """What an index holds; ``generation`` is the current one by default.

    Raises:
        IndexMissing: nothing was published yet, or no such generation.
        IndexCorrupt: the manifest cannot be read.
    """
    root = Path(root)
    now = require_current(root)
    return Shown(root=root, current=now, manifest=read_manifest(root, generation or now), generations=tuple(generations(root)))


def check_files(folder: Path, manifest: Manifest, *, checksums: bool = True) -> None:
    """Compare the files of a generation with its manifest.

    Args:
        folder: the generation folder.
        manifest: what it should hold.
        checksums: whether to read every byte; else sizes only.

    Raises:
        IndexCorrupt: a file is missing, changed, not listed, or a link that leaves the folder.
    """
    there = _files(folder, manifest.id)
    for name, entry in manifest.files.items():
        if name not in there:
            raise IndexCorrupt(manifest.id, name, expected=f"a file of {entry.size} bytes", found="nothing")
        if there[name] != entry.size:
            raise IndexCorrupt(manifest.id, name, expected=f"{entry.size} bytes", found=f"{there[name]} bytes")
        if checksums and (found := file_entry(folder / name).sha256) != entry.sha256:
            raise IndexCorrupt(manifest.id, name, expected=f"sha256 {entry.sha256}", found=f"sha256 {found}")
    stray = sorted(there.keys() - manifest.files.keys())
    if stray:
        raise IndexCorrupt(manifest.id, stray[0], expected="only files that the manifest lists", found=f"{len(stray)} other file(s)")


def _files(folder: Path, generation: str, below: str = "") -> dict[str, int]:
    """Size of every file of a generation but its manifest, in one walk that follows no link.

    Raises:
        IndexCorrupt: something is neither a plain file nor a folder: a link, wherever it leads, a device, a pipe.
    """
    found: dict[str, int] = {}
    for entry in os.scandir(folder):
        name = below + entry.name
        if entry.is_symlink():
            raise IndexCorrupt(
                generation, name, expected="a file inside the generation folder", found=f"a link to {os.path.realpath(entry.path)}"
            )
        if entry.is_dir():
            found |= _files(Path(entry.path), generation, f"{name}/")
        elif not entry.is_file():
            raise IndexCorrupt(generation, name, expected="a plain file", found="a device, a pipe or a socket")
        elif name != MANIFEST:
            found[name] = entry.stat().st_size
    return found
