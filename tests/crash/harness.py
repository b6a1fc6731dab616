"""Crash tests: a step is killed at a fault point, what it left is looked at, then it is run again and compared with an undisturbed run.

A ``Scenario`` is a step in one situation. ``Visit`` runs it: each run is a process of its own, forked from a server that has imported
what steps need, so that a visit takes a second and not ten. What was found is kept in ``OUTCOMES`` and printed at the end.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TypeVar, cast

from dig_models import faults

PRELOADED = ["pytest", "torch", "mlflow.pyfunc", "jobs.promote", "jobs.pyfunc_model", "jobs.register", "jobs.spark", "jobs.train"]
PATIENCE_SECONDS = 300.0
State = Mapping[str, str]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A step in one situation; functions get the folder of the world and are importable, for they run in other processes.

    Attributes:
        area: what is written: ``partition``, ``index``, …
        situation: what is there before.
        prepare: builds the world.
        step: runs the real step; returns its exit status.
        look: what a reader sees, by part (a day, an alias); raises if a part is neither whole nor clearly not there.
        leaves: what the step leaves, by name: digests of files and whatever else must be the same after a rerun.
        points: fault points to die at; ``name@2`` at the second visit.
        full: fault points at which the disk is full.
        gaps: points where a part is for a moment neither old nor new but known to be missing: what ``look`` then says.
        poll: a reader that runs beside every visit, see ``Poll``.
        needs: fixture of something that outlives a visit; what it says is in the file of that name beside the world.
    """

    area: str
    situation: str
    prepare: Callable[[Path], None]
    step: Callable[[Path], int]
    look: Callable[[Path], State]
    leaves: Callable[[Path], Mapping[str, object]]
    points: tuple[str, ...]
    full: tuple[str, ...] = ()
    gaps: Mapping[str, str] = field(default_factory=dict)
    poll: Callable[[Path], tuple[str, ...]] | None = None
    needs: str = ""

    @property
    def name(self) -> str:
        return f"{self.area}, {self.situation}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was found at one visit.

    Attributes:
        seen: what readers saw after the crash.
        done: what had been done when it came, where ``point`` is no fault point.
    """

    point: str
    situation: str
    died: str
    seen: str
    rerun: str
    reads: int = 0
    mixed: int = 0
    missing: int = 0
    done: str = ""


OUTCOMES: list[Outcome] = []


def files_of(root: Path, *, but: tuple[str, ...] = ()) -> dict[str, str]:
    """SHA-256 of every file below a folder, hidden ones too, and every folder that is empty."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_file() and not name.startswith(but or ("\0",)):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.is_dir() and not any(path.iterdir()):
            found[f"{name}/"] = "empty"
    return found


# ---- processes -------------------------------------------------------------------------------------------------------


def _context() -> multiprocessing.context.ForkServerContext:
    os.environ |= {"OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}  # no thread may run where processes are forked
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _child(call: Callable[[Path], int | None], root: Path, fault: str, log: Path) -> None:
    os.environ.pop(faults.VARIABLE, None)
    if fault:
        os.environ[faults.VARIABLE] = fault
    sys.stdout.flush()
    sys.stderr.flush()
    with log.open("ab") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    sys.exit(call(root) or 0)


def start(call: Callable[[Path], int | None], root: Path, *, fault: str = "", log: Path) -> BaseProcess:
    """Run a function of a module in a process of its own, its output in a file."""
    log.touch()
    process = _context().Process(target=_child, args=(call, root, fault, log))
    process.start()
    return process


def asked(call: Callable[[Path], T], root: Path) -> T:
    """What a function finds, in a process of its own: one that keeps files open would see them after they were put back."""
    answer, out = _context().Pipe(duplex=False)
    process = _context().Process(target=_answer, args=(call, root, out))
    process.start()
    out.close()
    try:
        found, error = answer.recv()
    finally:
        process.join()
    assert error is None, error
    return cast("T", found)


def _answer(call: Callable[[Path], T], root: Path, out: Connection) -> None:
    try:
        out.send((call(root), None))
    except BaseException:
        out.send((None, traceback.format_exc()))


def ended(process: BaseProcess) -> int:
    """Exit status of a process, waited for; ``-9`` if it was killed."""
    process.join(PATIENCE_SECONDS)
    if process.exitcode is None:
        process.kill()
        raise AssertionError("the process did not end")
    return process.exitcode


def until(said: Callable[[], bool], what: str) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not said():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.02)


# ---- a reader beside it ----------------------------------------------------------------------------------------------


class Poll:
    """A process that reads again and again while a step runs, is killed and runs again."""

    def __init__(self, read: Callable[[Path], tuple[str, ...]], root: Path) -> None:
        context = _context()
        self._stop = context.Event()
        self._counts = context.Array("l", [0, 0])  # reads, missing
        self._lines, sent = context.Pipe(duplex=False)
        self._process = context.Process(target=_poll, args=(read, root, self._stop, self._counts, sent))
        self._process.start()

    @property
    def reads(self) -> int:
        return int(self._counts[0])

    def again(self) -> None:
        """Wait until it has read once more."""
        before = sum(self._counts)
        until(lambda: sum(self._counts) > before + 1, "a reader to read")

    def close(self) -> tuple[int, int, set[tuple[str, ...]]]:
        """Stop; how often it read, how often in vain, and the distinct things that it read."""
        self._stop.set()
        seen = self._lines.recv()
        ended(self._process)
        return int(self._counts[0]), int(self._counts[1]), seen


