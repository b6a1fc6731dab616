"""What must not be half done is not, locks say who holds them, and a full disk is one clear error whoever meets it."""

import errno
import multiprocessing
import os
import socket
import subprocess
import sys
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from dig_models import faults
from dig_models.files import DiskFull, exclusive, naming_full_disk, replace_text, replacing


def test_a_replacement_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    replace_text(path, "old")
    monkeypatch.setenv(faults.VARIABLE, "file.written=full")
    faults._visits.clear()
    with pytest.raises(DiskFull, match=rf"{path}: no space left.*what was there before stays"):
        replace_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_goes_with_the_next_replacement_and_a_living_ones_stays(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host = socket.gethostname()
    dead, alive, elsewhere = (tmp_path / f".a.json.{owner}" for owner in (f"{host}.{ended.pid}", f"{host}.{os.getppid()}", "other.1"))
    for path in (dead, alive, elsewhere):
        path.write_text("half")
    replace_text(tmp_path / "a.json", "new")
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "a.json", alive, elsewhere])


def test_of_two_processes_that_replace_a_file_at_once_neither_leaves_half_of_it(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    with replacing(path) as mine:
        mine.write_bytes(b"mine, half")
        monkeypatch.setattr("dig_models.files.os.getpid", os.getppid)  # another process that lives
        with replacing(path) as other:
            other.write_bytes(b"other")
        monkeypatch.undo()
        assert path.read_bytes() == b"other" and mine.is_file()
        mine.write_bytes(b"mine")
    assert path.read_bytes() == b"mine" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(ZeroDivisionError), replacing(path) as mine:
        mine.write_bytes(bytes([mine.write_bytes(b"no") // 0]))
    assert path.read_bytes() == b"mine" and list(tmp_path.iterdir()) == [path]


def test_a_lock_says_who_holds_it(tmp_path):
    with exclusive(tmp_path / "lock"), pytest.raises(BlockingIOError) as caught, exclusive(tmp_path / "lock", wait=False):
        pass
    assert f"process {os.getpid()} on" in caught.value.strerror
    assert (tmp_path / "lock").read_text() == ""


def hold(path, taken):
    with exclusive(path):
        taken.set()
        threading.Event().wait()


def test_the_lock_of_a_killed_process_is_free_and_its_name_forgotten(tmp_path):
    context = multiprocessing.get_context("spawn")
    taken = context.Event()
    holder = context.Process(target=hold, args=(tmp_path / "lock", taken))
    holder.start()
    assert taken.wait(60)
    with pytest.raises(BlockingIOError, match=f"process {holder.pid} on"), exclusive(tmp_path / "lock", wait=False):
        pass
    holder.kill()
    holder.join()
    assert str(holder.pid) in (tmp_path / "lock").read_text()
    with exclusive(tmp_path / "lock", wait=False):
        assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} ")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "x"), OSError(errno.EDQUOT, "x"), RuntimeError("IO: No space left on device")])
def test_every_way_to_say_that_a_disk_is_full_is_understood(tmp_path, error):
    with pytest.raises(DiskFull, match=str(tmp_path)), naming_full_disk(tmp_path):
        raise error


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "no"), ValueError("requested and written")])
def test_other_errors_pass_unchanged(tmp_path, error):
    with pytest.raises(type(error)) as caught, naming_full_disk(tmp_path):
        raise error
    assert caught.value is error


def write_text(folder):
    replace_text(folder / "a.txt", "x" * 500_000)


def write_parquet(folder):
    pq.write_table(pa.table({"x": np.random.default_rng(0).random(100_000)}), folder / "a.parquet")


def write_array(folder):
    np.save(folder / "a.npy", np.zeros(100_000))


def write_tensors(folder):
    save_file({"x": torch.zeros(100_000)}, folder / "a.safetensors")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
@pytest.mark.parametrize("write", [write_text, write_parquet, write_array, write_tensors])
def test_each_library_that_writes_meets_a_disk_that_is_really_full(tmp_path, write):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mounting is not allowed here: {mounted.stderr.strip()}")
    try:
        with pytest.raises(DiskFull, match=str(tmp_path)), naming_full_disk(tmp_path):
            write(tmp_path)
    finally:
        subprocess.run(["umount", tmp_path], check=True)
