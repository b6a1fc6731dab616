"""Crash scenarios of a refresh: the real job on a real registry, a real index and snapshots in a real lake."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from jobs import fresh, promotion_log
from jobs.entry import run
from tests.crash import index, promotion
from tests.crash.harness import Scenario
from tests.jobs import fresh_world as fw
from tests.jobs import release_world as rw

HOUR = ("2017-11-20T09:10:00+00:00", "2999-11-20T10:10:00+00:00")  # the second one after the first was carried out


def world(root: Path, *, refreshed: bool = False) -> None:
    """A promoted version, and the snapshots of two days; perhaps refreshed an hour ago, with one more item now."""
    config = fw.make(root).config
    if refreshed:
        assert step(root, hour=0) == 0
        fw.snapshot(config, fw.TODAY, [*rw.ITEMS, *fw.NEW, "fresh-3"])


def step(root: Path, *, hour: int) -> int:
    """``python -m jobs.fresh``."""
    options = ["--date", str(fw.TODAY), "--who", "hourly", "--at", HOUR[hour], "--set", f"paths.home={root}"]
    return run("fresh", fresh.main, options, options=fresh.options)


def leaves(root: Path) -> Mapping[str, object]:
    """See ``promotion.leaves``; what ``fresh.json`` says of the run itself differs in a rerun, what serves does not."""
    moves = [(entry.action, entry.after) for entry in promotion_log.moves(root / "index")]
    return {**promotion.leaves(root), "moves of the refresh": moves}


def _scenario(situation: str, points: tuple[str, ...], full: tuple[str, ...] = (), *, refreshed: bool = False) -> Scenario:
    return Scenario(
        area="refresh",
        situation=situation,
        prepare=partial(world, refreshed=refreshed),
        step=partial(step, hour=int(refreshed)),
        look=promotion.look,
        leaves=leaves,
        points=points,
        full=full,
        poll=index.read,
    )


WRITING = ("index.cleared", "refresh.reused", "refresh.items_written", "refresh.staged", "index.delta_written", "index.manifest_written")
MOVING = ("index.renamed", "index.installed", "promotion.intent_written", "index.verified", "index.switched", "promotion.logged")
SCENARIOS = [
    _scenario("the first of a day", (*WRITING, *MOVING), ("refresh.items_written", "index.delta_written")),
    _scenario("an hour later", ("refresh.staged", "promotion.current_switched", "index.retention_done"), refreshed=True),
]
