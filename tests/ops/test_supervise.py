"""Processes that outlive their starter: known by birth and not by number alone, stopped with their children, and nobody else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from ops import supervise
from ops.service import Service, StackError

NAME = f"this-test-{os.getpid()}"  # test processes beside this one have servers of their own
MARK = {supervise.MARKER: NAME}
FOREVER = "import time; time.sleep(600)"
PARENT = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {FOREVER!r}]); print(p.pid, flush=True); p.wait()"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"


def service(code: str, **more: object) -> Service:
    return Service(name="it", command=(sys.executable, "-c", code), healthy=lambda since: False, **more)  # type: ignore[arg-type]


def eventually(said: Callable[[], object], within: float = 30.0) -> None:
    until = time.monotonic() + within
    while not said():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.fixture
def start(tmp_path):
    """Starts a service with log ``<tmp>/log``; whatever is left of it is killed at the end."""
    started = []

    def spawn(one: Service) -> supervise.Started:
        started.append(supervise.spawn(one, tmp_path / "log", os.environ | MARK, tmp_path))
        return started[-1]

    yield spawn
    for process in [*supervise.marked(NAME), *(psutil.Process(p.pid) for p in started if supervise.alive(p))]:
        process.kill()


def printed(tmp_path: Path) -> str:
    eventually(lambda: (tmp_path / "log").read_text())
    return (tmp_path / "log").read_text()


def test_a_server_leads_a_session_of_its_own(start):
    process = start(service(FOREVER))
    assert os.getsid(process.pid) == process.pid
    assert supervise.alive(process)


def test_its_log_is_private_and_appended_to(start, tmp_path):
    before = os.umask(0)
    try:
        start(service("print('one')"))
        eventually(lambda: "one" in (tmp_path / "log").read_text())
        start(service("print('two')"))
        eventually(lambda: "two" in (tmp_path / "log").read_text())
    finally:
        os.umask(before)
    assert (tmp_path / "log").read_text() == "one\ntwo\n"
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_another_process_with_the_same_number_is_neither_alive_nor_stopped(start):
    process = start(service(FOREVER))
    earlier = replace(process, born="another-boot/1")
    assert not supervise.alive(earlier)
    assert list(supervise.stop({"it": earlier})) == []
    assert supervise.alive(process)


def test_a_process_that_waits_to_be_reaped_is_not_alive():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = supervise.Started(child.pid, supervise.born(child.pid) or "", 0.0, signal.SIGTERM, 1.0)
    assert supervise.alive(process)
    child.kill()
    eventually(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE)
    assert not supervise.alive(process)
    child.communicate()


def test_stopping_ends_the_children_too_and_nobody_else(start, tmp_path):
    bystander = subprocess.Popen([sys.executable, "-c", FOREVER])
    try:
        process = start(service(PARENT))
        child = psutil.Process(int(printed(tmp_path)))
        assert list(supervise.stop({"it": process})) == ["it"]
        assert not supervise.alive(process)
        eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.slow
def test_one_that_does_not_listen_is_killed_when_its_patience_ends(start, tmp_path):
    process = start(service(DEAF, patience=0.1))
    assert printed(tmp_path) == "deaf\n"
    assert list(supervise.stop({"it": process})) == ["it"]
    eventually(lambda: not supervise.alive(process))


def test_what_a_dead_server_left_is_found_by_its_marker(start, tmp_path):
    process = start(service(PARENT))
    orphan = int(printed(tmp_path))
    os.kill(process.pid, signal.SIGKILL)
    eventually(lambda: not supervise.alive(process))
    assert [found.pid for found in supervise.marked(NAME)] == [orphan]
    assert supervise.marked("another") == []


def test_what_a_dead_server_left_of_its_session_is_its_own_and_nobody_elses(start, tmp_path):
    process, neighbour = start(service(PARENT)), start(service(FOREVER))
    orphan = int(printed(tmp_path))
    os.kill(process.pid, signal.SIGKILL)
    eventually(lambda: not supervise.alive(process))
    assert [found.pid for found in supervise.left_by(process, NAME)] == [orphan]
    assert supervise.left_by(process, "another") == []
    assert [found.pid for found in supervise.left_by(neighbour, NAME)] == [neighbour.pid]


def test_a_server_that_ends_at_once_is_an_error_with_the_end_of_its_log(start, tmp_path):
    one = service("import sys; sys.exit('no room at the inn')")
    with pytest.raises(StackError, match=r"it ended while it started; the end of .*\nno room at the inn"):
        supervise.await_health(one, start(one), tmp_path / "log", within=60)


def test_a_server_that_does_not_answer_in_time_is_an_error_with_the_end_of_its_log(start, tmp_path):
    one = service(DEAF)
    process = start(one)
    printed(tmp_path)
    with pytest.raises(StackError, match=r"not healthy within 0 s; the end of .*\ndeaf"):
        supervise.await_health(one, process, tmp_path / "log", within=0.0)


def test_a_program_that_is_not_there_is_named(start):
    one = replace(service(""), command=("/nowhere/server",))
    with pytest.raises(StackError, match="it: /nowhere/server cannot be started"):
        start(one)
