"""Mirrors: whole or not there for whoever follows CURRENT, wherever a push or a pull stops."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import synthetic

from dig_models.index import generation as g
from dig_models.index import mirror
from dig_models.index import verify as verifying
from dig_models.index.mirror import PROMOTIONS, MirrorFailed, collect, open_remote, pull, push
from dig_models.index.reader import IndexReader
from dig_models.index.refresh import Fresh, refresh
from dig_models.index.verify import verify
from dig_models.index.writer import Release, locked, switch
from jobs import cli, mirrors
from jobs.config import load
from jobs.entry import JobError, run
from jobs.mirrors import push_all

Publish = Callable[[Path, Release], str]


class Killed(BaseException):
    """Not an Exception: nothing may catch it and go on."""


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, release: Release, next_release: Release, publish: Publish) -> tuple[Path, str, str]:
    """An index of two generations; the tests read it."""
    root = tmp_path_factory.mktemp("index")
    return root, publish(root, release), publish(root, next_release)


@pytest.fixture(params=[pytest.param("memory", marks=pytest.mark.slow), "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "file":
        yield f"file://{tmp_path}/mirror"
        return
    memory = fsspec.filesystem("memory")
    yield "memory://bucket/index"
    if memory.exists("/bucket"):
        memory.rm("/bucket", recursive=True)


def objects(url: str) -> dict[str, bytes]:
    fs, base = fsspec.core.url_to_fs(url)
    return {path.removeprefix(base).strip("/"): fs.cat_file(path) for path in fs.find(base)}


def put(url: str, path: str, data: bytes) -> None:
    fs, base = fsspec.core.url_to_fs(url)
    fs.makedirs(f"{base}/{path}".rpartition("/")[0], exist_ok=True)
    fs.pipe_file(f"{base}/{path}", data)


def local_files(root: Path, generation: str) -> dict[str, bytes]:
    folder = root / g.GENERATIONS / generation
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def dies_at(monkeypatch: pytest.MonkeyPatch, visit: int) -> list[str]:
    """Kill at the n-th fault point; returns the names of the points as they are reached."""
    seen: list[str] = []

    def reached(name: str) -> None:
        seen.append(name)
        if len(seen) == visit:
            raise Killed(name)

    monkeypatch.setattr(mirror, "reached", reached)
    return seen


def test_a_pulled_index_is_the_pushed_one_byte_for_byte(index: tuple[Path, str, str], url: str, tmp_path: Path) -> None:
    root, _, second = index
    pushed, cache = push(root, url), tmp_path / "cache"
    assert (pushed.generation, pushed.switched) == (second, True)
    assert pushed.sent == len(g.read_manifest(root, second).files)
    assert objects(url) == {**local_files(root, second), g.CURRENT: f"{second}\n".encode()}
    pulled = pull(url, cache)
    assert (pulled.generation, pulled.received, pulled.received_bytes) == (second, pushed.sent, pushed.sent_bytes)
    assert local_files(cache, second) == local_files(root, second)
    assert IndexReader.open(cache).manifest == g.read_manifest(root, second)
    assert g.generations(cache) == [second] and not (cache / mirror.PULLING).exists()


def test_pushing_and_pulling_again_moves_no_byte(index: tuple[Path, str, str], url: str, tmp_path: Path) -> None:
    root, _, second = index
    push(root, url)
    pull(url, tmp_path / "cache")
    again, pulled = push(root, url), pull(url, tmp_path / "cache")
    assert (again.sent, again.switched) == (0, False)
    assert (pulled.received, pulled.switched, pulled.generation) == (0, False, second)


def test_the_mirror_follows_a_step_back_and_pulls_follow_the_mirror(index: tuple[Path, str, str], url: str, tmp_path: Path) -> None:
    root, first, second = index
    for generation in (second, first):
        assert push(root, url, generation).switched
        assert pull(url, tmp_path / "cache").generation == generation
        assert g.current(tmp_path / "cache") == generation
    assert pull(url, tmp_path / "cache", second).switched
    assert g.current(tmp_path / "cache") == second


def test_an_index_that_promotions_are_made_in_is_not_switched_by_a_pull(index: tuple[Path, str, str], url: str, tmp_path: Path) -> None:
    root, first, _ = index
    push(root, url, first)
    own = tmp_path / "own"
    own.mkdir()
    (own / PROMOTIONS).write_text("")
    with pytest.raises(g.NotIndexable, match="promotions are made here"):
        pull(url, own)
    assert g.current(own) is None


def test_a_push_that_dies_anywhere_leaves_a_whole_generation_and_goes_on(
    index: tuple[Path, str, str], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kill the push after each object in turn, on one mirror: each try gets one object further, and readers see the old generation."""
    root, first, second = index
    push(root, url, first)
    before, files = objects(url), len(g.read_manifest(root, second).files)
    for at in range(files + 1):
        with monkeypatch.context() as patch:
            seen = dies_at(patch, 1)
            with pytest.raises(Killed):
                push(root, url, second)
        assert seen == ["mirror.file" if at < files else "mirror.manifest"]
        assert {path: data for path, data in objects(url).items() if second not in path} == before, "CURRENT and what it names"
    assert pull(url, tmp_path / "cache").generation == first
    with monkeypatch.context() as patch:
        assert dies_at(patch, 1) == []
        with pytest.raises(Killed, match=r"mirror\.current"):
            push(root, url, second)
    assert pull(url, tmp_path / "cache").generation == second
    assert push(root, url, second).sent == 0


