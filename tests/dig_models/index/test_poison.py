"""Poisoned artefacts: whoever can write into an index, manifest and checksums included, still cannot run code or reach other files."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dig_models.index import generation as g
from dig_models.index import mirror
from dig_models.index.mirror import open_remote, pull
from dig_models.index.reader import IndexReader
from dig_models.index.verify import verify
from dig_models.index.writer import Release
from tests.dig_models.index.conftest import forge

Publish = Callable[[Path, Release], str]
Poison = Callable[[Path, Path], None]

ARRAYS = ["items/hash.npy", "items/id.bytes.npy", "items/id.start.npy", "items/by_id.npy", "items/sid.npy", "items/embedding.npy"]
ARRAYS += [
    "items/field0.npy",
    "items/keys.npy",
    "trie/order.npy",
    "trie/token1.npy",
    "trie/start0.npy",
    "trie/child0.npy",
    "nodes/level0.npy",
]
ARRAYS += ["state/user.start.npy", "state/fields.npy", "state/history.item.npy", "state/cross_arrays/pop.days.npy"]
TABLES = [g.ITEM_TO_SID, g.SID_TO_ITEMS, g.DELTA]
OTHERS = ["model/model.safetensors", "model/model.json", "state/cross_arrays/meta.json"]


class Killed(BaseException):
    """Not an Exception: nothing may catch it and go on."""


class Trap:
    """Unpickling it leaves a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, release: Release, publish: Publish) -> tuple[Path, str]:
    root = tmp_path_factory.mktemp("sound")
    return root, publish(root, release)


