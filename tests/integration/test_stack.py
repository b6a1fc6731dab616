"""The stack as its user meets it: up, logged in, one server lost and revived, down, and up again with everything still there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from live import FREE_PORTS, ops
from tiny_shop import write_tiny_place

from jobs.processes import tree
from ops import supervise
from ops.client import StackClient
from ops.http import HttpError, request

SERVERS = ["postgres", "redis", "mlflow", "api-server", "scheduler", "dag-processor", "triggerer"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@dataclass
class World:
    """A stack and what ``up`` said when it started."""

    conf: Path
    told: str

    @property
    def client(self) -> StackClient:
        return StackClient.at(self.conf.parent / "home")

    def pids(self) -> dict[str, int]:
        return {name: process.pid for name, process in self.client.state.processes.items()}

    def family(self) -> list[psutil.Process]:
        """Every process of the stack."""
        members = {process.pid: process for pid in self.pids().values() for process in tree(pid)}
        return list((members | {process.pid: process for process in supervise.marked(self.client.state.marker)}).values())

    def status(self) -> tuple[int, dict[str, str]]:
        done = ops(self.conf, "status")
        return done.returncode, {line.split()[0]: line[14:27].strip() for line in done.stdout.splitlines()}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Iterator[World]:
    conf = write_tiny_place(tmp_path_factory.mktemp("stack"), tiny_data, stack=FREE_PORTS)
    try:
        started = ops(conf, "up")
        assert started.returncode == 0, started.stderr
        yield World(conf, started.stdout)
    finally:
        ended = ops(conf, "down", "--purge")
        assert ended.returncode == 0, ended.stderr


def running(process: psutil.Process) -> bool:
    return process.is_running() and supervise.born(process.pid) is not None


def test_everything_is_healthy_and_status_says_so(world: World) -> None:
    assert world.status() == (0, dict.fromkeys(SERVERS, "healthy"))


def test_up_again_is_harmless(world: World) -> None:
    before = world.pids()
    again = ops(world.conf, "up")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("runs already") == len(SERVERS)
    assert world.pids() == before


def test_nothing_of_it_listens_beyond_loopback(world: World) -> None:
    listening = {c.laddr for p in world.family() for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert {address.ip for address in listening} == {"127.0.0.1"}
    assert {address.port for address in listening} == set(world.client.state.ports.values())


def test_no_secret_stands_on_a_command_line_or_in_an_open_file(world: World) -> None:
    secrets = world.client.state.secrets.values()
    lines = [" ".join(process.cmdline()) for process in world.family()]
    assert not [line for line in lines for secret in secrets if secret in line]
    stack = world.conf.parent / "home" / "stack"
    holders = [path for path in stack.rglob("*") if path.is_file() and any(secret.encode() in path.read_bytes() for secret in secrets)]
    assert {path.name for path in holders} >= {"state.json", "redis.conf", "passwords.json"}
    assert {path.stat().st_mode & 0o077 for path in holders} == {0}


def test_airflow_lets_nobody_in_without_the_password(world: World) -> None:
    url = world.client.url
    with pytest.raises(HttpError) as unknown:
        request("GET", f"{url}/api/v2/dags")
    assert unknown.value.status == 401
    for login in ({"username": "admin", "password": ""}, {"username": "admin", "password": "admin"}):
        with pytest.raises(HttpError) as refused:
            request("POST", f"{url}/auth/token", login)
        assert refused.value.status in (400, 401)
    with pytest.raises(HttpError) as anonymous:
        request("GET", f"{url}/auth/token")
    assert anonymous.value.status == 403


def test_the_login_that_up_printed_works(world: World) -> None:
    printed = re.search(r"^login +(\S+) / (\S+)$", world.told, re.MULTILINE)
    assert printed is not None
    url = re.search(r"^airflow +(\S+)$", world.told, re.MULTILINE)
    assert url is not None
    token = request("POST", f"{url[1]}/auth/token", {"username": printed[1], "password": printed[2]})["access_token"]
    assert "dags" in request("GET", f"{url[1]}/api/v2/dags", token=token)


def test_the_dags_load_and_are_paused_and_the_pools_are_there(world: World) -> None:
    client = world.client
    by_hand = {"dig_backfill", "dig_promote"}  # nothing but a person sets these off
    client.await_dags(["dig_features", "dig_retrain", "dig_publish", "dig_watch", *by_hand])
    assert client.dags() == {name: name not in by_hand for name in client.dags()}
    slots = {pool["name"]: pool["slots"] for pool in client.api("GET", "/pools")["pools"]}
    assert {name: slots[name] for name in slots if name.startswith("dig_")} == {"dig_spark": 1, "dig_train": 1, "dig_promotion": 1}


def test_mlflow_keeps_records_and_artifacts_behind_http(world: World) -> None:
    url = world.client.mlflow_url
    made = request("POST", f"{url}/api/2.0/mlflow/experiments/create", {"name": "kept"})
    found = request("GET", f"{url}/api/2.0/mlflow/experiments/get?experiment_id={made['experiment_id']}")["experiment"]
    assert found["artifact_location"].startswith("mlflow-artifacts:")
    request("PUT", f"{url}/api/2.0/mlflow-artifacts/artifacts/kept.json", {"a": 1})
    assert request("GET", f"{url}/api/2.0/mlflow-artifacts/artifacts/kept.json") == {"a": 1}
    assert (world.conf.parent / "home" / "stack" / "mlflow" / "artifacts" / "kept.json").is_file()


def test_a_shell_with_the_printed_environment_reaches_airflow(world: World) -> None:
    exports = ops(world.conf, "env").stdout
    done = subprocess.run(["bash", "-c", f"{exports}\nairflow pools list -o plain"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "dig_promotion" in done.stdout


def test_a_server_whose_workers_outlive_it_gets_its_port_back(world: World) -> None:
    before = world.pids()
    workers = [process for process in tree(before["mlflow"]) if process.pid != before["mlflow"]]
    assert workers
    os.kill(before["mlflow"], signal.SIGKILL)
    revived = ops(world.conf, "up")
    assert revived.returncode == 0, revived.stderr
    assert [process for process in workers if running(process)] == []
    assert {name for name, pid in world.pids().items() if pid != before[name]} == {"mlflow"}
    assert world.status()[0] == 0


def test_a_server_that_was_killed_is_seen_and_it_alone_is_revived(world: World) -> None:
    before = world.pids()
    os.kill(before["scheduler"], signal.SIGKILL)
    status, seen = world.status()
    assert status == 1
    assert seen == dict.fromkeys(SERVERS, "healthy") | {"scheduler": "dead"}
    revived = ops(world.conf, "up")
    assert revived.returncode == 0, revived.stderr
    after = world.pids()
    assert {name for name in SERVERS if after[name] != before[name]} == {"scheduler"}
    assert world.status()[0] == 0


def test_down_ends_all_of_it_and_nobody_else_and_up_finds_everything_again(world: World) -> None:
    family = world.family()
    assert len(family) > len(SERVERS)
    bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=world.client.env)
    try:
        stopped = ops(world.conf, "down")
        assert stopped.returncode == 0, stopped.stderr
        assert [process for process in family if running(process)] == []
        assert world.status() == (1, dict.fromkeys(SERVERS, "not started"))
        assert bystander.poll() is None
    finally:
        bystander.communicate(b"\n")
    again = ops(world.conf, "up")
    assert again.returncode == 0, again.stderr
    assert [line for line in again.stdout.splitlines() if "://" in line] == [line for line in world.told.splitlines() if "://" in line]
    found = request("GET", f"{world.client.mlflow_url}/api/2.0/mlflow/experiments/get-by-name?experiment_name=kept")
    assert found["experiment"]["name"] == "kept"


def test_two_that_start_at_once_wait_for_each_other(world: World) -> None:
    assert ops(world.conf, "down").returncode == 0
    command = [sys.executable, "-m", "ops", "up", "--config", str(world.conf)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=world.client.env) for _ in range(2)]
    told = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(text.count(" starts ") for text in told) == [0, len(SERVERS)]