def test_a_pull_that_dies_anywhere_leaves_what_served_and_goes_on(
    index: tuple[Path, str, str], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, first, second = index
    cache = tmp_path / "cache"
    push(root, url, first)
    pull(url, cache)
    push(root, url, second)
    there = {entry.sha256 for entry in g.read_manifest(root, first).files.values()}  # what the first has is not fetched again
    files = sum(entry.sha256 not in there for entry in g.read_manifest(root, second).files.values())
    for at in range(files + 1):
        with monkeypatch.context() as patch:
            seen = dies_at(patch, 1)
            with pytest.raises(Killed):
                pull(url, cache)
        assert seen == ["pull.file" if at < files else "pull.installed"]
        assert g.current(cache) == first
        g.check_files(g.generation_dir(cache, first), g.read_manifest(cache, first))
        assert (second in g.generations(cache)) == (at == files)
    assert pull(url, cache).received == 0
    assert IndexReader.open(cache).manifest.id == second


def test_a_reader_that_polls_during_pushes_never_meets_a_mix_or_a_gap(index: tuple[Path, str, str], url: str, tmp_path: Path) -> None:
    """The mirror is switched to and fro and keeps no more than it must, while a reader pulls into empty folders as fast as it can."""
    root, first, second = index
    push(root, url, first)
    done, seen, broken = threading.Event(), [], []

    def read() -> None:
        turn, last = 0, False
        while not last:
            last = done.is_set()  # one more turn begins when the pushes have ended
            cache = tmp_path / f"cache-{turn}"
            try:
                pulled = pull(url, cache)
                manifest = g.read_manifest(cache, pulled.generation)
                g.check_files(g.generation_dir(cache, pulled.generation), manifest)
                assert g.current(cache) == pulled.generation
                seen.append(pulled.generation)
            except Exception as error:
                if "while it was pulled; pull again" not in str(error):  # it was outrun, says so, and has nothing rather than a mix
                    broken.append(error)
                assert g.current(cache) is None
            shutil.rmtree(cache)
            turn += 1

    reader = threading.Thread(target=read)
    reader.start()
    for generation in [second, first] * 4:
        fs, base = fsspec.core.url_to_fs(url)
        other = first if generation == second else second
        push(root, url, generation)
        fs.rm(f"{base}/{g.GENERATIONS}/{other}", recursive=True)  # harder on the reader than `keep` ever is
    done.set()
    reader.join(timeout=120)
    assert broken == [] and not reader.is_alive()
    assert set(seen) <= {first, second} and seen[-1] == first


def test_a_reader_follows_when_what_it_pulls_is_removed(
    index: tuple[Path, str, str], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, first, second = index
    push(root, url, first)
    fs, base = fsspec.core.url_to_fs(url)
    switched = threading.Event()

    def overtaken(name: str) -> None:
        if name == "pull.file" and not switched.is_set():
            switched.set()
            push(root, url, second)
            fs.rm(f"{base}/{g.GENERATIONS}/{first}", recursive=True)

    monkeypatch.setattr(mirror, "reached", overtaken)
    assert pull(url, tmp_path / "cache").generation == second
    assert g.generations(tmp_path / "cache") == [second]


def test_a_mirror_keeps_the_newest_and_what_its_readers_may_hold(index: tuple[Path, str, str], url: str, tmp_path: Path) -> None:
    root, first, second = index
    put(url, f"{g.GENERATIONS}/2000-01-01-v1-0123456789/{g.MANIFEST}", b"{}")
    put(url, f"{g.GENERATIONS}/2000-01-02-v1-0123456789/half", b"no manifest was ever sent")
    push(root, url, first)
    done = push(root, url, second, keep=1)
    assert done.removed == ("2000-01-01-v1-0123456789", "2000-01-02-v1-0123456789")
    assert {path.split("/")[1] for path in objects(url) if path != g.CURRENT} == {first, second}, "second says that first was before it"


def test_a_push_heals_what_was_damaged_in_the_mirror(index: tuple[Path, str, str], url: str, tmp_path: Path) -> None:
    root, _, second = index
    push(root, url)
    name = f"{g.GENERATIONS}/{second}/{g.ITEM_TO_SID}"
    good = objects(url)[name]
    put(url, name, good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(g.IndexCorrupt, match=rf"{g.ITEM_TO_SID}.*sha256"):
        pull(url, tmp_path / "cache")
    assert g.current(tmp_path / "cache") is None
    assert push(root, url).sent == 1
    assert pull(url, tmp_path / "cache").generation == second


def test_a_generation_that_may_serve_is_not_rewritten_for_another_delta(
    tmp_path: Path, url: str, release: Release, next_release: Release, publish: Publish
) -> None:
    """The id does not cover the delta: of two builds of one id, the one that the mirror holds whole stays."""
    one, two = tmp_path / "one", tmp_path / "two"
    publish(one, release)
    generation = publish(one, next_release)
    assert publish(two, next_release) == generation
    assert g.read_manifest(one, generation) != g.read_manifest(two, generation)
    push(one, url)
    before = objects(url)
    assert push(two, url).sent == 0
    assert objects(url) == before


def test_a_damaged_index_is_not_pushed(tmp_path: Path, url: str, release: Release, publish: Publish) -> None:
    root = tmp_path / "index"
    generation = publish(root, release)
    (root / g.GENERATIONS / generation / g.DELTA).write_bytes(b"")
    with pytest.raises(g.IndexCorrupt, match=g.DELTA):
        push(root, url)
    assert not fsspec.core.url_to_fs(url)[0].exists(url)


@pytest.mark.parametrize("path", ["../../CURRENT", "/etc/passwd", "a/../../b", ""])
def test_a_manifest_cannot_write_outside_its_generation(index: tuple[Path, str, str], url: str, tmp_path: Path, path: str) -> None:
    root, _, second = index
    push(root, url)
    name = f"{g.GENERATIONS}/{second}/{g.MANIFEST}"
    told: dict[str, Any] = json.loads(objects(url)[name])
    told["files"][path] = told["files"].pop(g.DELTA)
    told["seal"] = g.digest({k: v for k, v in told.items() if k != "seal"})
    put(url, name, json.dumps(told).encode())
    with pytest.raises(g.IndexCorrupt, match="leaves the generation folder"):
        pull(url, tmp_path / "cache")
    assert not any(p.is_file() and p.name != ".lock" for p in (tmp_path / "cache").rglob("*"))


def test_what_is_not_there_is_said(index: tuple[Path, str, str], url: str, tmp_path: Path) -> None:
    root, first, second = index
    with pytest.raises(g.IndexMissing, match=r"serves nothing yet.*push"):
        pull(url, tmp_path / "cache")
    push(root, url, second)
    with pytest.raises(g.IndexMissing, match=rf"no whole generation {first}.*{second}"):
        pull(url, tmp_path / "cache", first)
    with pytest.raises(g.IndexMissing, match="no index generation id"):
        pull(url, tmp_path / "cache", "../x")
    put(url, g.CURRENT, b"../../etc\n")
    with pytest.raises(g.IndexCorrupt, match="a generation id"):
        pull(url, tmp_path / "cache")
    assert push(root, url, second).switched, "a push mends the pointer"
    assert pull(url, tmp_path / "cache").generation == second


def test_an_unknown_kind_of_store_is_said(index: tuple[Path, str, str]) -> None:
    with pytest.raises(MirrorFailed, match=r"nostore://x.*[Pp]rotocol"):
        push(index[0], "nostore://x")


def test_a_store_that_loses_bytes_does_not_switch(index: tuple[Path, str, str], url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root, first, second = index
    push(root, url, first)
    real = mirror._Store.put_file

    def lossy(store: mirror._Store, path: str, source: Path) -> None:
        real(store, path, source)
        if path.endswith(g.ITEM_TO_SID):
            store.fs.pipe_file(store.at(path), source.read_bytes()[:-1])

    monkeypatch.setattr(mirror._Store, "put_file", lossy)
    with pytest.raises(MirrorFailed, match=rf"{g.ITEM_TO_SID} reads back otherwise"):
        push(root, url, second)
    assert objects(url)[g.CURRENT].decode().strip() == first


def test_a_push_without_a_name_takes_what_serves(
    tmp_path: Path, url: str, release: Release, next_release: Release, publish: Publish
) -> None:
    root = tmp_path / "index"
    first = publish(root, release)
    publish(root, replace(next_release))
    switch(root, first)
    assert push(root, url).generation == first


def test_all_mirrors_are_tried_and_those_that_fail_are_named(index: tuple[Path, str, str], url: str) -> None:
    root, _, second = index
    config = load(sets=[f"paths.index={root}", f"index.mirrors=[nostore://x, '{url}']"], environ={})
    with pytest.raises(JobError, match=r"1 of 2 mirrors were not brought up to date.*nostore://x"):
        push_all(config)
    assert objects(url)[g.CURRENT].decode().strip() == second
    good = load(sets=[f"paths.index={root}", f"index.mirrors=['{url}']"], environ={})
    assert [(one.generation, one.sent) for one in push_all(good)] == [(second, 0)]


def test_an_hourly_push_leaves_a_mirror_alone_that_is_not_behind(index: tuple[Path, str, str], url: str) -> None:
    root, first, second = index
    sets = ["--set", f"paths.index={root}", "--set", f"index.mirrors=['{url}']"]

    def hourly() -> dict[str, bytes]:
        assert run("mirrors", mirrors.main, ["--behind", *sets], dated=False, options=mirrors.options) == 0
        return objects(url)

    push(root, url, first)
    assert hourly()[g.CURRENT].decode().strip() == second, "one that lags is brought along"
    name, manifest = (f"{g.GENERATIONS}/{second}/{file}" for file in (g.ITEM_TO_SID, g.MANIFEST))
    whole = objects(url)
    put(url, name, b"damaged")
    assert hourly()[name] == b"damaged", "it is not read"
    assert run("mirrors", mirrors.main, sets, dated=False, options=mirrors.options) == 0
    assert objects(url) == whole, "a push after a move reads and mends it"
    fs, base = fsspec.core.url_to_fs(url)
    fs.rm_file(f"{base}/{manifest}")
    assert hourly() == whole, "a pointer to nothing is none"


def test_the_command_line_pushes_and_pulls(
    index: tuple[Path, str, str], url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, first, second = index
    assert cli.main(["index", "push", url, "--set", f"paths.index={root}"]) == 0
    assert f"serves {second}: " in capsys.readouterr().out
    assert cli.main(["index", "pull", url, "--set", f"paths.index={tmp_path / 'cache'}"]) == 0
    assert g.current(tmp_path / "cache") == second
    assert cli.main(["index", "pull", url, "--generation", first, "--set", f"paths.index={tmp_path / 'cache'}"]) == 2
    assert f"no whole generation {first}" in capsys.readouterr().err


# ---- reading through a local folder, and clearing up -----------------------------------------------------------------


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
