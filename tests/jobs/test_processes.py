"""The memory of a process tree."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from jobs.processes import YOUNG_SECONDS, PeakMemory, resident_bytes

HOLDS = 96 << 20


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    """A process that fills its memory, then waits to be stopped."""
    program = f"x = bytearray(b'1') * {HOLDS}; print('full', flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "full\n"
    yield process
    process.kill()
    process.wait()


def test_a_child_counts_once_it_is_no_longer_a_fork_that_shows_its_parents_memory(child: subprocess.Popen[str]) -> None:
    own = psutil.Process(os.getpid()).memory_info().rss
    assert resident_bytes(child.pid) > HOLDS, "the root of a tree always counts"
    time.sleep(max(psutil.Process(child.pid).create_time() + YOUNG_SECONDS + 0.1 - time.time(), 0))
    assert resident_bytes(os.getpid()) > own / 2 + HOLDS
    with PeakMemory(os.getpid(), interval=0.05) as peak:
        time.sleep(0.2)
    assert peak.bytes > own / 2 + HOLDS


def test_a_child_that_was_just_born_does_not_count(child: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch) -> None:
    born = psutil.Process(child.pid).create_time()
    found = {}
    for age in (YOUNG_SECONDS / 2, 2 * YOUNG_SECONDS):  # what else this process has started counts both times
        monkeypatch.setattr(time, "time", lambda age=age: born + age)
        found[age] = resident_bytes(os.getpid())
    assert found[2 * YOUNG_SECONDS] - found[YOUNG_SECONDS / 2] > 0.8 * HOLDS


def test_a_process_that_is_gone_holds_nothing(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.wait()
    assert resident_bytes(child.pid) == 0
