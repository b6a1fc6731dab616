"""The reader of the docs, which knows NumPy and the format alone, finds what the real one finds."""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from dig_models.index import generation as g
from dig_models.index.reader import IndexReader
from dig_models.index.writer import Release

Publish = Callable[[Path, Release], str]
SOURCE = Path(__file__).parents[3] / "docs" / "examples" / "read_index.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("read_index", SOURCE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_needs_numpy_and_the_standard_library_alone() -> None:
    nodes = [node for node in ast.walk(ast.parse(SOURCE.read_text())) if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {
        name.partition(".")[0]
        for node in nodes
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
    }
    assert names - sys.stdlib_module_names == {"numpy"}


def test_it_finds_what_the_real_reader_finds(tmp_path: Path, release: Release, publish: Publish, example: ModuleType) -> None:
    reader = IndexReader.open(tmp_path, publish(tmp_path, release))
    index = example.Index(tmp_path)
    index.verify()
    ids = reader.bundle.items.id_N[1:]
    code_ML, trie = reader.bundle.codes_NL[1:], reader.retriever.trie
    assert [index.sid(item) for item in ids] == [tuple(codes) for codes in code_ML.tolist()]
    for level in range(trie.levels):
        prefixes = trie.codes(level)
        for node, prefix in enumerate(prefixes):
            below = (code_ML[:, : level + 1] == prefix).all(axis=1)
            assert sorted(index.items(prefix.tolist())) == sorted(ids[below])
            if level + 1 < trie.levels:
                children, _ = trie.children(level, np.array([node]))
                assert index.next_codes(prefix.tolist()) == trie.token[level + 1][children].tolist()
            else:
                assert index.items(prefix.tolist()) == list(reader.bundle.items.id_N[trie.postings(np.array([node]))[0]])
    assert index.next_codes([]) == trie.token[0].tolist()


def test_what_does_not_exist_is_not_found(tmp_path: Path, release: Release, publish: Publish, example: ModuleType) -> None:
    publish(tmp_path, release)
    index = example.Index(tmp_path)
    assert index.sid("nobody sells this") is None
    assert index.items([5000]) == index.items([*index.sid("i1")[:2], 5000]) == []
    assert index.next_codes([5000]) == index.next_codes(index.sid("i1")) == []


def test_a_prefix_may_be_empty_or_too_long(tmp_path: Path, release: Release, publish: Publish, example: ModuleType) -> None:
    reader = IndexReader.open(tmp_path, publish(tmp_path, release))
    index, sid = example.Index(tmp_path), reader.sid(1)
    assert index.items([]) == list(reader.bundle.items.id_N[reader.retriever.trie.order_M])
    for longer in ([*sid, 0], [*sid, sid[0], sid[1]], [5000, *sid]):
        assert index.items(longer) == index.next_codes(longer) == []


def sealed(manifest: dict[str, Any]) -> str:
    """A manifest whose seal fits, as whoever may write to an index can make one."""
    rest = {key: value for key, value in manifest.items() if key != "seal"}
    return json.dumps(rest | {"seal": g.digest(rest)})


@pytest.mark.parametrize("way", ["../../../secret", "items/../../../../secret", "absolute", "linked", "linked/secret"])
def test_a_manifest_leads_to_no_file_outside(way: str, tmp_path: Path, release: Release, publish: Publish, example: ModuleType) -> None:
    root = tmp_path / "index"
    folder = root / g.GENERATIONS / publish(root, release)
    secret = tmp_path / "secret"
    secret.write_text("not yours")
    name = str(secret) if way == "absolute" else way
    if way.startswith("linked"):
        (folder / "linked").symlink_to(tmp_path if way == "linked/secret" else secret)
    assert (folder / name).read_text() == "not yours"
    manifest = json.loads((folder / g.MANIFEST).read_text())
    manifest["files"][name] = g.file_entry(secret).model_dump()
    (folder / g.MANIFEST).write_text(sealed(manifest))
    with pytest.raises(ValueError, match=r"found in manifest\.json, expected a plain file below"):
        example.Index(root).verify()


@pytest.mark.parametrize("found", ["../../elsewhere", "/etc", "", "..", "2017-03-20-v1-0123456789/../x", "٢٠١٧-03-20-v1-0123456789"])
def test_what_names_the_generation_is_no_path(found: str, tmp_path: Path, release: Release, publish: Publish, example: ModuleType) -> None:
    publish(tmp_path, release)
    (tmp_path / g.CURRENT).write_text(found + "\n")
    with pytest.raises(ValueError, match="expected the id of a generation"):
        example.Index(tmp_path)


def test_it_finds_what_was_changed(tmp_path: Path, release: Release, publish: Publish, example: ModuleType) -> None:
    folder = tmp_path / g.GENERATIONS / publish(tmp_path, release)
    path = folder / "items" / "sid.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"items/sid\.npy was changed"):
        example.Index(tmp_path).verify()
    path.write_bytes(whole)
    manifest = folder / g.MANIFEST
    manifest.write_text(manifest.read_text().replace('"items": 60', '"items": 61'))
    with pytest.raises(ValueError, match=r"manifest\.json was changed"):
        example.Index(tmp_path).verify()
