"""Mirrors and Redis follow whoever moves CURRENT, also from the command line; against a real Redis server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import fresh_world as fw
import pytest
import release_world as rw
from redis import Redis
from redis_world import everything, needs_redis, running

from dig_models.index.redis_sink import RedisIndex
from jobs import cli
from jobs.config import Config
from jobs.entry import ServiceAway
from jobs.followers import follow_all

pytestmark = [pytest.mark.slow, needs_redis]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def client(server: str) -> Iterator[Redis]:
    with Redis.from_url(server) as client:
        client.flushall()
        yield client


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("followers") / "home"
    fw.make(home, 2)
    return home


@pytest.fixture
def sets(made: Path, tmp_path: Path, server: str) -> list[str]:
    home = tmp_path / "home"
    shutil.copytree(made, home)
    return [f"paths.home={home}", f"index.mirrors=['file://{tmp_path}/mirror']", f"serve.redis.url={server}"]


def config_of(sets: list[str]) -> Config:
    return rw.load(sets=sets, environ={})


def dig(command: list[str], sets: list[str]) -> int:
    return cli.main([*command, *(part for one in sets for part in ("--set", one))])


@pytest.mark.parametrize("command", ["promote", "rollback", "refresh"])
def test_every_move_from_the_command_line_takes_mirrors_and_redis_along(
    command: str, sets: list[str], tmp_path: Path, client: Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    world = rw.ReleaseWorld(config_of(sets), ())
    commands = {
        "promote": [["promote", "--version", "2", "--reason", "better"]],
        "rollback": [["promote", "--version", "2", "--reason", "better"], ["rollback", "--reason", "worse"]],
        "refresh": [["index", "refresh", "--date", str(fw.TODAY)]],
    }
    before = world.current
    for one in commands[command]:
        assert dig(one, sets) == 0
    serves = world.current
    assert (serves == before) == (command == "rollback")
    found = RedisIndex(client, "{dig}").sids(["i1", "fresh-1"])
    assert found.generation == serves and found.values[0]
    assert bool(found.values[1]) == (command == "refresh")
    assert (tmp_path / "mirror" / "CURRENT").read_text().strip() == serves
    said = capsys.readouterr().out
    assert f"serves {serves}" in said.split("mirror file://")[-1] and f"serves {serves}" in said.split("redis redis://")[-1]


def test_redis_follows_although_a_mirror_is_away_and_what_is_away_is_named(sets: list[str], client: Redis) -> None:
    broken = [one.replace("file://", "nostore://") for one in sets]
    with pytest.raises(ServiceAway, match=r"1 of 1 mirrors were not brought up to date \(dig index push tries again\).*nostore://"):
        follow_all(config_of(broken))
    now = rw.ReleaseWorld(config_of(sets), ()).current
    assert RedisIndex(client, "{dig}").sids(["i1"]).generation == now
    away = [*sets[:2], "serve.redis.url=redis://127.0.0.1:9/0"]
    with pytest.raises(ServiceAway, match=r"redis redis://127\.0\.0\.1:9/0: ConnectionError.*jobs\.redis_sink tries again"):
        follow_all(config_of(away))
    assert [one.generation for one in follow_all(config_of(sets))] == [now, now]


def test_a_copy_that_is_away_fails_the_command_but_not_the_move(sets: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    world = rw.ReleaseWorld(config_of(sets), ())
    before = world.current
    assert dig(["promote", "--version", "2", "--reason", "better"], [*sets[:2], "serve.redis.url=redis://127.0.0.1:9/0"]) == 2
    told = capsys.readouterr()
    assert "what it served before, it serves still" in " ".join(told.err.split())
    assert world.current != before and world.aliases["champion"] == "2"


def test_following_again_changes_nothing_and_without_copies_nothing_follows(sets: list[str], client: Redis) -> None:
    first = follow_all(config_of(sets))
    held = everything(client)
    assert follow_all(config_of(sets)) == first and everything(client) == held
    assert [one.place.split()[0] for one in first] == ["mirror", "redis"]
    assert follow_all(config_of(sets[:1])) == []
