"""Starting servers that outlive this process, watching them, and stopping exactly those."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from jobs.processes import stop as stop_processes
from jobs.processes import tree
from ops.service import Service, StackError, as_user
from ops.state import Started

MARKER = "OPS_STACK_MARKER"
HEALTHY_WITHIN = 240.0
POLL = 0.25
TAIL = 25


def born(pid: int) -> str | None:
    """Boot and clock tick in which a process started; None if it is gone or only waits to be reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else f"{boot}/{fields[19]}"


def alive(process: Started | None) -> bool:
    """Whether that very process still runs; another one that got its number does not count."""
    return process is not None and born(process.pid) == process.born


def tail(log: Path, lines: int = TAIL) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.is_file() else "(no log)"


def spawn(service: Service, log: Path, environment: Mapping[str, str], cwd: Path) -> Started:
    """Start a server in a session of its own, so that it survives the terminal; what it prints is appended to ``log``.

    Raises:
        StackError: its program cannot be started.
    """
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as out:
        try:
            process = subprocess.Popen(
                service.command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**environment, **service.environment},
                cwd=cwd,
                start_new_session=True,
                **as_user(service.account),
            )
        except OSError as error:
            raise StackError(f"{service.name}: {service.command[0]} cannot be started: {error}") from None
    started = Started(process.pid, born(process.pid) or "ended at once", time.time(), service.stop_signal, service.patience, service.needs)
    process.returncode = 0  # it is meant to outlive this process: no complaint when the handle goes
    return started


def await_health(service: Service, process: Started, log: Path, within: float = HEALTHY_WITHIN) -> None:
    """Wait until a server answers.

    Raises:
        StackError: it ended, or did not answer in time; with the end of its log.
    """
    deadline = time.monotonic() + within
    while not service.healthy(process.at):
        if not alive(process):
            raise StackError(f"{service.name} ended while it started; the end of {log}:\n{tail(log)}")
        if time.monotonic() > deadline:
            raise StackError(f"{service.name} (pid {process.pid}) was not healthy within {within:.0f} s; the end of {log}:\n{tail(log)}")
        time.sleep(POLL)


def stop(processes: Mapping[str, Started]) -> Iterator[str]:
    """Ask processes that the stack started to end, all at once, then end them and what is left of their children.

    Args:
        processes: by service; one that is gone is passed over, and so is another process that got its number.

    Yields:
        Name of each service that has stopped.
    """
    waiting = {name: process for name, process in processes.items() if alive(process)}
    families = {name: tree(process.pid) for name, process in waiting.items()}
    for process in waiting.values():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, process.stop_signal)
    began = time.monotonic()
    while waiting:
        for name, process in list(waiting.items()):
            if not alive(process) or time.monotonic() - began > process.patience:
                stop_processes([member for member in families[name] if _runs(member)])
                del waiting[name]
                yield name
        time.sleep(POLL)


def marked(marker: str) -> list[psutil.Process]:
    """Processes that carry the marker of a stack in their environment, whoever their parent is now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARKER) == marker and _runs(process):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def left_by(process: Started, marker: str) -> list[psutil.Process]:
    """What a server that is gone has left of its session: workers that hold its port, tasks that it had begun."""
    found = []
    for member in marked(marker):
        try:
            if os.getsid(member.pid) == process.pid:
                found.append(member)
        except ProcessLookupError:
            continue
    return found


def _runs(process: psutil.Process) -> bool:
    return process.is_running() and born(process.pid) is not None
