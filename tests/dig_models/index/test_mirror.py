"""Mirrors: whole or not there for whoever follows CURRENT, wherever a push or a pull stops."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

from dig_models.index import generation as g
from dig_models.index import mirror
from dig_models.index.mirror import PROMOTIONS, MirrorFailed, pull, push
from dig_models.index.reader import IndexReader
from dig_models.index.writer import Release, switch
from jobs import cli, mirrors
from jobs.config import load
from jobs.entry import JobError, run
from jobs.mirrors import push_all
from tests.dig_models.index.conftest import Killed, Publish, local_files, objects, put


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
