"""Hot switches: the follower, questions under way, generations that cannot be opened, and the release of the old one."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from serve_world import USERS

from dig_models.config import RetrieveConfig
from dig_models.index import generation as g
from dig_models.serve.engine import Engine
from dig_models.serve.follower import Follower
from dig_models.serve.metrics import Metrics
from dig_models.serve.service import Search, Service
from tests.dig_models.serve.conftest import RETRIEVE, client_of


def follower_of(root: Path, poll: float = 3600.0) -> Follower:
    return Follower(root, lambda generation: Service.open(root, generation, settings=RETRIEVE), poll_seconds=poll, watcher=Metrics())


def figure(metrics: Metrics, name: str) -> float:
    return metrics.registry.get_sample_value(name) or 0.0


def test_a_switch_is_followed_once_and_the_old_generation_is_let_go(world):
    follower = follower_of(world.root)
    metrics = follower._watcher
    assert follower.look() and not follower.look()
    old = weakref.ref(follower.current), weakref.ref(follower.current.reader.retriever)
    world.switch(world.second)
    gc.disable()  # references alone must do: a server should not wait for a collection to give memory back
    try:
        assert follower.look()
        assert follower.current.source.generation == world.second
        assert [ref() for ref in old] == [None, None]
    finally:
        gc.enable()
    assert figure(metrics, "dig_serve_switches_total") == 2
    assert figure(metrics, "dig_serve_generations_open") == 1


def test_a_question_under_way_ends_on_the_generation_that_it_began_with(world, monkeypatch):
    go, began, whole = threading.Event(), threading.Event(), Service.retrieve

    def slow(self, users, search):
        if "slow" in users:
            began.set()
            assert go.wait(30)
        return whole(self, users, search)

    monkeypatch.setattr(Service, "retrieve", slow)
    follower = follower_of(world.root)
    follower.look()
    engine = Engine(lambda: follower.current, workers=2, waiting=8, coalesce=1, torch_threads=1)
    first = engine.retrieve(["slow"], Search(k=3))
    assert began.wait(30)
    world.switch(world.second)
    follower.look()
    assert engine.retrieve(["u1"], Search(k=3)).result(30).source.generation == world.second
    assert figure(follower._watcher, "dig_serve_generations_open") == 2
    go.set()
    assert first.result(30).source.generation == world.first
    engine.close()
    assert figure(follower._watcher, "dig_serve_generations_open") == 1


def test_a_damaged_generation_does_not_serve_and_the_sound_one_goes_on(world, caplog):
    follower = follower_of(world.root, poll=0.001)
    follower.look()
    path = world.root / g.GENERATIONS / world.second / g.TRIE / "token1.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    world.switch(world.second)
    for _ in range(3):
        time.sleep(0.01)
        assert not follower.look()
    assert follower.current.source.generation == world.first
    assert follower.trouble.generation == world.second and "token1.npy" in follower.trouble.reason
    assert sum("cannot be opened" in r.getMessage() for r in caplog.records) == 1, "said once, not with every poll"
    path.write_bytes(whole)
    until = time.monotonic() + 30
    while not follower.look():
        assert time.monotonic() < until
        time.sleep(0.01)
    assert follower.current.source.generation == world.second and follower.trouble is None


def test_a_rollback_leaves_a_generation_that_cannot_be_opened_behind(world):
    follower = follower_of(world.root)
    follower.look()
    (world.root / g.GENERATIONS / world.second / g.MANIFEST).write_text("{")
    (world.root / g.CURRENT).write_text(world.second + "\n")
    assert not follower.look() and follower.trouble
    (world.root / g.CURRENT).write_text(world.first + "\n")
    assert not follower.look() and follower.trouble is None
    assert follower.current.source.generation == world.first


def test_an_unreadable_pointer_and_a_missing_index_stop_nothing(world, tmp_path):
    follower = follower_of(world.root)
    follower.look()
    (world.root / g.CURRENT).write_text("../../etc")
    assert not follower.look() and follower.trouble.generation is None
    assert follower.current.source.generation == world.first
    nothing = follower_of(tmp_path / "nowhere")
    assert not nothing.look() and nothing.current is None and "no index was published" in nothing.trouble.reason


def test_a_generation_that_retention_removes_goes_on_answering(world):
    import shutil

    follower = follower_of(world.root)
    follower.look()
    before = follower.current.retrieve(["u1"], Search(k=5))
    shutil.rmtree(world.root / g.GENERATIONS / world.first)
    assert follower.current.retrieve(["u1"], Search(k=5)) == before


def test_equal_questions_that_wait_are_answered_together_and_alike(world):
    service, sizes, go = Service.open(world.root, settings=RETRIEVE), [], threading.Event()
    alone = {user: service.retrieve([user], Search(k=5)).answers[0] for user in USERS}

    def current():
        return service

    engine = Engine(current, workers=1, waiting=64, coalesce=6, torch_threads=1, batched=sizes.append)
    blocker = Service.rank

    def slow(self, user, items):
        assert go.wait(30)
        return blocker(self, user, items)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Service, "rank", slow)
        first = engine.rank("u1", ["i3"])
        asked = [(user, engine.retrieve([user], Search(k=5))) for user in USERS]
        other = engine.retrieve(["u1", "u2"], Search(k=2))
        go.set()
        for user, future in asked:
            answer = future.result(30).answers
            assert [a.user for a in answer] == [user]
            assert [i.item_id for i in answer[0].items] == [i.item_id for i in alone[user].items]
        assert [len(a.items) for a in other.result(30).answers] == [2, 2]
        first.result(30)
    engine.close()
    assert sizes == [6, 2, 2], "eight users by sixes, and another search for itself"


def test_no_answer_mixes_generations_while_they_switch(world):
    expected = {
        generation: {a.user: a for a in Service.open(world.root, generation, settings=RETRIEVE).retrieve(USERS, Search(k=5)).answers}
        for generation in (world.first, world.second)
    }
    stop, seen = threading.Event(), []

    def ask(client):
        while not stop.is_set():
            body = client.post("/v1/retrieve", json={"users": USERS[:4], "k": 5}).json()
            own = expected[body["generation"]]
            for answer in body["answers"]:
                assert [i["item_id"] for i in answer["items"]] == [i.item_id for i in own[answer["user"]].items]
            seen.append((body["generation"], body["model"]["version"]))

    with client_of(world.root, poll_seconds=0.02) as client, ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask, client) for _ in range(3)]
        for turn in range(8):
            world.switch((world.second, world.first)[turn % 2])
            time.sleep(0.25)
        stop.set()
        for one in asking:
            one.result(60)
    assert set(seen) == {(world.first, "1"), (world.second, "2")}


def test_settings_of_the_search_are_those_of_the_server(world):
    narrow = Service.open(world.root, settings=RetrieveConfig(beam=1, rerank=1, k=1))
    assert len(narrow.retrieve(["u1"], Search(k=40)).answers[0].items) < 40


def test_a_poisoned_generation_runs_no_code_and_does_not_serve(world, tmp_path):
    """Pickles that leave a mark when unpickled, wherever arrays and weights are, under a manifest that vouches for them."""
    mark = tmp_path / "mark"

    class Poison:
        def __reduce__(self):
            return (Path.touch, (mark,))

    folder, follower = world.root / g.GENERATIONS / world.second, follower_of(world.root, poll=0.0001)
    follower.look()
    whole = (folder / g.MANIFEST).read_text()
    places = [f"{g.TRIE}/token0.npy", f"{g.NODES}/level0.npy", "model/model.safetensors", f"{g.STATE}/fields.npy", f"{g.ITEMS}/sid.npy"]
    places += [next(p.relative_to(folder).as_posix() for p in sorted((folder / g.STATE / g.CROSS_ARRAYS).glob("u2i-*.place.npy")))]
    for place in places:
        sound = (folder / place).read_bytes()
        with (folder / place).open("wb") as file:
            if place.endswith(".npy"):
                np.save(file, np.array([Poison()], dtype=object), allow_pickle=True)
            else:
                torch.save({"weights": Poison()}, file)
        manifest = g.Manifest.model_validate_json(whole)
        vouched = manifest.model_copy(update={"files": manifest.files | {place: g.file_entry(folder / place)}}).sealed()
        (folder / g.MANIFEST).write_text(vouched.text())
        world.switch(world.second)
        time.sleep(0.01)
        assert not follower.look(), place
        assert follower.trouble.generation == world.second and follower.current.source.generation == world.first
        assert not mark.exists(), place
        (folder / place).write_bytes(sound)
        world.switch(world.first)
        follower.look()
    (folder / g.MANIFEST).write_text(whole)
    world.switch(world.second)
    assert follower.look(), "sound again, it serves"


def test_a_manifest_that_points_outside_its_folder_is_refused(world):
    follower = follower_of(world.root)
    follower.look()
    path = world.root / g.GENERATIONS / world.second / g.MANIFEST
    path.write_text(path.read_text().replace('"delta.parquet"', '"../../../../etc/passwd"', 1))
    world.switch(world.second)
    assert not follower.look() and "leaves the generation folder" in follower.trouble.reason
    assert follower.current.source.generation == world.first
