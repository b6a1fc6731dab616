"""The copy in a real Redis server: content, switch, retention, crashes, readers under switches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis_world import everything, needs_redis, running
from serve_world import PROJECT

from dig_models.index import generation as g
from dig_models.index.diff import Sids, sid_text
from dig_models.index.redis_sink import RedisFailed, RedisIndex, push

PREFIX = "{dig}"
pytestmark = needs_redis


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    with running(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def client(server) -> Iterator[Redis]:
    with Redis.from_url(server) as client:
        client.flushall()
        yield client


def sids_of(root: Path, generation: str) -> dict[str, str]:
    own = Sids.read(root / g.GENERATIONS / generation, generation)
    return dict(zip(own.id_M.tolist(), sid_text(own.code_ML), strict=True))


def test_every_item_and_every_sid_is_found(world, server, client):
    done = push(world.root, server, PREFIX, keep=2)
    own, index = sids_of(world.root, world.first), RedisIndex(client, PREFIX)
    assert (done.generation, done.switched, done.removed) == (world.first, True, ())
    items = list(own)
    found = index.sids([*items, "gone"])
    assert found.generation == world.first and found.values == (*(own[i] for i in items), None)
    leaves = sorted(set(own.values()))
    back = index.items([*leaves, "9-9-9"])
    assert back.values[-1] is None
    assert [sorted(json.loads(text)) for text in back.values[:-1]] == [sorted(i for i in items if own[i] == sid) for sid in leaves]
    assert done.written == len(items) + len(leaves)
    assert client.hget(f"{PREFIX}:{world.first}:about", "version") == b"1"


def test_pushing_again_writes_nothing(world, server, client):
    push(world.root, server, PREFIX, keep=2)
    before = everything(client)
    again = push(world.root, server, PREFIX, keep=2)
    assert (again.written, again.switched) == (0, False)
    assert everything(client) == before


def test_a_switch_keeps_the_one_before_and_then_removes_it(world, server, client):
    push(world.root, server, PREFIX, keep=1)
    world.switch(world.second)
    done = push(world.root, server, PREFIX, keep=2)
    assert done.removed == () and RedisIndex(client, PREFIX).sids(["new-1"]).generation == world.second
    assert client.exists(f"{PREFIX}:{world.first}:item_to_sid")
    assert push(world.root, server, PREFIX, keep=1).removed == (world.first,)
    assert not [key for key in client.keys("*") if world.first.encode() in key]
    world.switch(world.first)
    back = push(world.root, server, PREFIX, keep=2)
    assert back.switched and back.written and RedisIndex(client, PREFIX).sids(["i0"]).generation == world.first


def test_nothing_published_is_said_and_read_as_nothing(tmp_path, server, client):
    with pytest.raises(g.IndexMissing, match="no index was published"):
        push(tmp_path, server, PREFIX, keep=2)
    assert RedisIndex(client, PREFIX).sids(["i1", "i2"]).values == (None, None)
    assert not client.keys("*")


def test_a_damaged_map_is_not_served(world, server, client):
    push(world.root, server, PREFIX, keep=2)
    world.switch(world.second)
    path = world.root / g.GENERATIONS / world.second / g.SID_TO_ITEMS
    path.write_bytes(path.read_bytes()[:-1] + b"X")
    with pytest.raises(g.IndexCorrupt, match=r"sid_to_items\.parquet"):
        push(world.root, server, PREFIX, keep=2)
    assert RedisIndex(client, PREFIX).sids(["i1"]).generation == world.first


def test_a_server_that_is_not_there_is_named(world):
    with pytest.raises(RedisFailed, match=r"redis redis://127\.0\.0\.1:9/0: ConnectionError"):
        push(world.root, "redis://127.0.0.1:9/0", PREFIX, keep=2)


def test_the_pointer_never_moves_to_what_is_not_whole(world, server, client):
    push(world.root, server, PREFIX, keep=2)
    world.switch(world.second)
    client.hset(f"{PREFIX}:{world.second}:item_to_sid", "left", "over")
    push(world.root, server, PREFIX, keep=2)
    assert not client.hexists(f"{PREFIX}:{world.second}:item_to_sid", "left"), "what a killed push left was removed first"
    client.hset(f"{PREFIX}:{world.first}:about", "content", "another")
    world.switch(world.first)
    assert push(world.root, server, PREFIX, keep=2).written, "a generation that is not what its manifest says is written anew"


DYING = """
import os, signal, sys
from pathlib import Path
from redis import Redis
from dig_models.index.redis_sink import push

at, sent, real = int(sys.argv[1]), 0, Redis.execute_command

def counted(self, *args, **options):
    global sent
    sent += 1
    if sent == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, *args, **options)