@pytest.fixture
def root(sound: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy, so that no hard link is written through."""
    shutil.copytree(sound[0], tmp_path / "index")
    return tmp_path / "index"


def pickled(path: Path, marker: Path) -> None:
    path.write_bytes(pickle.dumps(Trap(marker)))


def torch_saved(path: Path, marker: Path) -> None:
    torch.save({"weight": Trap(marker)}, path)


def objects(path: Path, marker: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.array([Trap(marker)], dtype=object), allow_pickle=True)


def header(path: Path, marker: Path) -> None:
    """A header that is an expression, not a literal."""
    text = f"{{'descr': '<i8', 'fortran_order': False, 'shape': __import__('os').mkdir({str(marker)!r})}}".encode()
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)


def nested(path: Path, marker: Path) -> None:
    """A header, or JSON, that is nested so deep that a parser runs out of stack."""
    text = b"(" * 9000
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text if path.suffix == ".npy" else b"[" * 200_000)


def huge(path: Path, marker: Path) -> None:
    """An array that says it is larger than any memory."""
    text = b"{'descr': '<i8', 'fortran_order': False, 'shape': (1152921504606846976,)}"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)


def extension(path: Path, marker: Path) -> None:
    """A table whose column says it is of a pickled type (as in CVE-2023-47248)."""
    told = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickle.dumps(Trap(marker))}
    table = pq.read_table(path, partitioning=None)
    field = table.schema.field(0).with_metadata(told)
    pq.write_table(pa.table(table.columns, schema=table.schema.set(0, field)).slice(1), path)


CASES = [(name, objects) for name in ARRAYS]
CASES += [(name, poison) for name in ("items/sid.npy", "state/cross_arrays/pop.days.npy") for poison in (pickled, header, nested, huge)]
CASES += [(name, poison) for name in TABLES for poison in (pickled, extension)]
CASES += [(name, poison) for name in OTHERS for poison in (pickled, torch_saved, nested)]


@pytest.mark.parametrize(("name", "poison"), CASES, ids=[f"{name}: {poison.__name__}" for name, poison in CASES])
def test_a_poisoned_file_runs_no_code_and_is_named(root: Path, tmp_path: Path, name: str, poison: Poison) -> None:
    marker = tmp_path / "ran"
    path = root / g.GENERATIONS / g.require_current(root) / name
    poison(path, marker)
    forge(root)
    with pytest.raises(g.IndexCorrupt) as raised:
        verify(root)
    assert not marker.exists()
    assert Path(name).stem.partition(".")[0] in str(raised.value) or name.partition("/")[0] in str(raised.value)
    if name not in TABLES:  # those are not read to serve
        with pytest.raises(g.IndexCorrupt):
            IndexReader.open(root)
    assert not marker.exists()


def test_the_trap_works(tmp_path: Path) -> None:
    pickled(tmp_path / "file", tmp_path / "ran")
    pickle.loads((tmp_path / "file").read_bytes())
    assert (tmp_path / "ran").is_dir()


@pytest.mark.parametrize("name", [g.MANIFEST, g.CURRENT])
def test_a_poisoned_manifest_or_pointer_runs_no_code(root: Path, tmp_path: Path, name: str) -> None:
    path = root / g.CURRENT if name == g.CURRENT else root / g.GENERATIONS / g.require_current(root) / name
    for poison in (pickled, nested):
        poison(path, tmp_path / "ran")
        with pytest.raises(g.IndexCorrupt, match=name):
            IndexReader.open(root)
    assert not (tmp_path / "ran").exists()


BAD_PATHS = [
    "../outside",
    "/etc/passwd",
    "items/../../x",
    "items/./x",
    "items//x",
    "a\\..\\b",
    "C:/x",
    "c:x",
    "con",
    "items/NUL.npy",
    "COM1.txt",
]
BAD_PATHS += ["items/x\n", "x\0y", ".hidden", "items/.lock", "", "x.", "x ", "a*b", "a|b", "~/../x"]


@pytest.mark.parametrize("path", BAD_PATHS)
def test_a_path_that_leaves_the_generation_is_refused_here_and_from_a_mirror(root: Path, tmp_path: Path, path: str) -> None:
    forged = forge(root, {g.DELTA: path})
    with pytest.raises(g.IndexCorrupt, match="leaves the generation folder"):
        IndexReader.open(root)
    for bring in (pull, open_remote):
        with pytest.raises(g.IndexCorrupt, match="leaves the generation folder"):
            bring(f"file://{root}", tmp_path / "cache")
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.name != ".lock"]
    assert g.generations(root) == [forged]


@pytest.mark.parametrize("name", [g.DELTA, "items/sid.npy", "model/model.safetensors", "state/cross_arrays/meta.json"])
@pytest.mark.parametrize("where", ["outside", "inside", "nowhere"])
def test_a_link_is_refused_wherever_it_leads(root: Path, tmp_path: Path, name: str, where: str) -> None:
    path = root / g.GENERATIONS / g.require_current(root) / name
    place = {"outside": tmp_path / "outside", "inside": path.with_name("other.npy"), "nowhere": tmp_path / "nowhere"}[where]
    path.rename(place)
    path.symlink_to(place)
    forge(root)
    if where == "nowhere":
        place.unlink()
    with pytest.raises(g.IndexCorrupt, match="expected a file inside the generation folder, found a link"):
        IndexReader.open(root)


def test_a_folder_that_is_a_link_is_refused(root: Path, tmp_path: Path) -> None:
    folder = root / g.GENERATIONS / g.require_current(root) / "items"
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(g.IndexCorrupt, match="file items: expected a file inside the generation folder, found a link"):
        IndexReader.open(root)


def test_a_pipe_is_refused_and_not_waited_for(root: Path) -> None:
    path = root / g.GENERATIONS / g.require_current(root) / g.DELTA
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(g.IndexCorrupt, match="a plain file, found a device, a pipe or a socket"):
        IndexReader.open(root)


def test_a_mirror_that_was_poisoned_is_not_switched_to(root: Path, sound: tuple[Path, str], tmp_path: Path) -> None:
    cache, marker = tmp_path / "cache", tmp_path / "ran"
    pull(f"file://{sound[0]}", cache)
    objects(root / g.GENERATIONS / g.require_current(root) / "items" / "sid.npy", marker)
    forge(root)
    for bring in (pull, open_remote):
        with pytest.raises(g.IndexCorrupt, match="sid"):
            bring(f"file://{root}", cache if bring is pull else tmp_path / "other")
    assert g.current(cache) == sound[1] and not marker.exists()
    assert g.generations(tmp_path / "other") == []


@pytest.mark.parametrize("bring", [pull, open_remote])
def test_what_is_unsound_never_gets_its_name_so_a_crash_cannot_let_it_in(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bring: Callable[[str, Path], object]
) -> None:
    """Every checksum is right; the process dies as soon as the generation has its name."""
    path = root / g.GENERATIONS / g.require_current(root) / "items" / "sid.npy"
    array = np.load(path)
    array[1:3] = array[2:0:-1]
    array[1] = (array[1] + 1) % 4
    np.save(path, array)
    forge(root)
    cache, seen = tmp_path / "cache", []

    def dies(name: str) -> None:
        seen.append(name)
        if name == "pull.installed":
            raise Killed(name)

    with monkeypatch.context() as patch:
        patch.setattr(mirror, "reached", dies)
        with pytest.raises(g.IndexCorrupt):
            bring(f"file://{root}", cache)
    assert "pull.file" in seen and g.generations(cache) == [] and not (cache / mirror.PULLING).exists()
    with pytest.raises(g.IndexCorrupt):
        bring(f"file://{root}", cache)
    assert g.current(cache) is None


def test_numbers_that_point_elsewhere_are_found_before_they_serve(root: Path) -> None:
    """Right types and lengths, but rows that no table has."""
    for name, bad in (("state/history.item.npy", 10**9), ("items/by_id.npy", 10**9), ("trie/order.npy", -5), ("items/sid.npy", 500)):
        copy = root.with_name(f"copy-{Path(name).stem}")
        shutil.copytree(root, copy)
        path = copy / g.GENERATIONS / g.require_current(copy) / name
        array = np.load(path)
        array.reshape(-1)[-1] = bad
        np.save(path, array)
        forge(copy)
        with pytest.raises(g.IndexCorrupt):
            verify(copy)


def test_no_module_of_the_index_unpickles() -> None:
    """What could is named nowhere in the rooms that read an index."""
    package = Path(g.__file__).parents[1]
    read = [*package.glob("*.py"), *(package / "index").glob("*.py"), *(package / "retrieve").glob("*.py")]
    for path in read:
        text = path.read_text()
        assert "import pickle" not in text and "torch.load(" not in text and "allow_pickle=True" not in text, path


@pytest.mark.parametrize("kind", ["other", "beyond", "short", "twice", "text", "bytes"])
def test_a_reserve_of_sids_that_is_none_or_contradicts_the_catalogue_is_refused(root: Path, kind: str) -> None:
    folder, reader = g.generation_dir(root, g.require_current(root)), IndexReader.open(root)
    codes, sid_XL = reader.manifest.codes, reader.bundle.codes_NL[1:3].astype(np.int64)
    sid_XL = {"other": (sid_XL + 1) % codes, "beyond": sid_XL + codes, "short": sid_XL[:, :1]}.get(kind, sid_XL)
    hash_X = np.repeat(reader.bundle.items.hash_N[1], 2) if kind == "twice" else reader.bundle.items.hash_N[1:3]
    columns = {f"s_{level + 1}": pa.array(sid_XL[:, level]) for level in range(sid_XL.shape[1])}
    path = folder / g.MODEL / "reserved.parquet"
    pq.write_table(pa.table({"item_hash": pa.array(["a", "b"]) if kind == "text" else pa.array(hash_X), **columns}), path)
    if kind == "bytes":
        path.write_bytes(b"PAR1")
    settings = json.loads((folder / g.MODEL / "model.json").read_text())
    settings["sha256"][path.name] = g.file_entry(path).sha256
    (folder / g.MODEL / "model.json").write_text(json.dumps(settings))
    forge(root)
    with pytest.raises(g.IndexCorrupt, match=r"model/reserved\.parquet"):
        verify(root)
