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
from dataclasses import dataclass, field
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


@dataclass
class Pair:
    """A training on two hosts of one rank; the first host keeps the rendezvous."""

    home: Path
    hosts: tuple[Host, Host]
    running: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, number: int, meeting: str) -> None:
        host = self.hosts[number]
        where = (f"train.rendezvous={meeting}", f"train.address={host.address}")
        more = ("train.ranks=1", "train.hosts=2", "train.max_restarts=3", "train.lost_seconds=6")
        self.running[number] = launch(self.home, self.log(number), *more, *where, host=host)

    def log(self, number: int) -> Path:
        return self.home / f"host{number}.log"

    def lose(self, number: int) -> int:
        """Kill a host once there is a checkpoint; returns the newest checkpoint's step."""
        left = self.home / "checkpoints" / tw.DAY.isoformat()
        wait_for(lambda: any(left.glob("steps/step-*")), list(self.running.values()), self.log(0))
        end(self.running[number])
        assert not (left / "bundle").exists(), "the host was lost in mid-training"
        return max(int(path.name.removeprefix("step-")) for path in left.glob("steps/step-*"))

    def finish(self) -> None:
        for number, process in self.running.items():
            assert process.wait(400) == 0, self.log(number).read_text()

    def resumed_at(self) -> int:
        """Step that rank 0 went on from."""
        lines = [line for line in self.log(0).read_text().splitlines() if "resuming from" in line]
        return int(lines[-1].rpartition("step ")[2].split()[0]) if lines else 0


@pytest.fixture
def pair(world: Path, tmp_path: Path) -> Iterator[Pair]:
    with two_hosts() as hosts:
        started = Pair(home_of(world, tmp_path), hosts)
        try:
            yield started
        finally:
            for process in started.running.values():
                if process.poll() is None:
                    end(process)


def test_a_host_that_is_lost_and_comes_back_costs_nothing_but_time(pair: Pair, whole: tuple[bytes, Any]) -> None:
    """SIGKILL all of the host without the rendezvous, start it again: the bits of one host with two ranks."""
    meeting = f"{pair.hosts[0].address}:{free_port()}"
    for number in (0, 1):
        pair.start(number, meeting)
    saved = pair.lose(1)
    pair.start(1, meeting)
    pair.finish()
    assert pair.resumed_at() >= saved, "nothing before the checkpoint was done again"
    assert outcome(pair.home) == whole


def test_the_loss_of_the_rendezvous_ends_all_and_starting_all_again_goes_on(pair: Pair, whole: tuple[bytes, Any]) -> None:
    meeting = f"{pair.hosts[0].address}:{free_port()}"
    for number in (0, 1):
        pair.start(number, meeting)
    saved = pair.lose(0)
    assert pair.running[1].wait(200) not in (0, None)
    other = f"{pair.hosts[1].address}:{free_port()}"
    for number in (0, 1):
        pair.start(number, other)
    pair.finish()
    assert pair.resumed_at() >= saved, "nothing before the checkpoint was done again"
    assert outcome(pair.home) == whole