Redis.execute_command = counted
push(Path(sys.argv[2]), sys.argv[3], "{dig}", keep=1)
print(sent)
"""


@pytest.mark.slow
def test_a_push_killed_before_any_of_its_commands_leaves_one_whole_generation_and_the_next_one_finishes(world, server, client):
    """Every command that a push sends is once the one that it does not live to send."""

    def pushed(at: int) -> subprocess.CompletedProcess[str]:
        client.flushall()
        world.switch(world.first)
        push(world.root, server, PREFIX, keep=1)
        world.switch(world.second)
        command = [sys.executable, "-c", DYING, str(at), str(world.root), server]
        return subprocess.run(command, env=os.environ | {"PYTHONPATH": str(PROJECT)}, capture_output=True, text=True, check=False)

    commands, undisturbed, served = int(pushed(0).stdout), everything(client), []
    assert commands > 8
    for at in range(1, commands + 1):
        assert pushed(at).returncode == -9
        index = RedisIndex(client, PREFIX)
        now = index.sids(["i10"]).generation
        own = sids_of(world.root, now)
        assert dict(zip(own, index.sids(list(own)).values, strict=True)) == own
        served.append(now)
        push(world.root, server, PREFIX, keep=1)
        assert everything(client) == undisturbed, "as if it had never been killed"
    assert served == sorted(served, key=[world.first, world.second].index) and set(served) == {world.first, world.second}


@pytest.mark.slow
def test_a_push_killed_anywhere_and_overtaken_by_another_generation_leaves_nothing_behind(world, server, client):
    """As above, but what serves is another one again when the next push comes."""

    def begin() -> None:
        client.flushall()
        world.switch(world.first)
        push(world.root, server, PREFIX, keep=1)

    def killed(at: int) -> subprocess.CompletedProcess[str]:
        world.switch(world.second)
        command = [sys.executable, "-c", DYING, str(at), str(world.root), server]
        return subprocess.run(command, env=os.environ | {"PYTHONPATH": str(PROJECT)}, capture_output=True, text=True, check=False)

    begin()
    untouched, written = everything(client), 0
    commands = int(killed(0).stdout)
    for at in range(1, commands + 1):
        begin()
        assert killed(at).returncode == -9
        written += any(key.startswith(f"{PREFIX}:{world.second}:".encode()) for key in everything(client))
        world.switch(world.first)
        push(world.root, server, PREFIX, keep=1)
        assert everything(client) == untouched, "as if the other one had never been begun"
    assert written > 4


def test_what_a_push_of_one_generation_left_is_removed_by_that_of_another(world, server, client, monkeypatch):
    push(world.root, server, PREFIX, keep=2)
    before = everything(client)
    world.switch(world.second)
    with monkeypatch.context() as patch:
        patch.setattr(Redis, "hlen", lambda *args: 0)
        with pytest.raises(RedisFailed, match="is another program writing there"):
            push(world.root, server, PREFIX, keep=2)
    assert everything(client).keys() - before.keys() == {f"{PREFIX}:pending".encode(), f"{PREFIX}:{world.second}:item_to_sid".encode()}
    world.switch(world.first)
    assert push(world.root, server, PREFIX, keep=2).removed == (world.second,)
    assert everything(client) == before


def test_a_generation_that_served_and_is_written_anew_is_not_taken_for_a_leftover(world, server, client):
    push(world.root, server, PREFIX, keep=2)
    client.sadd(f"{PREFIX}:pending", world.first)  # as a push leaves it that found it damaged, and was cut short
    world.switch(world.second)
    assert push(world.root, server, PREFIX, keep=2).removed == ()
    assert client.exists(f"{PREFIX}:{world.first}:item_to_sid")
    assert push(world.root, server, PREFIX, keep=1).removed == (world.first,)
    assert not client.exists(f"{PREFIX}:pending")


def test_a_reader_under_switches_never_mixes_two_generations(world, server, client):
    own = {generation: sids_of(world.root, generation) for generation in (world.first, world.second)}
    stop, seen = threading.Event(), set()
    items = ["i0", "i10", "i20", "new-1"]

    def read():
        with Redis.from_url(server) as own_client:
            index = RedisIndex(own_client, PREFIX)
            while not stop.is_set():
                found = index.sids(items)
                assert found.values == tuple(own[found.generation].get(i) for i in items)
                seen.add(found.generation)

    push(world.root, server, PREFIX, keep=1)
    failed = []
    thread = threading.Thread(target=lambda: failed.extend(_failing(read)))
    thread.start()
    for turn in range(12):
        world.switch((world.second, world.first)[turn % 2])
        push(world.root, server, PREFIX, keep=1)
    stop.set()
    thread.join()
    assert not failed and seen == {world.first, world.second}


def _failing(call):
    try:
        call()
    except Exception as error:
        return [error]
    return []
