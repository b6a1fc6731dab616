"""Fault points act only when asked to, at the visit asked for."""

import errno
import subprocess
import sys
import threading
import time

import pytest

from dig_models import faults


@pytest.fixture(autouse=True)
def one_point(monkeypatch):
    monkeypatch.setattr(faults, "POINTS", {"a.b": "b is done", "a.c": "c is done"})
    faults._visits.clear()


def test_nothing_happens_unarmed(monkeypatch):
    monkeypatch.delenv(faults.VARIABLE, raising=False)
    faults.reached("a.b")


def test_an_unlisted_point_is_an_error():
    with pytest.raises(KeyError):
        faults.reached("a.x")


@pytest.mark.parametrize("armed", ["a.x=kill", "a.b=explode"])
def test_what_cannot_be_read_is_said(monkeypatch, armed):
    monkeypatch.setenv(faults.VARIABLE, armed)
    with pytest.raises(ValueError, match=armed):
        faults.reached("a.b")


def test_a_full_disk_at_the_second_visit(monkeypatch):
    monkeypatch.setenv(faults.VARIABLE, "a.b@2=full")
    faults.reached("a.b")
    faults.reached("a.c")
    with pytest.raises(OSError, match="fault point a.b") as caught:
        faults.reached("a.b")
    assert caught.value.errno == errno.ENOSPC
    faults.reached("a.b")


def test_a_pause_lasts_until_its_file_is_gone(monkeypatch, tmp_path):
    monkeypatch.setenv(faults.VARIABLE, f"a.b=pause:{tmp_path}")
    waiting = threading.Thread(target=faults.reached, args=("a.b",))
    waiting.start()
    while not (tmp_path / "a.b").exists():
        time.sleep(0.01)
    assert waiting.is_alive()
    (tmp_path / "a.b").unlink()
    waiting.join(timeout=5)
    assert not waiting.is_alive()


def test_a_kill_leaves_no_time_for_anything():
    code = "from dig_models import faults; faults.POINTS['p'] = ''; faults.reached('p'); print('alive')"
    done = subprocess.run([sys.executable, "-c", code], env={"DIG_FAULT": "p=kill", "PYTHONPATH": "."}, capture_output=True, text=True)
    assert done.returncode == -9
    assert done.stdout == ""
