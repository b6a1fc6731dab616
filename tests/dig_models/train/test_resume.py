"""Two real processes: what a kill in mid-epoch changes (nothing), and what ranks agree on (everything)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny as tiny_module
import torch
from tiny import Tiny, same

pytestmark = pytest.mark.slow
PROGRAM = Path(tiny_module.__file__)
PROJECT = PROGRAM.parents[3]


def torchrun(home: Path, ranks: int, *args: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(ranks),
        str(PROGRAM),
        str(home),
        *args,
    ]
    path = os.pathsep.join([str(PROJECT), str(PROJECT / "tests")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen[str]) -> str:
    output = process.communicate(timeout=180)[0]
    assert process.returncode == 0, output
    return output


def weights(home: Path, name: str, rank: int) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(home / f"{name}-{rank}.pt")
    return loaded


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def whole(tiny: Tiny, ranks: int) -> str:
    """An uninterrupted training; the name of what it left."""
    name = f"whole{ranks}"
    finish(torchrun(tiny.home, ranks, "--checkpoints", f"{name}-steps", "--out", name))
    return name


def test_all_ranks_end_with_the_same_weights_codebooks_and_statistics(tiny: Tiny, ranks: int, whole: str) -> None:
    first = weights(tiny.home, whole, 0)
    assert {"quantizer.count_LK", "quantizer.sum_LKD", "quantizer.code_LKD", "corpus_norm.mean_D", "norm_user.mean_SC"} <= first.keys()
    assert bool(first["quantizer.built"])
    for rank in range(1, ranks):
        assert same(weights(tiny.home, whole, rank), first) == []


def test_a_killed_rank_costs_nothing_but_time(tiny: Tiny, ranks: int, whole: str) -> None:
    """SIGKILL one rank in the second epoch, start again: weights of every rank and the record are bit for bit those of a whole run."""
    name = f"killed{ranks}"
    steps = json.loads((tiny.home / f"{whole}-0.json").read_text())["step"]
    pid_file = tiny.home / f"{name}.pid"
    pausing = torchrun(tiny.home, ranks, "--checkpoints", f"{name}-steps", "--out", name, "--pause-at", str(steps * 3 // 4))
    try:
        until = time.monotonic() + 120
        while not (pid_file.is_file() and pid_file.read_text()):
            assert time.monotonic() < until and pausing.poll() is None, "the training never got to the step where it is killed"
            time.sleep(0.1)
        os.kill(int(pid_file.read_text()), signal.SIGKILL)
        pausing.communicate(timeout=120)
        assert pausing.returncode != 0
    finally:
        if pausing.poll() is None:
            pausing.terminate()
            pausing.wait(30)
    assert not (tiny.home / f"{name}-0.pt").exists()
    saved = max(int(p.name.removeprefix("step-")) for p in (tiny.home / f"{name}-steps").glob("step-*"))
    assert steps // 2 < saved < steps, "the last checkpoint lies in the second epoch"
    finish(torchrun(tiny.home, ranks, "--checkpoints", f"{name}-steps", "--out", name))
    assert int((tiny.home / f"{name}-0.first").read_text()) > saved, "nothing before the checkpoint was done again"
    for rank in range(ranks):
        assert same(weights(tiny.home, name, rank), weights(tiny.home, whole, rank)) == []
    assert (tiny.home / f"{name}-0.json").read_text() == (tiny.home / f"{whole}-0.json").read_text()
