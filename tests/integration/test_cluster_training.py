"""Training on two hosts, one of which is lost and comes back."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.processes import tree
from tests.integration.hosts import Host, free_port, two_hosts
from tests.jobs import train_world as tw

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PROJECT = Path(__file__).resolve().parents[2]
SETS = ("train.epochs=12", "train.checkpoint_steps=4", "train.warm_start=false")


def launch(home: Path, log: Path, *sets: str, host: Host | None = None) -> subprocess.Popen[bytes]:
    """``python -m jobs.launch`` with the settings of the small world; what it says goes to a file."""
    small = [f"paths.home={home}", *(f"model.{k}={v}" for k, v in tw.ew.SMALL.items()), *tw.SETS, *SETS, *sets]
    command = [sys.executable, "-m", "jobs.launch", "--date", tw.DAY.isoformat(), *(part for one in small for part in ("--set", one))]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DIG_")}
    environment = kept | {"PYTHONPATH": str(PROJECT)} | ({"GLOO_SOCKET_IFNAME": host.interface} if host else {})
    with log.open("ab") as out:
        return subprocess.Popen([*(host.inside if host else ()), *command], env=environment, stdout=out, stderr=out, cwd=home)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a launcher with all its ranks, as the loss of its host would."""
    for one in tree(process.pid):
        one.send_signal(signal.SIGKILL)
    process.wait(30)


def wait_for(what: Callable[[], bool], processes: list[subprocess.Popen[bytes]], log: Path) -> None:
    until = time.monotonic() + 300
    while not what():
        assert all(p.poll() is None for p in processes), log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.02)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("lake")
    tw.build(home)
    return home


def home_of(world: Path, home: Path) -> Path:
    shutil.copytree(world / "lake", home / "lake")
    return home


def outcome(home: Path) -> tuple[bytes, Any]:
    """Weights and curves that a training left."""
    left = home / "checkpoints" / tw.DAY.isoformat()
    return (left / "bundle" / "model.safetensors").read_bytes(), json.loads((left / "train.json").read_text())["curves"]


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Any]:
    """What one host with two ranks makes of it, undisturbed."""
    home = home_of(world, tmp_path_factory.mktemp("one-host"))
    process = launch(home, home / "log", "train.ranks=2")
    assert process.wait(300) == 0, (home / "log").read_text()
    return outcome(home)


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    with two_hosts() as pair:
        yield pair


def test_a_host_that_is_lost_and_comes_back_costs_nothing_but_time(
    world: Path, whole: tuple[bytes, Any], hosts: tuple[Host, Host], tmp_path: Path
) -> None:
    """Two hosts of one rank; SIGKILL all of the one without the rendezvous, start it again: the bits of one host with two ranks."""
    home, keeper, other = home_of(world, tmp_path), hosts[0], hosts[1]
    meeting = f"{keeper.address}:{free_port()}"
    settings = ("train.ranks=1", "train.hosts=2", f"train.rendezvous={meeting}", "train.max_restarts=3", "train.lost_seconds=6")

    def start(host: Host, log: str) -> subprocess.Popen[bytes]:
        return launch(home, home / log, *settings, f"train.address={host.address}", host=host)

    checkpoints = home / "checkpoints" / tw.DAY.isoformat() / "steps"
    running = [start(keeper, "keeper.log"), start(other, "lost.log")]
    try:
        wait_for(lambda: any(checkpoints.glob("step-*")), running, home / "keeper.log")
        end(running[1])
        saved = max(int(path.name.removeprefix("step-")) for path in checkpoints.glob("step-*"))
        assert not (home / "checkpoints" / tw.DAY.isoformat() / "bundle").exists(), "the host was lost in mid-training"
        running[1] = start(other, "back.log")
        for process, log in zip(running, ("keeper.log", "back.log"), strict=True):
            assert process.wait(400) == 0, (home / log).read_text()
    finally:
        for process in running:
            if process.poll() is None:
                end(process)
    resumed = [line for line in (home / "keeper.log").read_text().splitlines() if "resuming from" in line]
    assert resumed and int(resumed[-1].rpartition("step ")[2].split()[0]) >= saved, "nothing before the checkpoint was done again"
    weights, curves = outcome(home)
    assert weights == whole[0]
    assert curves == whole[1]
