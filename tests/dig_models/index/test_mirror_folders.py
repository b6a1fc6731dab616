"""Reading what a mirror serves through a local folder, and clearing up there and in the mirror."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import synthetic

from dig_models.index import generation as g
from dig_models.index import mirror
from dig_models.index import verify as verifying
from dig_models.index.mirror import collect, open_remote, pull, push
from dig_models.index.reader import IndexReader
from dig_models.index.refresh import Fresh, refresh
from dig_models.index.verify import verify
from dig_models.index.writer import Release, locked, switch
from jobs import cli
from tests.dig_models.index.conftest import Killed, Publish, local_files, objects, put


def test_a_reader_opens_what_a_mirror_serves_through_a_folder(index: tuple[Path, str, str], url: str, tmp_path: Path) -> None:
    root, first, second = index
    cache = tmp_path / "cache"
    push(root, url, first)
    old = open_remote(url, cache)
    push(root, url, second)
    new = open_remote(url, cache, keep=1)
    assert (old.manifest.id, new.manifest.id) == (first, second)
    for reader in (old, new):
        there = IndexReader.open(root, reader.manifest.id)
        asked = (reader.retriever.retrieve(reader.state, np.array([1]), k=5, beam=5, rerank=5) for reader in (reader, there))
        one, two = asked
        assert one.item_GJ.tolist() == two.item_GJ.tolist()
    assert g.generations(cache) == [first, second], "the old one is open"
    del old, reader, there
    open_remote(url, cache, keep=1)
    assert g.generations(cache) == [second]
    assert g.current(cache) is None, "a folder that is read through serves nothing of its own"


def test_what_was_fetched_once_is_not_fetched_again(
    index: tuple[Path, str, str], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _, second = index
    push(root, url)
    open_remote(url, tmp_path / "cache")
    monkeypatch.setattr(mirror, "_fetch", lambda *args: pytest.fail("fetched again"))
    assert open_remote(url, tmp_path / "cache").manifest.id == second


def test_what_had_its_name_when_the_process_died_was_verified_and_is_opened(
    index: tuple[Path, str, str], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _, second = index
    push(root, url)
    cache = tmp_path / "cache"

    def dies(name: str) -> None:
        if name == "pull.installed":
            raise Killed(name)

    with monkeypatch.context() as patch:
        patch.setattr(mirror, "reached", dies)
        with pytest.raises(Killed):
            open_remote(url, cache)
    assert g.generations(cache) == [second]
    verify(cache, second)
    monkeypatch.setattr(mirror, "_fetch", lambda *args: pytest.fail("fetched again"))
    assert open_remote(url, cache).manifest.id == second


def test_a_pull_verifies_a_generation_that_it_did_not_bring(
    index: tuple[Path, str, str], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, first, second = index
    cache, looked = tmp_path / "cache", []
    real = verifying.verify

    def seen(place: Path, generation: str) -> object:
        looked.append((Path(place).relative_to(cache).as_posix(), generation))
        return real(place, generation)

    monkeypatch.setattr(verifying, "verify", seen)
    for generation in (first, second, first, first):
        push(root, url, generation)
        pull(url, cache)
    assert looked == [(mirror.PULLING, first), (mirror.PULLING, second), (".", first)]


def test_what_arrives_damaged_is_not_opened(index: tuple[Path, str, str], url: str, tmp_path: Path) -> None:
    root, _, second = index
    push(root, url)
    name = f"{g.GENERATIONS}/{second}/items/sid.npy"
    good = objects(url)[name]
    put(url, name, good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(g.IndexCorrupt, match=r"items/sid\.npy.*sha256"):
        open_remote(url, tmp_path / "cache")
    assert g.generations(tmp_path / "cache") == []


def test_a_delta_brings_only_what_its_base_does_not_have(tmp_path: Path, url: str, release: Release, publish: Publish) -> None:
    root, spec = tmp_path / "index", release.bundle.spec
    publish(root, release)
    push(root, url)
    pull(url, tmp_path / "cache")
    with locked(root):
        delta = refresh(root, Fresh(arrived=synthetic.make_items(spec, ["fresh"]), withdrawn=np.zeros(0, np.int64)), spec)
    verify(root, delta)
    switch(root, delta)
    push(root, url)
    pulled = pull(url, tmp_path / "cache")
    assert pulled.generation == delta
    assert 0 < pulled.received < len(g.read_manifest(root, delta).files) / 2
    assert verify(tmp_path / "cache").generation == delta
    assert local_files(tmp_path / "cache", delta) == local_files(root, delta)


def test_a_mirror_is_cleared_of_what_nobody_needs(tmp_path: Path, url: str, release: Release, publish: Publish) -> None:
    root = tmp_path / "index"
    ids = [publish(root, replace(release, day=release.day.replace(day=day))) for day in (1, 2, 3, 4)]
    for generation in ids:
        push(root, url, generation)
    push(root, url, ids[1])  # it serves an older one now, whose predecessor is ids[0]
    before = objects(url)
    assert collect(root, url, 1, dry_run=True) == [ids[2]]
    assert objects(url) == before
    assert collect(root, url, 1) == [ids[2]]
    assert {path.split("/")[1] for path in objects(url) if path != g.CURRENT} == {ids[0], ids[1], ids[3]}
    assert collect(root, url, 1) == []


def test_a_mirror_is_not_cleared_while_a_push_is_under_way(
    index: tuple[Path, str, str], url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is half sent is needed by nobody yet; without a lock it would go, and CURRENT would then name what is not whole."""
    root, first, second = index
    push(root, url, second)
    asked: list[str] = []
    command = ["index", "gc", "--url", url, "--keep", "1", "--set", f"paths.index={root}"]

    def clears(name: str) -> None:
        if not asked:
            assert cli.main(command) == 2
        asked.append(name)
        with pytest.raises(BlockingIOError):
            collect(root, url, 1)

    with monkeypatch.context() as patch:
        patch.setattr(mirror, "reached", clears)
        push(root, url, first)
    assert len(asked) > len(g.read_manifest(root, first).files)
    assert "a push is under way (process" in " ".join(capsys.readouterr().err.split())
    assert pull(url, root.parent / f"{root.name}-copy").generation == first
    shutil.rmtree(root.parent / f"{root.name}-copy")
    assert cli.main(command) == 0


def test_a_mirror_that_serves_nothing_is_not_cleared(tmp_path: Path, url: str) -> None:
    put(url, f"{g.GENERATIONS}/2000-01-01-v1-0123456789/{g.MANIFEST}", b"{}")
    with pytest.raises(g.IndexMissing, match="serves nothing yet"):
        collect(tmp_path, url, 1)
    assert len(objects(url)) == 1