def _poll(read, root, stop, counts, out) -> None:
    seen = set()
    while not stop.is_set():
        try:
            seen.add(read(root))
            counts[0] += 1
        except (OSError, ValueError) as error:
            print(f"reader: {error}", file=sys.stderr, flush=True)
            counts[1] += 1
    out.send(seen)


# ---- a visit ---------------------------------------------------------------------------------------------------------


def _read(poll: Callable[[Path], tuple[str, ...]] | None, root: Path) -> tuple[str, ...] | None:
    try:
        return poll(root) if poll else None
    except ValueError:  # nothing there yet
        return None


class World:
    """The folder of a scenario, put back before each visit, and what an undisturbed run makes of it."""

    def __init__(self, scenario: Scenario, home: Path, needs: str = "", *, log: Path | None = None) -> None:
        self.scenario, self.root = scenario, home / "world"
        if scenario.needs:
            (home / scenario.needs).write_text(needs)
        self._kept, self.log = home / "before", log or home / "log"
        self.root.mkdir(parents=True)
        self.run(scenario.prepare)
        shutil.copytree(self.root, self._kept)
        self.before = self.look()
        self.first_read = asked(partial(_read, scenario.poll), self.root)
        self.run(scenario.step)
        self.after, self.leaves = self.look(), asked(scenario.leaves, self.root)
        self.last_read = asked(partial(_read, scenario.poll), self.root)

    def look(self) -> dict[str, str]:
        """What a reader sees now."""
        return dict(asked(self.scenario.look, self.root))

    def end(self, call: Callable[[Path], int | None], fault: str = "") -> int:
        """Exit status of a function in a process of its own, whose output is then in ``log``."""
        self.log.write_bytes(b"")
        return ended(start(call, self.root, fault=fault, log=self.log))

    def run(self, call: Callable[[Path], int | None]) -> None:
        """Run a function in a process of its own; it must end well."""
        status = self.end(call)
        assert status == 0, self.log.read_text()

    def restore(self) -> None:
        """The state before the step."""
        shutil.rmtree(self.root)
        shutil.copytree(self._kept, self.root)

    def seen(self, point: str = "") -> str:
        """Whether readers see the old state or the new one, part by part.

        Raises:
            AssertionError: a part is something else.
        """
        state, gap = self.look(), self.scenario.gaps.get(point)
        assert state.keys() == self.before.keys() | self.after.keys()
        for part, value in state.items():
            assert value in (self.before.get(part), self.after.get(part), gap), f"{part}: {value}"
        if gap in state.values():
            return f"{gap}"
        if self.before == self.after:
            return "the same"
        new = sum(value == self.after.get(part) for part, value in state.items())
        return "old" if state == self.before else "new" if state == self.after else f"{new} of {len(state)} new"


def kill(world: World, point: str) -> Outcome:
    """Die at a point, look, run again, compare."""
    scenario = world.scenario
    world.restore()
    poll = Poll(scenario.poll, world.root) if scenario.poll and world.first_read else None
    try:
        if poll:
            poll.again()
        status = world.end(scenario.step, f"{point}=kill")
        assert status == -9, f"ended with status {status}: the point was not reached\n{world.log.read_text()}"
        seen = world.seen(point)
        if poll:
            poll.again()
        world.run(scenario.step)
        if poll:
            poll.again()
    finally:
        reads, missing, read = poll.close() if poll else (0, 0, set())
    rerun = compare(world)
    mixed = len(read - {world.first_read, world.last_read})
    outcome = Outcome(
        point=point, situation=scenario.name, died="SIGKILL", seen=seen, rerun=rerun, reads=reads, mixed=mixed, missing=missing
    )
    OUTCOMES.append(outcome)
    assert (mixed, missing) == (0, 0), read
    return outcome


def full(world: World, point: str) -> Outcome:
    """Meet a full disk at a point: one clear line, nothing changed, and the same as ever once there is space."""
    world.restore()
    status = world.end(world.scenario.step, f"{point}=full")
    said = world.log.read_text()
    assert status == 1, said
    assert "no space left to write it" in said and str(world.root) in said and "Traceback" not in said, said
    seen = world.seen()
    world.run(world.scenario.step)
    outcome = Outcome(point=point, situation=world.scenario.name, died="disk full", seen=seen, rerun=compare(world))
    OUTCOMES.append(outcome)
    return outcome


def compare(world: World) -> str:
    """The state after a rerun, which must be that of an undisturbed run."""
    assert world.look() == world.after
    assert asked(world.scenario.leaves, world.root) == world.leaves
    return "as undisturbed"
