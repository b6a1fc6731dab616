"""A writer that dies at any point leaves what was current readable, and the next attempt gives what it would have given."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dig_models.index import generation as g
from dig_models.index import writer
from dig_models.index.reader import IndexReader
from dig_models.index.verify import verify
from dig_models.index.writer import Release, build, locked, retain, switch

Publish = Callable[[Path, Release], str]


class Killed(BaseException):
    """Not an Exception: nothing may catch it and go on."""


def publish_and_retain(root: Path, release: Release) -> str:
    with locked(root):
        generation = build(root, release)
        verify(root, generation)
        if g.current(root) != generation:
            switch(root, generation)
        retain(root, 1)
    return generation


def files_of(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file() and not p.name.startswith(".CURRENT")}


@pytest.fixture(scope="module")
def expected(
    tmp_path_factory: pytest.TempPathFactory, release: Release, next_release: Release, publish: Publish
) -> tuple[str, dict[str, bytes]]:
    """What a writer that is left in peace makes of the two releases."""
    root = tmp_path_factory.mktemp("whole")
    publish(root, release)
    return publish_and_retain(root, next_release), files_of(root)


POINTS = [
    (writer, "save_network", 1),
    (writer, "write_items", 1),
    (writer, "write_maps", 1),
    (writer, "write_arrays", 1),
    (writer, "write_state", 1),
    (os, "link", 3),
    (writer, "complete", 1),
    (writer, "replace_text", 1),  # the manifest
    (writer, "sync_tree", 1),
    (writer, "install", 1),
    (sys.modules[__name__], "verify", 1),
    (writer, "replace_text", 2),  # CURRENT
    (sys.modules[__name__], "retain", 1),
]


# After one point is before the next one, but for what happens in between.
@pytest.mark.parametrize("when", ["before", pytest.param("after", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("module", "name", "nth"), POINTS, ids=[f"{name}-{nth}" for _, name, nth in POINTS])
def test_a_crash_leaves_current_readable_and_a_retry_finishes(
    tmp_path: Path,
    release: Release,
    next_release: Release,
    publish: Publish,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
    nth: int,
    when: str,
    expected: tuple[str, dict[str, bytes]],
) -> None:
    wanted, files = expected
    root = tmp_path / "index"
    first = publish(root, release)
    real, calls = getattr(module, name), [0]

    def fails(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] < nth or when == "after":
            result = real(*args, **kwargs)
        if calls[0] < nth:
            return result
        raise Killed(name)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, fails)
        patch.setattr(writer.shutil, "rmtree", lambda *args, **kwargs: None)  # a killed process tidies nothing up
        with pytest.raises(Killed):
            publish_and_retain(root, next_release)
    assert IndexReader.open(root).manifest.id in (first, wanted)
    assert publish_and_retain(root, next_release) == wanted
    assert verify(root).generation == wanted
    assert files_of(root) == files


def test_every_byte_is_on_disk_before_the_folder_gets_its_name(tmp_path: Path, release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: set[int] = set()
    real_sync, real_install = os.fsync, writer.install

    def sync(handle: int) -> None:
        synced.add(os.fstat(handle).st_ino)
        real_sync(handle)

    def install(root: Path, staging: Path, generation: str) -> None:
        late = [p.relative_to(staging) for p in (staging, *staging.rglob("*")) if p.stat().st_ino not in synced]
        assert late == []
        real_install(root, staging, generation)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(writer, "install", install)
    with locked(tmp_path):
        assert g.read_manifest(tmp_path, build(tmp_path, release)).items == 60


def test_a_text_that_cannot_be_put_in_place_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / g.CURRENT
    writer.replace_text(path, "old")

    def fails(self: Path, target: Path) -> None:
        assert (self.read_text(), path.read_text()) == ("new", "old")
        raise Killed

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(Killed):
        writer.replace_text(path, "new")
    assert path.read_text() == "old"


def test_two_writers_take_turns(tmp_path: Path) -> None:
    with locked(tmp_path), (tmp_path / ".lock").open("a") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
