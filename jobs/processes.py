"""The processes that a run starts: their memory, and how they are stopped."""

from __future__ import annotations

import contextlib
import threading
import time
from types import TracebackType

import psutil

YOUNG_SECONDS = 1.0


def tree(pid: int) -> list[psutil.Process]:
    """The process and all its descendants; empty if it is gone."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def stop(processes: list[psutil.Process], patience: float = 5.0) -> None:
    """Ask the processes to end, then kill the ones that did not within ``patience`` seconds."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    for process in psutil.wait_procs(processes, timeout=patience)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def resident_bytes(pid: int) -> int:
    """Resident memory of a process tree in bytes; pages that processes share count once for each.

    Descendants younger than ``YOUNG_SECONDS`` do not count: between fork and exec a child shows its parent's memory as its own, and a JVM
    of gigabytes forks often.
    """
    total, born_before = 0, time.time() - YOUNG_SECONDS
    for process in tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.pid == pid or process.create_time() < born_before:
                total += process.memory_info().rss
    return total


class PeakMemory:
    """Highest resident memory of a process tree, sampled by a thread while the context is open.

    Attributes:
        bytes: the peak so far.
    """

    def __init__(self, pid: int, interval: float = 0.5) -> None:
        self.bytes = 0
        self._pid = pid
        self._interval = interval
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def _watch(self) -> None:
        while True:
            self.bytes = max(self.bytes, resident_bytes(self._pid))
            if self._done.wait(self._interval):
                return

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()
