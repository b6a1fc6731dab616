"""Crash scenarios of promotion: the real job, a real registry in a SQLite file, and real generations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from dig_models.index import generation as g
from jobs import promote, promotion, promotion_log, registry
from jobs.entry import run
from tests.crash import index
from tests.crash.harness import Scenario, files_of
from tests.jobs import release_world as rw

HAND = ("--reason", "because", "--who", "ann", "--at", rw.AT)


def world(root: Path, *, promoted: int = 0) -> None:
    """Three versions with a generation each, some of them promoted, in order."""
    made = rw.make(root)
    for pair in made.pairs[:promoted]:
        promotion.move(made.config, pair, rw.asks())


def step(root: Path, *way: str) -> int:
    """``python -m jobs.promote``."""
    return run("promote", promote.main, ["--set", f"paths.home={root}", *way, *HAND], dated=False, options=promote._options)


def look(root: Path) -> Mapping[str, str]:
    """Champion, the version it follows, and the generation that serves."""
    config = rw.settings(root)
    found = {alias: registry.find(config, alias) for alias in (registry.CHAMPION, registry.PREVIOUS)}
    return {alias: ref.version if ref else "none" for alias, ref in found.items()} | {"current": str(promotion.in_force(config).generation)}


def leaves(root: Path) -> Mapping[str, object]:
    """Aliases, tags, what came into force in order, and every file of the index but locks and the log, which also tells what was undone."""
    config = rw.settings(root)
    place = root / "index"
    moves = [(entry.action, entry.after, entry.who, entry.reason) for entry in promotion_log.entries(place) if entry.outcome == "promoted"]
    tags = {ref.version: dict(ref.tags) for ref in registry.versions(config)}
    return {**look(root), "moves": moves, "tags": tags, "files": files_of(place, but=(promotion_log.LOG, promotion.LOCK, ".lock"))}


def by_generation(root: Path, *, number: int) -> int:
    """Promote a version with its generation."""
    there = g.generations(root / "index")
    return step(root, "--generation", next(name for name in there if g.id_version(name) == str(number)))


def rollback(root: Path) -> int:
    """Go back to the pair before."""
    return step(root, "--rollback")


STEPS = tuple(
    f"promotion.{point}"
    for point in ("intent_written", "previous_moved", "champion_moved", "current_switched", "tags_set", "logged", "intent_removed")
)
# The first file that is replaced is the intent, the second CURRENT.
FILES = ("file.written", "file.replaced", "file.written@2", "file.replaced@2", "file.appended")


def _scenario(
    situation: str,
    prepare: Callable[[Path], None],
    step: Callable[[Path], int],
    points: tuple[str, ...],
    full: tuple[str, ...] = (),
) -> Scenario:
    return Scenario(
        area="promotion",
        situation=situation,
        prepare=prepare,
        step=step,
        look=look,
        leaves=leaves,
        points=points,
        full=full,
        poll=index.read,
    )


SCENARIOS = [
    _scenario("the first version", world, partial(by_generation, number=1), ("promotion.champion_moved", "promotion.current_switched")),
    _scenario("the next version", partial(world, promoted=1), partial(by_generation, number=2), (*STEPS, *FILES), ("file.written@2",)),
    _scenario("rollback", partial(world, promoted=3), rollback, STEPS, ("file.written", "file.written@2")),
]
