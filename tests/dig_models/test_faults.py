"""Fault points act only when asked to, at the visit asked for; every one that is listed is placed, and the other way round."""

import ast
import errno
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dig_models import faults

LISTED = dict(faults.POINTS)
ROOT = Path(__file__).resolve().parents[2]


def placed():
    """``file:line`` of every call of ``reached`` in the project, by the point that it names."""
    found = {}
    for room in ("dig_models", "jobs"):
        for path in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "reached":
                    name = node.args[0].value if isinstance(node.args[0], ast.Constant) else ast.unparse(node.args[0])
                    found.setdefault(name, []).append(f"{path.relative_to(ROOT)}:{node.lineno}")
    return found


def test_every_listed_point_is_placed_once_and_every_placed_one_is_listed():
    found = placed()
    assert sorted(found) == sorted(LISTED)
    assert {name: where for name, where in found.items() if len(where) > 1} == {}


def test_every_point_has_a_place_in_a_protocol_and_a_description():
    assert len(LISTED) >= 30
    for name, done in LISTED.items():
        area, _, step = name.partition(".")
        assert area.isidentifier() and step.isidentifier() and done and not done.endswith(".")


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
    with pytest.raises(OSError, match=r"fault point a\.b") as caught:
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
